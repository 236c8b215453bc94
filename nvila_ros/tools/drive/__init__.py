"""Drives through houses: with ROS as `nvila drive` shows them, and without it as the benchmark counts them."""
