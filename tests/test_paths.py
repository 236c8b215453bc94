from __future__ import annotations

from pathlib import Path

import pytest

from nvila_ros import paths
from nvila_ros.errors import ConfigError
from nvila_ros.paths import share_path


def test_source_tree_is_found_first() -> None:
    assert share_path("config", "fastdds_shm.xml") == Path(__file__).parents[1] / "config" / "fastdds_shm.xml"


def test_installed_file_is_found_without_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "share" / "nvila_ros" / "engines"
    shared.mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site" / "nvila_ros" / "paths.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))

    assert share_path("engines") == shared


def test_workspace_is_found_by_ament(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "share" / "nvila_ros" / "launch"
    shared.mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site" / "nvila_ros" / "paths.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")

    assert share_path("launch") == shared


def test_missing_file_names_the_places() -> None:
    with pytest.raises(ConfigError, match=r"no/such is in none of .*share/nvila_ros"):
        share_path("no", "such")
