"""What this machine is, and what of the package works on it."""
