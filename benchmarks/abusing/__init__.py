"""What `benchmarks.abuse` throws at the node."""
