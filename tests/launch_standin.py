"""A strict stand-in for the few classes of `launch` and `launch_ros` that our launch files use.

No package index carries those two, so a machine without a ROS from apt cannot run a launch file. Each class here
follows its documentation and refuses what the real one refuses; `test_launch_files.py` runs the same tests against the
real ones where they are installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import yaml

OUTPUTS = ("screen", "log", "both", "own_log", "full")
SCALARS = (bool, int, float, str)


class LaunchContext:
    """The arguments of one launch, and the processes that it would start."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, str] = {}
        self.commands: list[list[str]] = []


class Substitution:
    """A text that is known once the launch runs."""


class SubstitutionFailure(RuntimeError):  # noqa: N818  (launch's own name)
    """A substitution names what is not there."""


class LaunchConfiguration(Substitution):
    """The value of an argument."""

    def __init__(self, variable_name: str, *, default: str | None = None) -> None:
        self._name, self._default = variable_name, default

    def perform(self, context: LaunchContext) -> str:
        if self._name in context.launch_configurations:
            return context.launch_configurations[self._name]
        if self._default is None:
            raise SubstitutionFailure(f"launch configuration '{self._name}' does not exist")
        return self._default


class DeclareLaunchArgument:
    """An argument of the launch file: given on the command line, or its default."""

    def __init__(
        self,
        name: str,
        *,
        default_value: str | None = None,
        description: str = "no description given",
        choices: list[str] | None = None,
    ) -> None:
        self.name, self.description, self._default, self._choices = name, description, default_value, choices

    def visit(self, context: LaunchContext) -> list[Any]:
        if self.name not in context.launch_configurations:
            if self._default is None:
                raise RuntimeError(f"required launch argument '{self.name}' was not provided")
            context.launch_configurations[self.name] = _performed(self._default, context)
        value = context.launch_configurations[self.name]
        if self._choices is not None and value not in self._choices:
            raise RuntimeError(f"argument '{self.name}' is {value!r}, which is not among {self._choices}")
        return []


class OpaqueFunction:
    """Python code that runs when the arguments are known, and returns what to do next."""

    def __init__(self, *, function: Callable[[LaunchContext], list[Any] | None]) -> None:
        self._function = function

    def visit(self, context: LaunchContext) -> list[Any]:
        return self._function(context) or []


class LaunchDescription:
    """What a launch file does, in order."""

    def __init__(self, initial_entities: Iterable[Any] = ()) -> None:
        self.entities = list(initial_entities)

    def visit(self, context: LaunchContext) -> list[Any]:
        return self.entities


class PythonLaunchDescriptionSource:
    """A launch file written in Python."""

    def __init__(self, launch_file_path: str) -> None:
        self._path = launch_file_path

    def get_launch_description(self) -> LaunchDescription:
        spec = importlib.util.spec_from_file_location("python_launch_file", self._path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.generate_launch_description()


class IncludeLaunchDescription:
    """Another launch file within this one: it sees the same arguments."""

    def __init__(self, launch_description_source: PythonLaunchDescriptionSource) -> None:
        self._source = launch_description_source

    def visit(self, context: LaunchContext) -> list[Any]:
        return [self._source.get_launch_description()]


class ParameterValue:
    """A parameter's value and type: what is no substitution must have that type already."""

    def __init__(self, value: Any, *, value_type: Any = None) -> None:
        if not isinstance(value, Substitution) and value_type is not None and not _has_type(value, value_type):
            raise TypeError(f"value={value!r} is not an instance of {value_type}")
        self._value, self._type = value, value_type

    def evaluate(self, context: LaunchContext) -> Any:
        if isinstance(self._value, Substitution):
            return _coerced(self._value.perform(context), self._type)
        return self._value


class Node:
    """A process that is a ROS node, started with ROS arguments."""

    def __init__(
        self,
        *,
        executable: str,
        package: str,
        name: str | None = None,
        namespace: Any = None,
        parameters: Iterable[str | Path | Mapping[str, Any]] = (),
        remappings: Iterable[tuple[Any, Any]] = (),
        ros_arguments: Iterable[str] = (),
        output: str = "log",
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
        self._program, self._name, self._namespace = f"{package}/{executable}", name, namespace
        self._parameters, self._remappings = list(parameters), list(remappings)
        self._ros_arguments = list(ros_arguments)

    def visit(self, context: LaunchContext) -> list[Any]:
        words = [self._program, "--ros-args", *self._ros_arguments]
        if self._name is not None:
            words += ["-r", f"__node:={self._name}"]
        namespace = _performed(self._namespace or "", context)
        if namespace:
            words += ["-r", f"__ns:=/{namespace.lstrip('/')}"]
        for entry in self._parameters:
            words += ["--params-file", self._params_file(entry, context)]
        for source, target in self._remappings:
            words += ["-r", f"{_performed(source, context)}:={_performed(target, context)}"]
        context.commands.append(words)
        return []

    @staticmethod
    def _params_file(entry: str | Path | Mapping[str, Any], context: LaunchContext) -> str:
        if not isinstance(entry, Mapping):
            return str(entry)
        values = {name: _evaluated(value, context) for name, value in entry.items()}
        with tempfile.NamedTemporaryFile("w", prefix="launch_params_", delete=False) as file:
            yaml.safe_dump({"/**": {"ros__parameters": values}}, file)
        return file.name


def modules() -> dict[str, ModuleType]:
    """Return the modules by name, to be put into `sys.modules`."""
    contents = {
        "launch": (LaunchContext, LaunchDescription),
        "launch.actions": (DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction),
        "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
        "launch.substitutions": (LaunchConfiguration,),
        "launch_ros": (),
        "launch_ros.actions": (Node,),
        "launch_ros.parameter_descriptions": (ParameterValue,),
    }
    made = {}
    for name, classes in contents.items():
        made[name] = ModuleType(name)
        vars(made[name]).update({kind.__name__: kind for kind in classes})
    return made


def _performed(text: str | Substitution, context: LaunchContext) -> str:
    if isinstance(text, LaunchConfiguration):
        return text.perform(context)
    if not isinstance(text, str):
        raise TypeError(f"expected a text or a substitution, got {text!r}")
    return text


def _evaluated(value: Any, context: LaunchContext) -> Any:
    if isinstance(value, ParameterValue):
        return value.evaluate(context)
    return _coerced(_performed(value, context), None) if isinstance(value, Substitution) else value


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(type(item) is get_args(kind)[0] for item in value)
    return type(value) is kind


def _coerced(text: str, kind: Any) -> Any:
    """Return a performed text as a value: written as in YAML, of the type asked for."""
    if kind is str:
        return text
    if kind in (int, float):
        return kind(text)
    if kind is bool:
        text = {"1": "true", "0": "false"}.get(text, text)
    value = yaml.safe_load(text) if text else text
    if kind is None and isinstance(value, (*SCALARS, list)):
        return value
    if kind is None or not _has_type(value, kind):
        raise ValueError(f"Cannot convert value '{text}' to '{kind}'")
    return value
