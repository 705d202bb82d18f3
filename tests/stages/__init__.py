"""A file a stage: the reference's and the kernel's, which have one name, against float64 NumPy."""
