"""Clips of cameras that stand, pan or are noisy, and single tokens left out of them."""
