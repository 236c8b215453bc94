"""The tower and the projector by OpenVINO, part of the backend `cpu`."""
