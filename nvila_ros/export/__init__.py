"""Checkpoint to ONNX parts."""
