"""Rooms to drive in: houses, a camera, a robot that moves, shortest paths, instructions and who follows them."""
