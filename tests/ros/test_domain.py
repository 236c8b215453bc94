"""A domain of one's own is one in which nobody listens and nobody has left anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nvila_ros.ros import domain
from nvila_ros.ros.domain import FIRST_PORT, LAST_DOMAIN, PORTS_A_DOMAIN, free_domain


def test_a_domain_with_ports_of_killed_processes_is_taken_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(domain, "_claim", lambda number: True)
    for number in set(range(1, LAST_DOMAIN + 1)) - {42}:
        kind = "dds" if number % 2 else "rtps"
        (tmp_path / f"fast{kind}_port{FIRST_PORT + PORTS_A_DOMAIN * number + 11}").touch()
    (tmp_path / "fastdds_portrait").touch()

    monkeypatch.setattr(domain, "_is_free", lambda port: True)
    assert free_domain() == 42
    monkeypatch.setattr(domain, "_is_free", lambda port: port != FIRST_PORT + PORTS_A_DOMAIN * 42)
    assert free_domain() != 42


def test_processes_that_choose_at_the_same_time_get_domains_of_their_own() -> None:
    code = (
        "import random, sys; random.seed(7); from nvila_ros.ros.domain import free_domain; "
        "print(free_domain(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    alike = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        for _ in range(3)
    ]
    chosen = [process.stdout.readline() for process in alike if process.stdout is not None]
    for process in alike:
        process.communicate()

    assert len({*chosen}) == 3
    assert all(1 <= int(number) <= LAST_DOMAIN for number in chosen)
