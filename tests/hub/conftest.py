"""A hub on this machine, and an environment in which nothing else is asked or found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.local_hub import LocalHub, folder_files

CHECKPOINT = Path(__file__).parents[1] / "golden" / "lite" / "ckpt"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that has a tiny model under the name of NVILA-Lite-2B, beside what is never fetched."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("NVILA_ROS_CHECKPOINTS", str(tmp_path / "fetched"))
    others = {"trainer_state.json": b"{}", "modeling.py": b"raise SystemExit", "optimizer.bin": b"pickle"}
    with LocalHub({**folder_files(CHECKPOINT), "README.md": b"a card", **others}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served
