"""One package, two ways in: what colcon and pip are told agrees, and the interfaces say what they mean."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nvila_ros.models.host import processor_flags
from nvila_ros.ros.domain import free_domain
from nvila_ros.runtime.cpu import native_library
from nvila_ros.types import FinishReason

ROOT = Path(__file__).parents[1]
INTERFACES = sorted(path for folder in ("msg", "srv", "action") for path in (ROOT / folder).iterdir())
FRAME_BYTES = 1920 * 1080 * 3


@pytest.mark.parametrize("path", INTERFACES, ids=lambda path: path.name)
def test_every_field_of_an_interface_is_explained(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and line != "---" and not line.startswith("#")]

    assert lines
    assert [line for line in lines if not re.fullmatch(r"\S+ \w+(=\d+| \S+)? +# \S.*", line)] == []


def test_colcon_generates_every_interface() -> None:
    listed = re.findall(r"^  (\w+/\w+\.(?:msg|srv|action))$", (ROOT / "CMakeLists.txt").read_text(), re.M)

    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in INTERFACES)


def test_finish_reasons_are_those_of_the_message() -> None:
    text = (ROOT / "msg" / "Answer.msg").read_text()

    constants = {name: int(value) for name, value in re.findall(r"^uint8 (\w+)=(\d+)", text, re.M)}

    assert constants == {reason.name: reason.value for reason in FinishReason}


def test_pip_and_colcon_install_the_same_programs() -> None:
    for_pip = dict(re.findall(r'"(\w+) = nvila_ros\.([\w.]+):main"', (ROOT / "setup.py").read_text()))
    for_colcon = dict(re.findall(r"(nvila\w*)=([\w.]+)", (ROOT / "CMakeLists.txt").read_text()))

    assert (
        for_pip
        == for_colcon
        == {
            "nvila": "tools.cli",
            "nvila_camera": "ros.camera_publisher",
            "nvila_drive": "ros.drive",
            "nvila_node": "ros.node",
            "nvila_sim": "ros.sim",
        }
    )


def test_pip_knows_the_version_of_package_xml() -> None:
    try:
        installed = importlib.metadata.version("nvila_ros")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvila_ros is not installed by pip")

    assert installed == ElementTree.parse(ROOT / "package.xml").findtext("version")


def test_the_decoders_kernels_are_compiled_where_the_processor_has_them() -> None:
    flags = processor_flags()

    known = [name for name, needed in native_library.FLAGS_BY_LIBRARY.items() if needed <= flags]

    assert len(native_library.libraries()) == len(known)


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "nvila_ros").rglob("*.py")}

    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_types_are_declared_to_those_who_import_the_package() -> None:
    assert (ROOT / "nvila_ros" / "py.typed").is_file()  # colcon installs the whole folder
    assert 'package_data={"nvila_ros": ["py.typed"]' in (ROOT / "setup.py").read_text()


def test_no_source_takes_the_name_of_a_generated_module() -> None:
    assert [p for name in ("msg", "srv", "action") for p in (ROOT / "nvila_ros").glob(f"{name}*")] == []


def test_only_the_ros_folder_imports_the_interfaces() -> None:
    sources = {str(path.relative_to(ROOT / "nvila_ros")): path for path in (ROOT / "nvila_ros").rglob("*.py")}

    importers = {name for name, path in sources.items() if _imports_interfaces(ast.parse(path.read_text()))}

    assert [name for name in importers if not name.startswith("ros/")] == []


def test_package_xml_names_every_ros_package_that_is_imported() -> None:
    named = {element.text for element in ElementTree.parse(ROOT / "package.xml").getroot() if element.text}
    files = [p for folder in ("nvila_ros", "launch", "tests/ros") for p in (ROOT / folder).rglob("*.py")]
    imported = {name for path in files for name in _packages(ast.parse(path.read_text()))}

    assert {
        name for name in imported if name.startswith(("rcl", "ros", "launch")) or name.endswith("_msgs")
    } - named == {
        "rosbags"  # read without ROS, by pip's extra
    }


def test_a_robots_pip_gets_what_rosdep_does_not() -> None:
    by_pip = dict(re.findall(r"^([\w-]+)([^;#\n]*)", (ROOT / "requirements-robot.txt").read_text(), re.M))
    by_rosdep = {"opencv-python-headless", "pillow", "pyyaml", "rich"}
    text = re.search(r"INSTALL_REQUIRES = \[(.*?)^\]", (ROOT / "setup.py").read_text(), re.S | re.M)
    assert text is not None
    needed = dict(re.findall(r'"([\w-]+)([^"]*)"', text[1]))

    assert by_pip.keys() == needed.keys() - by_rosdep
    assert {k: v.strip() for k, v in by_pip.items() if k != "numpy"} == {k: needed[k] for k in by_pip if k != "numpy"}


@pytest.mark.ros
def test_the_interfaces_are_built() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from nvila_ros.action import AskVideo
    from nvila_ros.msg import Answer, AnswerToken
    from nvila_ros.srv import Ask

    asked = Ask.Request.get_fields_and_field_types()

    assert asked == AskVideo.Goal.get_fields_and_field_types()
    assert isinstance(AskVideo.Feedback().token, AnswerToken)
    assert isinstance(AskVideo.Result().answer, Answer)
    assert isinstance(Ask.Response().answer, Answer)


@pytest.mark.ros
def test_shared_files_are_installed() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    prefixes = [sys.prefix, *os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)]
    shares = [share for prefix in prefixes if (share := Path(prefix, "share", "nvila_ros")).is_dir()]
    kept = ["config/*.xml", "launch/*.py", "launch/params/*.yaml", "engines/*.yaml", "checkpoints/nvila-tiny*/*"]
    wanted = [path.relative_to(ROOT) for pattern in kept for path in ROOT.glob(pattern)]

    assert shares
    assert [str(path) for path in wanted if not (shares[0] / path).exists()] == []


def test_the_fast_dds_profile_has_room_for_full_hd() -> None:
    profile = ElementTree.parse(ROOT / "config" / "fastdds_shm.xml")

    sizes = {tag: int(profile.findtext(f".//{{*}}{tag}") or 0) for tag in ("segment_size", "maxMessageSize")}

    assert sizes["maxMessageSize"] >= FRAME_BYTES
    assert sizes["segment_size"] >= 8 * FRAME_BYTES


@pytest.mark.ros
def test_the_fast_dds_profile_carries_hd_frames_between_processes(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    num_frames = 20
    profile = str(ROOT / "config" / "fastdds_shm.xml")
    env = os.environ | {
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,  # the name before Kilted
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain()),
        "ROS_LOG_DIR": str(tmp_path),
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }

    publisher = subprocess.Popen([sys.executable, "-c", PUBLISH, str(num_frames)], env=env)
    received = subprocess.run(
        [sys.executable, "-c", RECEIVE, str(num_frames)], env=env, capture_output=True, text=True, check=True
    )

    assert publisher.wait(timeout=60) == 0
    # At 10 Hz a busy machine keeps up too: what is lost is lost for want of room. Without the profile 1 to 3 arrive.
    assert int(received.stdout) >= num_frames - 5


def _packages(tree: ast.Module) -> set[str]:
    """Return the top packages that a source imports."""
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level]
    names += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    return {name.partition(".")[0] for name in names}


def _imports_interfaces(tree: ast.Module) -> bool:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return any(re.match(r"nvila_ros\.(msg|srv|action)(\.|$)", name) for name in names)


PUBLISH = """
import array, sys, time, rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node("publisher")
publisher = node.create_publisher(Image, "image", qos_profile_sensor_data)
image = Image(width=1280, height=720, step=3 * 1280, encoding="rgb8")
image.data = array.array("B", bytes(720 * 3 * 1280))
until = time.monotonic() + 60
while publisher.get_subscription_count() == 0 and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(0.3)
for _ in range(int(sys.argv[1])):
    publisher.publish(image)
    time.sleep(1 / 10)
node.destroy_node()
rclpy.shutdown()
"""

RECEIVE = """
import sys, time, rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node("receiver")
stamps = []
node.create_subscription(Image, "image", lambda _: stamps.append(time.monotonic()), qos_profile_sensor_data)
start = time.monotonic()
# Ends when no frame has come for a while, which may be long on a busy machine.
while len(stamps) < int(sys.argv[1]) and time.monotonic() < (stamps[-1] + 5 if stamps else start + 60):
    rclpy.spin_once(node, timeout_sec=0.1)
print(len(stamps))
node.destroy_node()
rclpy.shutdown()
"""
