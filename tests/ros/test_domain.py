"""A domain of one's own is one in which nobody listens and nobody has left anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvila_ros.ros import domain
from nvila_ros.ros.domain import FIRST_PORT, LAST_DOMAIN, PORTS_A_DOMAIN, free_domain


def test_a_domain_with_ports_of_killed_processes_is_taken_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "SHARED_MEMORY", tmp_path)
    for number in set(range(1, LAST_DOMAIN + 1)) - {42}:
        kind = "dds" if number % 2 else "rtps"
        (tmp_path / f"fast{kind}_port{FIRST_PORT + PORTS_A_DOMAIN * number + 11}").touch()
    (tmp_path / "fastdds_portrait").touch()

    monkeypatch.setattr(domain, "_is_free", lambda port: True)
    assert free_domain() == 42
    monkeypatch.setattr(domain, "_is_free", lambda port: port != FIRST_PORT + PORTS_A_DOMAIN * 42)
    assert free_domain() != 42
