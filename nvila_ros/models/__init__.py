"""Torch definitions of NVILA's parts (the reference of every number) and the torch-free reading of checkpoints."""
