"""Frames to the tiles that the vision tower sees."""
