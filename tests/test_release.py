"""What is released: one version, notes from the changelog, sources that are whole, and messages without native code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from setuptools._distutils.filelist import FileList

from nvila_ros.paths import version

ROOT = Path(__file__).parents[1]
CHANGELOG = """# Changelog

## 0.2.0 (2026-12-01)
- A `thing` of [another page](docs/a.md), told
  over two lines.
- Two.

## 0.1.0 (unreleased)
- One.
"""
STAND_INS = {
    "ament_cmake": "macro(ament_package)\nendmacro()\nmacro(ament_export_dependencies)\nendmacro()\n",
    "rosidl_default_generators": "macro(rosidl_generate_interfaces)\n  add_custom_target(${ARGV0} ALL)\nendmacro()\n",
}
"""Of the packages that CMakeLists.txt finds before it returns; the others define nothing that is used there."""


@pytest.fixture(scope="module")
def release() -> ModuleType:
    path = ROOT / ".ci" / "release.py"
    if not path.is_file():
        pytest.skip("only a clone has it")
    spec = importlib.util.spec_from_file_location("release", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_are_the_newest_section(release: ModuleType) -> None:
    assert release.notes_of(CHANGELOG, "0.2.0").endswith("- Two.\n")
    with pytest.raises(SystemExit, match=r"CHANGELOG.md begins with 0.2.0, package.xml says 0.3.0"):
        release.notes_of(CHANGELOG, "0.3.0")


def test_rst_has_what_was_released_as_bloom_reads_it(release: ModuleType) -> None:
    title = "^" * 31
    assert release.to_rst(CHANGELOG).splitlines() == [
        title,
        "Changelog for package nvila_ros",
        title,
        "",
        "0.2.0 (2026-12-01)",
        "------------------",
        "* A ``thing`` of another page, told",
        "  over two lines.",
        "* Two.",
    ]


def test_changelogs_and_package_agree(release: ModuleType) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert release.package_version() == version()
    assert release.notes_of(changelog, version())
    assert (ROOT / "CHANGELOG.rst").read_text() == release.to_rst(changelog), "run: make release"


def test_sources_are_whole() -> None:
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if told.returncode:
        pytest.skip("only a clone knows its files")
    tracked = told.stdout.splitlines()
    chosen = FileList()
    chosen.set_allfiles(tracked)
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        chosen.process_template_line(line)

    tops = ("native/", "msg/", "srv/", "action/", "launch/", "config/", "cmake/", "engines/", "checkpoints/")
    wanted = {name for name in tracked if name.startswith(tops) or name in ("package.xml", "CMakeLists.txt", "LICENSE")}
    assert wanted - set(chosen.files) == set()


@pytest.mark.slow
def test_interfaces_alone_compile_no_native_code(tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    text = (ROOT / "CMakeLists.txt").read_text().partition("if(NVILA_INTERFACES_ONLY)")[0]
    for line in text.splitlines():
        name = line.removeprefix("find_package(").partition(" ")[0]
        if line.startswith("find_package("):
            folder = tmp_path / "prefix" / "share" / name / "cmake"
            folder.mkdir(parents=True)
            (folder / f"{name}Config.cmake").write_text(STAND_INS.get(name, ""))
    options = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}", "-DNVILA_INTERFACES_ONLY=ON", "-DBUILD_TESTING=OFF"]
    subprocess.run([cmake, "-S", ROOT, "-B", tmp_path / "build", *options], check=True, capture_output=True)

    assert not (tmp_path / "build" / "native").exists()
    listed = subprocess.run(
        [cmake, "--build", tmp_path / "build", "--target", "help"], check=True, capture_output=True, text=True
    )
    assert "nvila_ros" in listed.stdout
    assert ".cpp" not in listed.stdout
