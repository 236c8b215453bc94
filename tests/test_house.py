"""The house itself: a name of a type stands for one thing, and no file is too long to be read."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 350
TREES = {"nvila_ros": ("nvila_ros", "benchmarks", "examples"), "tests": ("tests",)}


def type_names(tree: ast.Module) -> Iterator[str]:
    """Every class, and each name in capitals and small letters that a module gives to a type."""
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = (target.id for target in targets if isinstance(target, ast.Name))
        yield from (name for name in names if name[:1].isupper() and not name.isupper())


def defined_twice(folders: tuple[str, ...], root: Path = ROOT) -> dict[str, list[str]]:
    """Names of types that several modules define, or one module twice, with the files."""
    files = defaultdict(list)
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        for name in type_names(ast.parse(path.read_text())):
            files[name].append(str(path.relative_to(root)))
    return {name: paths for name, paths in files.items() if len(paths) > 1}


@pytest.mark.parametrize("tree", TREES)
def test_no_type_has_the_name_of_another(tree: str) -> None:
    assert defined_twice(TREES[tree]) == {}


def test_a_second_definition_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("class Frame:\n    pass\n\n\nPart = int\nSIZE = 1\n")
    (tmp_path / "a" / "two.py").write_text("def f():\n    class Frame:\n        pass\n\n\nPart: type = str\nSIZE = 2\n")

    found = defined_twice(("a",), tmp_path)

    assert found == {"Frame": ["a/one.py", "a/two.py"], "Part": ["a/one.py", "a/two.py"]}


def test_no_file_is_too_long() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.cpp", "*.h"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed.stdout.split()}

    assert len(lengths) > 500
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
