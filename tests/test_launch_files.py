"""The launch files perform every argument, and the parameter files hold what the node takes.

The real `launch` and `launch_ros` run them where they are installed, else a stand-in; what they would start is read by
ROS itself.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvila_ros.config import NodeConfig, from_dict
from tests import launch_standin

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
HAS_LAUNCH = importlib.util.find_spec("launch_ros") is not None
PROGRAMS = {
    "nvila_node": "nvila_ros.ros.node",
    "nvila_camera": "nvila_ros.ros.camera_publisher",
    "nvila_drive": "nvila_ros.ros.drive",
}
LAUNCH_FILES = sorted(LAUNCH.glob("*.launch.py"))
PARAMS_FILES = sorted((LAUNCH / "params").glob("*.yaml"))
ARGUMENTS = {
    "nvila.launch.py": {
        "model",
        "backend",
        "precision",
        "recipe",
        "build_missing_engines",
        "cameras",
        "camera_topics",
        "image",
        "namespace",
        "params_file",
        "use_sim_time",
        "log_level",
    },
    "demo.launch.py": {"video", "width", "height", "rate_hz"},
    "drive.launch.py": {"armed", "motion", "wording", "lock_topic", "scan_topic", "base_has_guard"},
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


class Started:
    """A node as the command line that starts it is understood by ROS.

    Attributes:
        program: its executable.
        words: the arguments behind it.
        name: fully qualified.
        parameters: by name, those of parameter files included.
        image: where it reads or publishes `image`.
    """

    def __init__(self, command: list[str]) -> None:
        import rclpy

        self.program, self.words = Path(command[0]).name, command[1:]
        context = rclpy.Context()
        rclpy.init(context=context, args=[])
        try:
            node = rclpy.create_node(
                "unnamed",
                context=context,
                cli_args=self.words,
                use_global_arguments=False,
                automatically_declare_parameters_from_overrides=True,
            )
            self.name = node.get_fully_qualified_name()
            self.parameters = {key: entry.value for key, entry in node.get_parameters_by_prefix("").items()}
            self.image = node.resolve_topic_name("image")
            node.destroy_node()
        finally:
            rclpy.shutdown(context=context)


class Launcher:
    """Loads launch files and performs them, but starts no process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commands: list[list[str]] = []
        if HAS_LAUNCH:
            self._record_what_launch_starts(monkeypatch)
            return
        for name, module in launch_standin.modules().items():
            monkeypatch.setitem(sys.modules, name, module)

    def description(self, name: str) -> Any:
        source = importlib.import_module("launch.launch_description_sources").PythonLaunchDescriptionSource
        context = importlib.import_module("launch").LaunchContext()
        loaded = source(str(LAUNCH / name))
        return loaded.get_launch_description(context) if HAS_LAUNCH else loaded.get_launch_description()

    def commands(self, name: str, **arguments: str) -> list[list[str]]:
        """Return the command lines of the processes that a launch file starts."""
        context = importlib.import_module("launch").LaunchContext()
        context.launch_configurations.update(arguments)
        self._visit(self.description(name), context)
        return self._commands if HAS_LAUNCH else context.commands

    def start(self, name: str, **arguments: str) -> dict[str, Started]:
        """Return what a launch file starts, by program."""
        return {node.program: node for node in map(Started, self.commands(name, **arguments))}

    def _visit(self, entity: Any, context: Any) -> None:
        for child in entity.visit(context) or []:
            self._visit(child, context)

    def _record_what_launch_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from launch.actions import ExecuteProcess
        from launch.utilities import perform_substitutions

        def execute(action: Any, context: Any) -> None:
            words = [perform_substitutions(context, list(word)) for word in action.cmd]
            self._commands.append([word for word in words if word])

        monkeypatch.setattr(ExecuteProcess, "execute", execute)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Launcher:
    return Launcher(monkeypatch)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_launch_file_gives_a_description(path: Path, launcher: Launcher) -> None:
    kind = importlib.import_module("launch.actions").DeclareLaunchArgument

    declared = {a.name: a.description for a in launcher.description(path.name).entities if isinstance(a, kind)}

    assert declared.keys() == ARGUMENTS[path.name]
    assert all(declared.values())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("true", bool, True),
        ("1", bool, True),
        ("False", bool, False),
        ("7", int, 7),
        ("1", float, 1.0),
        ("1.", float, 1.0),
        ("true", str, "true"),
        ("[a, b]", list[str], ["a", "b"]),
        ("[1, 2]", list[int], [1, 2]),
        ("2.5", None, 2.5),
    ],
)
def test_a_typed_parameter_is_read_as_yaml_writes_it(text: str, kind: Any, value: Any, launcher: Launcher) -> None:
    assert evaluate(text, kind) == value
    assert type(evaluate(text, kind)) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"), [("yess", bool), ("", bool), ("1.5", int), ("a", list[str]), ("[1]", list[str]), ("{a: 1}", None)]
)
def test_a_text_of_another_type_is_refused(text: str, kind: Any, launcher: Launcher) -> None:
    with pytest.raises(ValueError, match=r"[Cc]onvert|invalid literal"):
        evaluate(text, kind)


