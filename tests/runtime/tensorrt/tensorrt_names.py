"""Which names of TensorRT's bindings this project uses, and which versions have them.

No version of the bindings loads without a GPU's driver, but their names stand in the compiled module as text. Run
`python -m tests.runtime.tensorrt.tensorrt_names` after a name is added: it fetches the bindings of each version, about
1.2 MB, without the libraries behind them, and writes the table anew.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
"""What JetPack 6, the last before its operators for the cache, JetPack 7.2 and 7.2.2 come with, or stand nearest."""
TABLE = Path(__file__).with_suffix(".json")
SOURCES = sorted((Path(__file__).parents[3] / "nvila_ros" / "runtime" / "tensorrt").glob("*.py"))
HOLDERS = {
    *("trt", "builder", "network", "parser", "config", "profile", "timing_cache"),
    *("runtime", "engine", "context"),
}
"""Variables that hold the vendor's objects, by the rule in `runtime/tensorrt/api.py`."""


def used_names() -> set[str]:
    """Return the names that the sources ask the vendor's objects for."""
    return {name for source in SOURCES for node in ast.walk(ast.parse(source.read_text())) for name in _names(node)}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and _root(node.value) in HOLDERS:
        yield node.attr
    elif isinstance(node, ast.Call) and _root(node.func) in HOLDERS:
        yield from (keyword.arg for keyword in node.keywords if keyword.arg)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
        yield ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else "ComputeCapability"
    elif isinstance(node, ast.ClassDef) and any(_root(base) == "trt" for base in node.bases):
        methods = (child.name for child in node.body if isinstance(child, ast.FunctionDef))
        yield from (name for name in methods if not name.startswith("_"))


def _root(node: ast.AST) -> str:
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute) and node.attr.lstrip("_") in HOLDERS:
            return node.attr.lstrip("_")
        if isinstance(node, ast.Attribute):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            return ""
    return node.id


def fetch_bindings(version: str) -> bytes:
    """Return the bindings of a version as their files lie in its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_17_x86_64"]
        subprocess.run([*command, f"--dest={folder}", f"tensorrt-cu12-bindings=={version}"], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            names = [name for name in wheel.namelist() if name.endswith((".so", "bindings/__init__.py"))]
            return b"\n".join(wheel.read(name) for name in names)


def write_table() -> None:
    """Write which versions have each name that is used."""
    bindings = {version: fetch_bindings(version) for version in VERSIONS}
    table = {
        name: " ".join(version for version, text in bindings.items() if re.search(rf"\b{name}\b".encode(), text))
        for name in sorted(used_names())
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    write_table()
