"""What the documents say is what the code does; `python -m tests.test_docs` rewrites the generated tables."""

import ast
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.tools.cli import VERBS
from nvila_ros.tools.fetch import PUBLISHED_COLUMNS, published_rows
from nvila_ros.tools.inspect_checkpoint import FAMILY_COLUMNS, family_rows
from nvila_ros.tools.plan import PREDICTED_COLUMNS, predicted_rows

ROOT = Path(__file__).resolve().parents[1]


def parameter_table(config_type: type = NodeConfig) -> str:
    """A node's parameters as a Markdown table."""
    default = config_type()
    rows = ["| parameter | default | range | |", "|---|---|---|---|"]
    for name, bound in bounds(config_type).items():
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
    return markdown_table(FAMILY_COLUMNS, family_rows())


def published_table() -> str:
    """All published models as a Markdown table."""
    return markdown_table(PUBLISHED_COLUMNS, published_rows())


def predicted_table() -> str:
    """What `nvila plan` predicts for each recipe as a Markdown table."""
    return markdown_table(PREDICTED_COLUMNS, predicted_rows())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *rows))


def launch_table(name: str) -> str:
    """The arguments of a launch file as a Markdown table."""
    tree = ast.parse((ROOT / "launch" / name).read_text())
    (rows,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ARGUMENTS")
    lines = ["| argument | default | |", "|---|---|---|"]
    for row in rows.elts:
        default = row.elts[1].value if isinstance(row.elts[1], ast.Constant) else "launch/params/default.yaml"
        lines.append(f"| `{row.elts[0].value}` | {default} | {row.elts[-1].value} |")
    return "\n".join(lines)


TABLES = {
    "launch": ("docs/reference.md", partial(launch_table, "nvila.launch.py")),
    "demo": ("docs/reference.md", partial(launch_table, "demo.launch.py")),
    "parameters": ("docs/reference.md", parameter_table),
    "drive parameters": ("docs/drive.md", partial(parameter_table, DriveConfig)),
    "verbs": ("docs/reference.md", verb_table),
    "published": ("docs/checkpoints.md", published_table),
    "family": ("docs/checkpoints.md", family_table),
    "predicted": ("docs/performance.md", predicted_table),
}
"""File and content of each generated table."""
MAX_LINES = {"README.md": 220, "ARCHITECTURE.md": 110, "CONTRIBUTING.md": 40}
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "checkpoints/*/*.md", "engines/*.md", "examples/*.md", "tests/golden/*.md")
    for path in ROOT.glob(pattern)
)


def between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What a link may name in a document, as GitHub derives it from headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Links to files that are not there, or to headings that they lack."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if re.match(r"https://[\w.-]+(/|$)", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", TABLES)
def test_generated_tables_are_current(name: str) -> None:
    document, table = TABLES[name]
    found = between(name).search((ROOT / document).read_text())

    assert found, f"{document} lost its {name} markers"
    assert found[0] == f"{found[1]}{table()}\n{found[2]}", "run: python -m tests.test_docs"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, and more\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-and-more) [c](https://x.org/y)\n[d](gone.md) [e](other.md#no-heading)"
    )

    assert broken_links(page) == ["gone.md", "other.md#no-heading"]


@pytest.mark.parametrize("name", MAX_LINES)
def test_pages_that_all_read_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES[name]


def test_index_lists_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "index.md").read_text()))

    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


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
    for name, (document, table) in TABLES.items():
        path = ROOT / document
        text = between(name).sub(lambda found, table=table: f"{found[1]}{table()}\n{found[2]}", path.read_text())
        path.write_text(text)


if __name__ == "__main__":
    main()
