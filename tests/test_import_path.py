"""The package is these sources and the generated interfaces, and nothing of another folder called nvila_ros."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_python(code: str, *folders: Path) -> str:
    """Run a program with these folders at the front of the path and return what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_package(folder: Path, modules: dict[str, str]) -> Path:
    """Write a folder called nvila_ros with our own `__init__.py` and these modules."""
    package = folder / "nvila_ros"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text((ROOT / "nvila_ros" / "__init__.py").read_text())
    for name, text in modules.items():
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    return make_package(tmp_path / "one", {"here": ""}), make_package(tmp_path / "other", {"gone": "", "here": ""})


def test_missing_module_is_not_taken_from_another_checkout(checkouts: tuple[Path, Path]) -> None:
    one, other = checkouts

    printed = run_python("import importlib.util as u; print(u.find_spec('nvila_ros.gone'))", one, other)

    assert printed == "None"


def test_interfaces_come_from_the_first_folder_that_has_them(checkouts: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = checkouts
    overlay = make_package(tmp_path / "overlay", {"msg/__init__": "A = 'overlay'"})
    underlay = make_package(tmp_path / "underlay", {"msg/__init__": "A = 'underlay'", "gone": ""})

    printed = run_python(
        "import nvila_ros.msg, importlib.util as u; print(nvila_ros.msg.A, u.find_spec('nvila_ros.gone'))",
        *(one, other, overlay, underlay),
    )

    assert printed == "overlay None"


def test_installed_package_with_its_interfaces_joins_no_other(tmp_path: Path) -> None:
    installed = make_package(tmp_path / "installed", {"msg/__init__": "A = 'own'"})
    underlay = make_package(tmp_path / "underlay", {"msg/__init__": "A = 'underlay'", "gone": ""})

    printed = run_python(
        "import nvila_ros.msg, importlib.util as u; print(nvila_ros.msg.A, u.find_spec('nvila_ros.gone'))",
        *(installed, underlay),
    )

    assert printed == "own None"
