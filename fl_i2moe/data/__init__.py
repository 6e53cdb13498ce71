"""Raw data sets: tables, published layouts, arrays and generated samples become a `RawDataset`."""