def test_a_plain_text_is_no_boolean(launcher: Launcher) -> None:
    kind = importlib.import_module("launch_ros.parameter_descriptions").ParameterValue

    with pytest.raises(TypeError, match="is not an instance of"):
        kind("true", value_type=bool)


@pytest.mark.ros
@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        ("model", "nvila-tiny-scale", "nvila-tiny-scale"),
        ("backend", "torch", "torch"),
        ("recipe", "nvila-tiny.cpu", "nvila-tiny.cpu"),
        ("build_missing_engines", "true", True),
        ("build_missing_engines", "false", False),
        ("cameras", "[front, rear]", ["front", "rear"]),
        ("camera_topics", "[/front/image_raw]", ["/front/image_raw"]),
        ("use_sim_time", "true", True),
        ("use_sim_time", "False", False),
    ],
)
def test_an_argument_becomes_the_parameter(argument: str, text: str, value: Any, launcher: Launcher) -> None:
    node = launcher.start("nvila.launch.py", **{argument: text})["nvila_node"]

    assert node.parameters[argument] == value


@pytest.mark.ros
def test_without_arguments_the_parameter_file_rules(launcher: Launcher) -> None:
    node = launcher.start("nvila.launch.py")["nvila_node"]

    written = yaml.safe_load((LAUNCH / "params" / "default.yaml").read_text())["/**"]["ros__parameters"]
    assert {name: node.parameters[name] for name in written} == written
    assert node.parameters.keys() - written.keys() <= {"use_sim_time", "start_type_description_service"}
    assert (node.name, node.image) == ("/nvila", "/image")


@pytest.mark.ros
def test_names_topics_files_and_levels_arrive(launcher: Launcher, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("/**: {ros__parameters: {num_frames: 5}}")

    node = launcher.start(
        "nvila.launch.py",
        image="/head/image_raw",
        namespace="robot",
        params_file=str(params),
        log_level="debug",
    )["nvila_node"]

    assert (node.name, node.image, node.parameters["num_frames"]) == ("/robot/nvila", "/head/image_raw", 5)
    assert node.words[node.words.index("--log-level") + 1] == "debug"


@pytest.mark.ros
@pytest.mark.parametrize("other", [{"cameras": "[a]"}, {"camera_topics": "[/b]"}], ids=lambda other: next(iter(other)))
def test_the_only_cameras_topic_beside_those_of_named_ones_is_refused(
    other: dict[str, str], launcher: Launcher
) -> None:
    with pytest.raises(ValueError, match="camera_topics"):
        launcher.start("nvila.launch.py", image="/c", **other)


@pytest.mark.ros
@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [("video", "~/a b.mp4", "~/a b.mp4"), ("width", "320", 320), ("height", "240", 240), ("rate_hz", "5", 5.0)],
)
def test_the_demos_argument_becomes_the_cameras_parameter(
    argument: str, text: str, value: Any, launcher: Launcher
) -> None:
    camera = launcher.start("demo.launch.py", **{argument: text})["nvila_camera"]

    assert camera.parameters[argument] == value
    assert type(camera.parameters[argument]) is type(value)


@pytest.mark.ros
def test_camera_and_node_of_the_demo_share_clock_topic_and_namespace(launcher: Launcher) -> None:
    started = launcher.start("demo.launch.py", use_sim_time="true", image="eye", namespace="/robot")

    assert {node.parameters["use_sim_time"] for node in started.values()} == {True}
    assert {node.image for node in started.values()} == {"/robot/eye"}
    assert [node.name for node in started.values()] == ["/robot/nvila", "/robot/unnamed"]


@pytest.mark.ros
def test_what_the_demo_starts_runs(launcher: Launcher, tmp_path: Path) -> None:
    commands = launcher.commands("demo.launch.py", rate_hz="10", use_sim_time="false")

    with running(commands, tmp_path) as logs:
        wait_for(logs["nvila_node"], "ready model=nvila-tiny")
        wait_for(logs["nvila_camera"], "publishing world 0 640x480 rate_hz=10 topic=/image")


def evaluate(text: str, kind: Any) -> Any:
    """Return a launch argument's text as a parameter of a type."""
    context = importlib.import_module("launch").LaunchContext()
    context.launch_configurations["argument"] = text
    argument = importlib.import_module("launch.substitutions").LaunchConfiguration("argument")
    kind_of_value = importlib.import_module("launch_ros.parameter_descriptions").ParameterValue
    return kind_of_value(argument, value_type=kind).evaluate(context)


@contextlib.contextmanager
def running(commands: list[list[str]], folder: Path) -> Iterator[dict[str, Path]]:
    """Start processes; at the end they are interrupted and must end well. Gives their logs."""
    logs, processes = {}, []
    for program, *words in commands:
        name = Path(program).name
        logs[name] = folder / name
        with logs[name].open("w") as log:
            command = [sys.executable, "-m", PROGRAMS[name], *words]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ, start_new_session=True)
            )
    try:
        yield logs
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        codes = [process.wait(30) for process in processes]
    assert codes == [0] * len(codes), {name: log.read_text() for name, log in logs.items()}


def wait_for(log: Path, text: str, within_s: float = 45.0) -> None:
    end_s = time.monotonic() + within_s
    while text not in log.read_text():
        assert time.monotonic() < end_s, f"{text!r} is not in:\n{log.read_text()}"
        time.sleep(0.05)
