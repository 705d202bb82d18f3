"""Memory on and off chip: dtypes, addresses, allocations and tensors."""
