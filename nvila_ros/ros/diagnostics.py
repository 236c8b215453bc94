"""What `/diagnostics` shows: a status of the node, and one of each camera."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_msgs.msg import Header

from nvila_ros.ros.messages import stamp_from_ns


def diagnostics_message(
    name: str,
    warnings: Sequence[str],
    values: Mapping[str, Any],
    now_ns: int,
    *,
    is_error: bool,
    cameras: Sequence[DiagnosticStatus] = (),
) -> DiagnosticArray:
    """Return the state of the node, and behind it that of its cameras.

    Args:
        name: of the node.
        warnings: what is wrong.
        values: what is counted.
        now_ns: ROS clock.
        is_error: nothing is answered until somebody sees to it.
        cameras: as `camera_status` returns them.
    """
    level = DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK
    status = _status(DiagnosticStatus.ERROR if is_error else level, name, "; ".join(warnings), platform.node(), values)
    return DiagnosticArray(header=Header(stamp=stamp_from_ns(now_ns)), status=[status, *cameras])


def camera_status(
    node_name: str, camera: str, warning: str, frame_id: str, values: Mapping[str, Any]
) -> DiagnosticStatus:
    """Return the state of one camera; `frame_id` of its images, else its name, says which hardware it is."""
    level = DiagnosticStatus.WARN if warning else DiagnosticStatus.OK
    return _status(level, f"{node_name}: camera {camera}", warning, frame_id or camera, values)


def namesake_warning(node: Node) -> str:
    """Return what to say where another node has this one's name, or an empty text."""
    name = node.get_fully_qualified_name()
    found = [f"{space.rstrip('/')}/{base}" for base, space in node.get_node_names_and_namespaces()]
    if found.count(name) < 2:
        return ""
    return (
        f"another node is called {name} too: both answer each question, and clients get either answer; start one with "
        "another name or namespace, such as --ros-args -r __node:=nvila2"
    )


def _status(level: bytes, name: str, message: str, hardware: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message or "ok", hardware_id=hardware, values=pairs)
