"""Values on and off chip: dtypes, addresses, tensors and their storage."""
