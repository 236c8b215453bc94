"""The launch files describe every argument, and the parameter files hold what the node takes."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from nvila_ros.config import NodeConfig, from_dict

LAUNCH = Path(__file__).parents[1] / "launch"
LAUNCH_FILES = sorted(LAUNCH.glob("*.launch.py"))
PARAMS_FILES = sorted((LAUNCH / "params").glob("*.yaml"))
ARGUMENTS = {
    "nvila.launch.py": {
        "model",
        "backend",
        "recipe",
        "build_missing_engines",
        "image",
        "namespace",
        "params_file",
        "use_sim_time",
        "log_level",
    },
    "demo.launch.py": {"video", "width", "height", "rate_hz"},
}


@pytest.mark.parametrize("path", PARAMS_FILES, ids=lambda path: path.name)
def test_parameter_file_builds_a_node_config(path: Path) -> None:
    (values,) = (node["ros__parameters"] for node in yaml.safe_load(path.read_text()).values())

    assert isinstance(from_dict(NodeConfig, values), NodeConfig)


def test_default_parameters_are_those_of_the_node() -> None:
    values = yaml.safe_load((LAUNCH / "params" / "default.yaml").read_text())["/**"]["ros__parameters"]

    assert from_dict(NodeConfig, values) == NodeConfig()


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_describes_its_arguments(path: Path) -> None:
    tree = ast.parse(path.read_text())
    (table,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARGUMENTS"
    )
    rows = [row.elts for row in table.elts]

    assert {ast.literal_eval(row[0]) for row in rows} == ARGUMENTS[path.name]
    assert all(ast.literal_eval(row[-1]) for row in rows)


@pytest.mark.ros
@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_gives_a_description(path: Path) -> None:
    pytest.importorskip("launch_ros", reason="launch comes with a ROS from apt; no wheel has it")
    from launch.actions import DeclareLaunchArgument

    description = _load(path).generate_launch_description()

    declared = {a.name: a.description for a in description.entities if isinstance(a, DeclareLaunchArgument)}
    assert declared.keys() == ARGUMENTS[path.name]
    assert all(declared.values())


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
