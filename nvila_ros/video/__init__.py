"""Frames in time: the buffer that keeps them, the choice of a few, their pixels, and the watch over lost ones."""
