"""Raw data sets: each module turns one published layout into a `RawDataset`."""
