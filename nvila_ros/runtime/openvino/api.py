"""OpenVINO without its telemetry: every module here imports `ov` and `ops` from this one.

The wheel depends on openvino-telemetry and sends an event over the network whenever it is imported, unless that package
is missing; so it is marked as missing first. Nothing here uses the network.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13 as ops  # noqa: E402

__all__ = ["ops", "ov"]
