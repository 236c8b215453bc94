from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.errors import ConfigError
from nvila_ros.files import MAX_YAML_BYTES
from nvila_ros.standing.listing import read_queries
from nvila_ros.standing.query import StandingQuery, complete

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "standing.example.yaml"
DOCS = ROOT / "docs" / "standing-queries.md"
MARKERS = "<!-- fields -->\n", "<!-- /fields -->"


def write(folder: Path, text: str) -> Path:
    path = folder / "standing.yaml"
    path.write_text(text)
    return path


def field_table() -> str:
    """The fields of a standing query as a Markdown table."""
    rows = ["| field | default | range | |", "|---|---|---|---|"]
    for field in dataclasses.fields(StandingQuery):
        bound = bounds(StandingQuery)[field.name]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        limits = " or ".join(bound.choices)
        if bound.low is not None:
            limits = f"{bound.low:,.16g} to {bound.high:,.16g} {bound.unit}"
        rows.append(f"| `{field.name}` | {default} | {limits} | {bound.doc} |")
    return "\n".join(rows) + "\n"


def test_the_example_is_read_and_fits_a_node_as_it_starts() -> None:
    queries = read_queries(EXAMPLE)

    assert {query.trigger for query in queries} == {"every", "on_change", "rising", "falling"}
    assert [complete(query, NodeConfig()).name for query in queries] == [query.name for query in queries]


def test_the_documented_fields_are_current() -> None:
    _, found, rest = DOCS.read_text().partition(MARKERS[0])

    assert found
    assert rest.partition(MARKERS[1])[0] == field_table(), "run: python -m tests.standing.test_listing"


def test_an_empty_list_is_none(tmp_path: Path) -> None:
    assert read_queries(write(tmp_path, "[]")) == ()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must hold a list of standing queries, got NoneType"),
        ("name: door", "must hold a list of standing queries, got dict"),
        ("- [", "is not readable as YAML"),
        ("- " * 5000 + "x", "line 1 is nested deeper than 64 levels"),
        ("- &a [x, x]\n- [*a, *a]", "line 2 has an alias"),
        ("- !!python/object/apply:os.system [true]", "is not readable as YAML"),
        ("- door", "query 1 must be a mapping"),
        ("- 1: door", "query 1 must be a mapping"),
        (
            "- {name: door, question: Open}\n- {name: gate, question: Open, rate: 2}",
            r"query 2 \(gate\): unknown parameter 'rate'; did you mean one of \['rate_hz'\]",
        ),
        ("- {name: door, question: Open, rate_hz: fast}", r"query 1 \(door\): rate_hz must be of type float"),
        ("- {name: door, question: Open, trigger: rising, target: no}", "target must be a text, got False; in YAML"),
        ("- {name: door, question: Open, answer_type: choices, choices: [yes, no]}", "choices must hold texts"),
        ("- {question: Open}", "query 1: name must be 1 to 64"),
        ("- {name: door, question: Open}\n- {name: door, question: Shut}", r"names must be distinct, got \['door'\]"),
    ],
)
def test_list_that_breaks_a_rule_is_refused_by_place_and_name(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as refused:
        read_queries(write(tmp_path, text))

    assert str(tmp_path) in str(refused.value)


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not readable"):
        read_queries(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="at most 1,048,576 bytes"):
        read_queries(write(tmp_path, "#" * (MAX_YAML_BYTES + 1)))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="must be a regular file"):
            read_queries(path)


def main() -> None:
    """Rewrite the documented fields."""
    text = DOCS.read_text()
    head, marker, rest = text.partition(MARKERS[0])
    DOCS.write_text(f"{head}{marker}{field_table()}{MARKERS[1]}{rest.partition(MARKERS[1])[2]}")


if __name__ == "__main__":
    main()
