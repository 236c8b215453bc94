"""The environment variables of the Hugging Face hub that are heeded here, and the cache that its own tools fill."""

from __future__ import annotations

import os
import re
from pathlib import Path

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, such as a mirror's."""
    return os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT


def token() -> str:
    """Return the user's token: `HF_TOKEN`, or the file that logging in with the hub's own tool leaves; or nothing."""
    if os.environ.get("HF_TOKEN"):
        return os.environ["HF_TOKEN"].strip()
    path = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true")


def timeout_s() -> float:
    """Return how long a connection may be silent: `HF_HUB_DOWNLOAD_TIMEOUT`, else 10 s."""
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    return float(text) if re.fullmatch(r"[1-9]\d{0,4}", text) else 10.0


def cached_blob(repo: str, digest_hex: str) -> Path:
    """Return where the hub's own tools keep a file of this digest; it may not exist."""
    return _cache(repo) / "blobs" / digest_hex


def cached_snapshot(repo: str, revision: str = "main") -> Path | None:
    """Return the folder into which the hub's own tools fetched a repository, or None; it may not be whole."""
    cache = _cache(repo)
    try:
        commit = (cache / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    folder = cache / "snapshots" / commit
    return folder if re.fullmatch("[0-9a-f]{40}", commit) and (folder / "config.json").is_file() else None


def _home() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or caches / "huggingface").expanduser()


def _cache(repo: str) -> Path:
    folder = Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()
    return folder / f"models--{repo.replace('/', '--')}"
