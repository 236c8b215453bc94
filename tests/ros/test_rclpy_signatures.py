"""What we use of rclpy, compared with the signatures of every distribution that it must run on.

`rclpy_signatures.json` holds, by module and name, the parameters of each public function, method and class, read from
the sources of the versions named there. Where all distributions agree there is one text, else one for each that has
the name.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = json.loads(Path(__file__).with_name("rclpy_signatures.json").read_text())
DISTROS = list(TABLE["versions"])
FOLDERS = ("nvila_ros/ros", "nvila_ros/tools/demo", "nvila_ros/client.py", "tests", "benchmarks", "examples")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for path in ([ROOT / folder] if folder.endswith(".py") else (ROOT / folder).rglob("*.py"))
    if "rclpy" in path.read_text()
)


@dataclass(frozen=True)
class Use:
    """One use of rclpy: a name of a module, with the keywords of a call.

    A method, whose class is not known here, has no module. The modules `or_else` may have the name instead.
    """

    line: int
    module: str
    name: str
    keywords: tuple[str, ...] = ()
    or_else: tuple[str, ...] = ()


def signature(distro: str, module: str, name: str) -> str | None:
    """Return a name's signature, "" where it is known to be there and no more, None where it is not there."""
    entry = TABLE["modules"].get(module, {}).get(name)
    found = entry.get(distro) if isinstance(entry, dict) else entry
    if f"{module}.{name}" in TABLE["modules"]:
        return ""
    if found is not None and found.startswith("= "):  # imported from elsewhere
        origin, _, original = found[2:].rpartition(".")
        return signature(distro, origin, original) if origin in TABLE["modules"] else ""
    if found is None and "." in name:  # of an enumeration that is imported, or a method of a base class
        return inherited(distro, module, *name.split(".", 1))
    return found


def inherited(distro: str, module: str, kind: str, member: str) -> str | None:
    entry = TABLE["modules"].get(module, {}).get(kind)
    text = entry.get(distro) if isinstance(entry, dict) else entry
    if text is None:
        return None
    if text.startswith("= "):
        origin, _, original = text[2:].rpartition(".")
        return signature(distro, origin, f"{original}.{member}") if origin in TABLE["modules"] else ""
    if not text.startswith("class "):
        return ""  # written in C: its members are not in the sources
    for base in filter(None, text[len("class ") :].split(", ")):
        found = signature(distro, module, f"{base.partition('[')[0]}.{member}")
        if found is not None:
            return found
    return None


def accepts(text: str, keywords: tuple[str, ...]) -> bool:
    parameters = text.strip("()").split(", ")
    has_any = any(parameter.startswith("**") for parameter in parameters)
    return not text.startswith("(") or has_any or set(keywords) <= set(parameters)


def uses(tree: ast.Module) -> Iterator[Use]:
    """Yield what a source uses of rclpy."""
    names: dict[str, tuple[str, str]] = {}
    seen: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any("NotFound" in ast.unparse(h.type or node) for h in node.handlers):
            first, *others = [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom)] or [None]
            if first is not None and others:
                seen |= {first, *others}
                yield from imported(first, names, tuple(str(other.module) for other in others))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in seen and (node.module or "").split(".")[0] == "rclpy":
            yield from imported(node, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from called(node, names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "rclpy":
                yield Use(node.lineno, "rclpy", node.attr)
            elif node.value.id in names and node.value.id[0].isupper():
                module, name = names[node.value.id]
                yield Use(node.lineno, module, f"{name}.{node.attr}")


def imported(node: ast.ImportFrom, names: dict[str, tuple[str, str]], or_else: tuple[str, ...] = ()) -> Iterator[Use]:
    for alias in node.names:
        if not or_else:
            names[alias.asname or alias.name] = (str(node.module), alias.name)
        yield Use(node.lineno, str(node.module), alias.name, or_else=or_else)


def called(node: ast.Call, names: dict[str, tuple[str, str]]) -> Iterator[Use]:
    keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
    if isinstance(node.func, ast.Name) and node.func.id in names:
        module, name = names[node.func.id]
        yield Use(node.lineno, module, f"{name}.__init__" if name[0].isupper() else name, keywords)
    elif isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "rclpy":
        yield Use(node.lineno, "rclpy", node.func.attr, keywords)
    elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield Use(node.lineno, "", node.func.attr, keywords)


OWN = {
    node.name
    for folder in ("nvila_ros", "tests")
    for path in (ROOT / folder).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
}
METHODS = {
    member
    for names in TABLE["modules"].values()
    for name in names
    if (member := name.rpartition(".")[2]) != name and member not in {"__init__", "wait", *OWN}
}
"""Names of rclpy's methods that nothing else here has: a call of one is one of rclpy's."""


def fault(use: Use, distro: str) -> str:
    """Return what a distribution lacks of a use, or an empty text."""
    if not use.module:
        texts = [
            text
            for module, names in TABLE["modules"].items()
            for name in names
            if name.endswith(f".{use.name}") and (text := signature(distro, module, name)) is not None
        ]
        if any(accepts(text, use.keywords) for text in texts):
            return ""
        return f"no {use.name}({', '.join(use.keywords)}) in any class"
    for module in (use.module, *use.or_else):
        found = signature(distro, module, use.name)
        if found is None and use.name.endswith(".__init__"):  # the class has no constructor of its own
            found = signature(distro, module, use.name.removesuffix(".__init__"))
        if found is not None:
            return "" if accepts(found, use.keywords) else f"{use.name} takes {found}, not {use.keywords}"
    return f"no {use.name} in {use.module}"


@pytest.mark.parametrize("distro", DISTROS)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_distribution_has_what_we_use(path: Path, distro: str) -> None:
    found = {f"line {use.line}: {text}" for use in uses(ast.parse(path.read_text())) if (text := fault(use, distro))}

    assert found == set()


@pytest.mark.parametrize(
    ("source", "distro", "what"),
    [
        ("from rclpy.event_handler import PublisherEventCallbacks", "humble", "no PublisherEventCallbacks"),
        ("from rclpy.node import Node\nNode('a', namespaces='b')", "kilted", "namespaces"),
        ("import rclpy\nrclpy.init(domains=3)", "jazzy", "domains"),
        ("from rclpy.qos import QoSReliabilityPolicy as Q\nQ.MAYBE", "jazzy", "no QoSReliabilityPolicy.MAYBE"),
        ("self.create_timer(1.0, f, autostart=True)", "humble", "create_timer(autostart)"),
        ("self.create_timer(1.0, f, clock=c)", "humble", ""),
        ("from rclpy.executors import SingleThreadedExecutor as E\nE(context=c)", "humble", ""),
    ],
)
def test_what_a_distribution_lacks_is_found(source: str, distro: str, what: str) -> None:
    found = " ".join(fault(use, distro) for use in uses(ast.parse(source)))

    assert what in found
    assert bool(what) == bool(found.strip())
