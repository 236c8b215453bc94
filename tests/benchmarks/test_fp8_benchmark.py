"""The FP8 benchmark: its bookkeeping, and one run in each precision cut short."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fp8
from nvila_ros.errors import ConfigError

pytestmark = pytest.mark.slow  # trains


def result(precision: str, seed: int, held_out: float) -> dict[str, Any]:
    told = {"step_ms": 1.0, "state_bytes": 8, "saved_bytes": 10, "num_weights": 1, "num_tokens": 1}
    return {"precision": precision, "seed": seed, "losses": [3.0, 2.0, held_out], "held_out": held_out, **told}


def test_precisions_are_compared_seed_by_seed() -> None:
    losses = {"bf16": (1.0, 2.0), "fp8": (1.25, 1.75)}
    results = [result(name, seed, losses[name][seed]) for seed in (0, 1) for name in fp8.PRECISIONS]

    told = fp8.summarize(results)

    assert told["differences"] == [0.25, -0.25]
    assert told["bf16"]["held_out"] == told["fp8"]["held_out"] == 1.5
    assert told["bf16"]["spread"] == pytest.approx(0.5**0.5)
    (axes,) = fp8.draw_losses(results).axes
    assert len(axes.lines) == len(results)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["bf16", "fp8"]


def test_runs_are_kept_and_other_settings_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work, options = tmp_path / "work", ["--seeds", "1", "--row-tokens", "300", "--threads", "1"]
    monkeypatch.setattr(fp8, "NUM_HELD_OUT_ROWS", 1)
    monkeypatch.setattr(sys, "argv", ["fp8", "--work", str(work), "--steps", "3", *options])

    assert fp8.main() == 0
    first = capsys.readouterr().out.splitlines()[-1]
    written = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if path.name != "settings.json"}
    assert fp8.main() == 0

    assert capsys.readouterr().out.splitlines()[-1] == first
    assert {name: (work / name).stat().st_mtime_ns for name in written} == written
    assert set(written) == {"bf16-0.json", "fp8-0.json"}
    monkeypatch.setattr(sys, "argv", ["fp8", "--work", str(work), "--steps", "4", *options])
    with pytest.raises(ConfigError, match="holds runs with other settings"):
        fp8.main()
