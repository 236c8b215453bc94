"""The TensorRT engine: plans are compiled on the device and run there."""
