"""Short runs of `nvila prune`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
from pyarrow import parquet

from nvila_ros.tools.cli import main
from tests.golden_cases import GOLDEN

LARGE = str(GOLDEN / "lite" / "ckpt")
SMALL = str(GOLDEN / "video" / "ckpt")
NUM_SAMPLES = 11


def prune(*args: object) -> int:
    return main(["prune", *map(str, args), "--large", LARGE, "--small", SMALL, "--block", "2", "--device", "cpu"])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def scores_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "scores").iterdir()) for row in parquet.read_table(path).to_pylist()]


def copy_data(data: Path, folder: Path) -> Path:
    shutil.copytree(data.parent, folder)
    return folder / data.name
