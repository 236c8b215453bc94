"""Frames to visual tokens: NVILA's scale-then-compress around the tower and the projector."""
