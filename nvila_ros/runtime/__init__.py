"""Backends that run the parts: one file each, found by name."""
