"""What AWS's compiler rejects in a kernel's source."""
