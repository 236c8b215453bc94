"""What the documents say is what the code does; `python -m tests.test_docs` rewrites the README's generated tables."""

import re
from pathlib import Path

import pytest

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.tools.cli import VERBS
from nvila_ros.tools.inspect_checkpoint import FAMILY_COLUMNS, family_rows

ROOT = Path(__file__).resolve().parents[1]


def parameter_table() -> str:
    """The node's parameters as a Markdown table."""
    default = NodeConfig()
    rows = ["| parameter | default | range | |", "|---|---|---|---|"]
    for name, bound in bounds(NodeConfig).items():
        value = getattr(default, name)
        value = list(value) if isinstance(value, tuple) else value
        limits = " or ".join(map(str, bound.choices))
        if bound.low is not None:
            limits = f"{bound.low:,.13g} to {bound.high:,.13g} {bound.unit}"
        live = "" if bound.read_only else " (can be set while it runs)"
        rows.append(f"| `{name}` | {value} | {limits} | {bound.doc}{live} |")
    return "\n".join(rows)


def verb_table() -> str:
    """The verbs of the console script as a Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| `nvila {verb}` | {text} |" for verb, (_, text) in VERBS.items())])


def family_table() -> str:
    """The published family as a Markdown table."""
    lines = [FAMILY_COLUMNS, ("---",) * len(FAMILY_COLUMNS), *family_rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = {"parameters": parameter_table, "verbs": verb_table, "family": family_table}


def between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_generated_tables_of_the_readme_are_current(name: str) -> None:
    found = between(name).search((ROOT / "README.md").read_text())

    assert found, f"README lost its {name} markers"
    assert found[0] == f"{found[1]}{TABLES[name]()}\n{found[2]}", "run: python -m tests.test_docs"


def test_every_path_of_the_architectures_tree_exists() -> None:
    tree = re.search(r"## The tree\n```\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)[1]

    for line in tree.splitlines():
        root = ROOT / "nvila_ros" if line.startswith("  ") else ROOT
        names = re.split(r"  +", line.strip(), maxsplit=1)[0].split()
        missing = [name for name in names if not (root / name).exists()]
        assert not missing, f"ARCHITECTURE.md names {missing}"


def test_every_room_is_in_the_architectures_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = [p.name for p in (ROOT / "nvila_ros").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]

    assert not [name for name in rooms if name not in text]


def main() -> None:
    """Rewrite the generated tables."""
    path = ROOT / "README.md"
    text = path.read_text()
    for name, table in TABLES.items():
        text = between(name).sub(lambda found, table=table: f"{found[1]}{table()}\n{found[2]}", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
