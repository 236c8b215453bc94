"""Robots that share a server, for `benchmarks.fleet`."""
