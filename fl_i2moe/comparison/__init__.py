"""Several systems side by side: trained for it, or trained already."""
