"""A node's parameters: declared from the fields of a config, and the QoS of its topics from overrides."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSHistoryPolicy, QoSPolicyKind, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from nvila_ros.config import bounds, from_dict, unknown_parameter
from nvila_ros.errors import ConfigError
from nvila_ros.types import Bound

OF_ROS = ("use_sim_time", "start_type_description_service")
POLICIES = {"reliability": QoSReliabilityPolicy, "durability": QoSDurabilityPolicy, "history": QoSHistoryPolicy}
SUBSCRIPTION_QOS = QoSOverridingOptions([QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY])
PUBLISHER_QOS = QoSOverridingOptions([*SUBSCRIPTION_QOS.policy_kinds, QoSPolicyKind.DURABILITY])


def declare_parameters(node: Node, config_type: type) -> Any:
    """Read a node's parameters as a config, and declare them from its fields.

    The node must have declared its overrides already, so that a name that is no parameter is noticed. Nodes share
    parameter files, so such a name is a warning, unless the config has a field `strict_parameters` and that is set.

    Raises:
        ConfigError: a name is unknown where parameters are strict, or a value has the wrong type or breaks its rule.
    """
    _check_qos(node)
    given = {name: p.value for name, p in node.get_parameters_by_prefix("").items() if not _is_of_ros(name)}
    known = bounds(config_type)
    if given.get("strict_parameters") is not True:
        _drop_unknown(node, given, known)
    config = from_dict(config_type, given)
    for name, bound in known.items():
        if name in given:
            node.undeclare_parameter(name)  # it was declared without its descriptor
        value = getattr(config, name)
        value = list(value) if isinstance(value, tuple) else value
        node.declare_parameter(name, value, parameter_descriptor(value, bound), ignore_override=True)
    return config


def _check_qos(node: Node) -> None:
    for name, parameter in node.get_parameters_by_prefix("qos_overrides").items():
        policy, value = POLICIES.get(name.rpartition(".")[2]), parameter.value
        if policy is not None and value not in policy.short_keys():
            raise ConfigError(f"qos_overrides.{name} must be one of {policy.short_keys()}, got {value!r}")
        if name.endswith(".depth") and (type(value) is not int or value < 0):
            raise ConfigError(f"qos_overrides.{name} must be a whole number from 0 on, got {value!r}")


def print_help(program: str, summary: str, config_type: type) -> int:
    """Print the help of a node and return its exit code: 2 where the output takes nothing, such as a full disk."""
    try:
        print(help_text(program, summary, config_type), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain again at exit
        print(f"{program}: error: the help cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def help_text(program: str, summary: str, config_type: type) -> str:
    """Return what `--help` of a node prints: how to set parameters, and each with its default, range and text."""
    lines = [
        f"usage: {program} [--ros-args [-p NAME:=VALUE] [--params-file FILE] [-r TOPIC:=OTHER] [-r __ns:=/NAMESPACE]]",
        "",
        summary,
        "",
        "parameters:",
    ]
    default = config_type()
    for name, bound in bounds(config_type).items():
        value = getattr(default, name)
        value = list(value) if isinstance(value, tuple) else value
        limits = f", one of {_listed(bound.choices)}" if bound.choices else ""
        if bound.low is not None and bound.high is not None:
            limits = f", {bound.low:.13g} to {bound.high:.13g} {bound.unit}".rstrip()
        default_text = json.dumps(value)
        lines += textwrap.wrap(f"{name}: {bound.doc} (default {default_text}{limits})", 110, subsequent_indent=" " * 6)
    return "\n".join([*lines[:5], *(f"  {line}" for line in lines[5:])])


def _drop_unknown(node: Node, given: dict[str, Any], known: Mapping[str, Bound]) -> None:
    for name in [name for name in given if name not in known]:
        node.get_logger().warning(f"{unknown_parameter(name, known)}; it is ignored, strict_parameters refuses it")
        node.undeclare_parameter(name)
        del given[name]


def parameter_descriptor(value: Any, bound: Bound) -> ParameterDescriptor:
    """Return how a setting is described to `ros2 param describe`: text, unit, range or choices."""
    descriptor = ParameterDescriptor(description=bound.doc, read_only=bound.read_only)
    if bound.unit:
        descriptor.description += f" [{bound.unit}]"
    if bound.choices:
        descriptor.additional_constraints = f"one of {_listed(bound.choices)}"
    if bound.low is not None and bound.high is not None:
        if isinstance(value, int):
            descriptor.integer_range = [IntegerRange(from_value=int(bound.low), to_value=int(bound.high))]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=bound.low, to_value=bound.high)]
    return descriptor


def warn_of_unused_qos(node: Node, publishers: Sequence[Publisher], subscriptions: Sequence[Subscription]) -> None:
    """Warn of each QoS override that none of these publishers and subscriptions takes."""
    sides = [(f"{each.topic_name}.publisher", PUBLISHER_QOS) for each in publishers]
    sides += [(f"{each.topic_name}.subscription", SUBSCRIPTION_QOS) for each in subscriptions]
    taken = {f"{side}.{kind.name.lower()}" for side, options in sides for kind in options.policy_kinds}
    for name in node.get_parameters_by_prefix("qos_overrides"):
        if name not in taken:
            node.get_logger().warning(f"qos_overrides.{name} is ignored; taken are {_listed(sorted(taken))}")


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _is_of_ros(name: str) -> bool:
    return name in OF_ROS or name.startswith("qos_overrides.")
