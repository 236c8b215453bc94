"""The backend `cpu`: our own decoder kernels beside OpenVINO's tower."""
