"""The ONNX Runtime engine, the default backend."""
