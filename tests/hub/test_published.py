"""The table of published models: its names, its rules, and its agreement with the family's dimensions."""

import pytest

from nvila_ros.errors import HubError
from nvila_ros.hub.published import HubSource, fetch_command, find_published, find_source, published
from nvila_ros.models.variants import VARIANTS


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("NVILA-8B", HubSource("Efficient-Large-Model/NVILA-8B")),
        ("NaVILA", HubSource("a8cheng/navila-llama3-8b-8f")),
        ("NVILA-8B@914cff1", HubSource("Efficient-Large-Model/NVILA-8B", "914cff1")),
        ("someone/tuned@refs/pr/1", HubSource("someone/tuned", "refs/pr/1")),
    ],
)
def test_names_lead_to_repositories(name: str, source: HubSource) -> None:
    assert find_source(name) == source


@pytest.mark.parametrize(
    "name", ["NVILA-Lite-3B", "a/b/c", "../x", "a/..", "a/b@../..", "", "/etc", "a b/c", "a/b@x y"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(HubError, match="no model is published as"):
        find_source(name)
    assert fetch_command(name) == ""


def test_near_names_are_suggested() -> None:
    with pytest.raises(HubError, match=r"or one of \[.*'NVILA-Lite-2B'"):
        find_source("NVILA-Lite-3B")


def test_every_repository_of_the_family_is_in_the_table() -> None:
    assert {repo: v.name for v in VARIANTS.values() for repo in v.repos} == {
        row.repo: row.variant for row in published().values() if row.variant
    }


def test_every_row_can_be_typed_and_says_why_it_is_refused() -> None:
    for name, row in published().items():
        assert find_source(name).repo == row.repo
        assert find_published(row.repo) is row
        assert (row.state == "refused") == bool(row.reason)


def test_the_command_names_the_size() -> None:
    assert fetch_command("NVILA-8B") == "nvila fetch NVILA-8B (16.2 GB)"
    assert fetch_command("someone/tuned") == "nvila fetch someone/tuned"
