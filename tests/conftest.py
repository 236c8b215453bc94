"""Settings of all tests: profiles of hypothesis, markers by folder, and what is skipped where a package is missing.

A robot has no torch and none of the packages that judge our numbers. A test or a test module that needs one which is
not installed is skipped by name; the rest runs, and `-m robot` selects what shows whether the node works there.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels then run on a CPU
TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent))  # pytest before 7.0 does not read `pythonpath` from pyproject.toml

# Of the modules that tests share as well: `python -O` would run them without their assertions.
if "tests" not in sys.modules:  # a plugin given by -p has imported it
    pytest.register_assert_rewrite("tests")

from nvila_ros.ros.domain import free_domain  # noqa: E402
from tests.robot_subset import is_of_robot, missing_package  # noqa: E402

if importlib.util.find_spec("hypothesis"):
    from hypothesis import Phase, settings

    settings.register_profile("dev", max_examples=50, deadline=None)
    settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None)
    # A mutant needs no small example, and the same ones each time: its score must not depend on luck.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutation", max_examples=50, derandomize=True, deadline=None, phases=phases)
    settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Before rclpy starts: nothing outside this machine, and no other run on it, may take part in a test.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_LOCALHOST_ONLY"] = "1"
os.environ["ROS_DOMAIN_ID"] = str(free_domain())
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
    os.environ.pop(name, None)

HAS_ROS = all(importlib.util.find_spec(name) for name in ("rclpy", "sensor_msgs"))


STDERR = pytest.StashKey[int]()
TIMEOUT_S = 120  # as in pyproject.toml, which a robot without pytest-timeout does not read


def pytest_configure(config: pytest.Config) -> None:
    """Let pass the one warning that ROS causes at import: its parser of interface files is older than Python's re."""
    config.addinivalue_line("filterwarnings", "ignore:module 'sre_:DeprecationWarning")
    config.stash[STDERR] = os.dup(2)  # tests write to another, which pytest keeps for itself


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """End the process, with its stacks, where a test hangs in native code, which pytest-timeout's signal waits for."""
    marker = item.get_closest_marker("timeout")
    limit_s = marker.args[0] if marker else TIMEOUT_S
    faulthandler.dump_traceback_later(limit_s + 30, exit=True, file=item.config.stash[STDERR])


def pytest_runtest_logfinish() -> None:
    """Let the time between two tests not count."""
    faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in `tests/ros` as needing ROS, and what a robot runs; skip the former where there is no ROS."""
    for item in items:
        path = Path(str(item.fspath)).relative_to(TESTS)
        if path.parts[0] == "ros":
            item.add_marker(pytest.mark.ros)
        if is_of_robot(path) and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.robot)
        if item.get_closest_marker("ros") and not HAS_ROS:
            item.add_marker(pytest.mark.skip(reason="needs rclpy; install nvila_ros[ros] or source ROS 2"))


@pytest.fixture(autouse=True)
def _environment_is_the_same_for_all() -> Generator[None, None, None]:
    """Undo what a test, or a module that it imports, does to the environment: those behind it must not depend on it."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    """Skip a module that imports an optional package which is not installed."""
    outcome = yield
    report = outcome.get_result()
    skip_what_is_missing(report, report.call.excinfo, str(collector.fspath))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Skip a test that uses an optional package which is not installed."""
    outcome = yield
    skip_what_is_missing(outcome.get_result(), call.excinfo, str(item.fspath))


def skip_what_is_missing(report: Any, error: Any, path: str) -> None:
    missing = missing_package(error.value) if report.failed and error is not None else ""
    if missing:
        report.outcome = "skipped"
        report.longrepr = (path, 0, f"Skipped: needs {missing}, which is not installed")
