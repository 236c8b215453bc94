"""The layout for Foxglove and the perspective for rqt name topics and fields that the node has."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
messages = pytest.importorskip("nvila_ros.msg")

CONFIG = Path(__file__).parents[2] / "config"
TYPES = {"/nvila/answer": messages.Answer, "/nvila/event": messages.Event}
PLAIN = {"/nvila/annotated", "/diagnostics"}
PLOTTED = {"float", "double", "sequence<float>"}


def test_foxglove_shows_what_is_there() -> None:
    layout = json.loads((CONFIG / "nvila.foxglove.json").read_text())
    panels = layout["configById"]

    assert sorted(_leaves(layout["layout"])) == sorted(panels)
    paths = [path["value"] for panel in panels.values() for path in panel.get("paths", ())]
    assert paths
    assert [path for path in paths if not _is_plotted(re.sub(r"\{[^}]*\}", "", path).partition(".")[::2])] == []
    topics = {panel["imageMode"]["imageTopic"] for panel in panels.values() if "imageMode" in panel}
    topics |= {panel[key] for panel in panels.values() for key in ("topicPath", "topicToRender") if key in panel}
    assert topics <= {*TYPES, *PLAIN}


def test_a_filter_of_the_layout_names_a_field_and_a_query_of_the_example() -> None:
    text = (CONFIG / "nvila.foxglove.json").read_text()

    filters = re.findall(r"\{(\w+)==\\\"(\w+)\\\"\}", text)

    assert filters
    example = (CONFIG / "standing.example.yaml").read_text()
    assert all(name in messages.Answer.get_fields_and_field_types() for name, _ in filters)
    assert all(f"name: {value}\n" in example for _, value in filters)


def test_rqt_plots_what_is_there() -> None:
    perspective = json.loads((CONFIG / "nvila.perspective").read_text())
    plot = perspective["groups"]["pluginmanager"]["groups"]["plugin__rqt_plot__Plot__1"]["groups"]["plugin"]["keys"]

    topics = ast.literal_eval(plot["topics"]["repr"])

    assert topics
    assert [topic for topic in topics if not _is_plotted(topic.rpartition("/")[::2])] == []


def _is_plotted(parts: tuple[str, str]) -> bool:
    """Whether a topic has a field that is a number, or an element of numbers."""
    topic, field = parts
    kind = TYPES[topic].get_fields_and_field_types()[field.partition("[")[0]]
    return kind in PLOTTED and kind.startswith("sequence") == ("[" in field)


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        yield from _leaves(node["first"])
        yield from _leaves(node["second"])
