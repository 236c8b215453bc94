"""Which server answers, and how it is asked: the parameters `remote_*`, checked, with the key that they name.

The key is read from a file or the environment and is no parameter itself, since everyone on the graph reads those.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError, shown
from nvila_ros.files import read_secret

KEY_VARIABLE = "NVILA_REMOTE_KEY"
SERVERS_OWN = ("recipe", "precision", "encode_hz", "repeat_threshold", "change_threshold", "key_every")
"""Parameters that change nothing where the model runs elsewhere: one that is set is a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings:
    """How a server is asked.

    Attributes:
        url: base of its API, such as `http://gpu-box:8000/v1`, without a slash at its end.
        model: name in requests; empty takes the first that the server lists.
        dialect: `auto` or the name of a module of `dialects`.
        key: shown to the server; may be empty.
        jpeg_quality: of the pictures that are sent, 1 to 100; 0 sends PNG, which loses nothing.
        max_side: longest side of a picture, px; 0 leaves it as it is.
        timeout_s: how long the server may be silent.
        retries: of a question that the server did not begin to answer.
        source: address of this machine that connections come from; empty is any.
    """

    url: str
    model: str = ""
    dialect: str = "auto"
    key: str = field(default="", repr=False)
    jpeg_quality: int = 90
    max_side: int = 1280
    timeout_s: float = 30.0
    retries: int = 2
    source: str = ""


def remote_settings(config: NodeConfig) -> RemoteSettings:
    """Return how the parameters say that the server is asked.

    Raises:
        ConfigError: the address or the key is not acceptable, or a parameter is set that is the server's to decide.
    """
    usual = NodeConfig()
    for name in SERVERS_OWN:
        if getattr(config, name) != getattr(usual, name):
            raise ConfigError(
                f"{name} is the server's to decide where backend is remote, got {getattr(config, name)!r}; leave it out"
            )
    return RemoteSettings(
        url=_base(config.remote_url),
        model=config.remote_model,
        dialect=config.remote_dialect,
        key=_read_key(config.remote_key_file),
        jpeg_quality=config.remote_jpeg_quality,
        max_side=config.remote_max_side,
        timeout_s=config.remote_timeout_s,
        retries=config.remote_retries,
    )


def _base(url: str) -> str:
    """Return the base of an API; one without a path gets `/v1`, where all servers have it."""
    rule = f"remote_url must be like http://gpu-box:8000/v1, got {shown(url)}"
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError as error:
        raise ConfigError(f"{rule}: {error}") from error
    if not is_sound or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        raise ConfigError(rule)
    if parts.username is not None:
        raise ConfigError(
            f"remote_url must not hold a name or password, which every node can read; name a file by remote_key_file, "
            f"or set {KEY_VARIABLE}"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _read_key(path: str) -> str:
    if path:
        where = f"remote_key_file {path}"
        key = read_secret(path, "remote_key_file")
        if not key:
            raise ConfigError(f"{where} must hold a key, got none; write the server's API key to it")
    else:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where} must be printable ASCII without blanks, got {len(key)} characters that are not")
    return key
