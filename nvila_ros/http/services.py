"""What the door needs of the process that it belongs to; the node and `nvila serve` fill it in."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError
from nvila_ros.files import read_secret
from nvila_ros.http.limits import MIN_TOKEN_CHARACTERS
from nvila_ros.serving.answering import Answering
from nvila_ros.serving.model_loader import Status
from nvila_ros.standing.service import StandingService

LOG = logging.getLogger(__name__)
TOKEN_VARIABLE = "NVILA_HTTP_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraState:
    """How a camera's frames arrive.

    Attributes:
        source: topic, file or device.
        rate_hz: frames that came in the last second.
        warning: what is wrong, or an empty text.
    """

    name: str
    source: str
    rate_hz: float = 0.0
    received: int = 0
    malformed: int = 0
    lost: int = 0
    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The process behind the door; every call is safe from the door's thread.

    Attributes:
        name: who serves, for people.
        answering: frames and queue.
        standing: standing queries.
        status: returns what the model is doing.
        refusal: returns why no question is taken now, or an empty text.
        cameras: returns how the frames of each arrive, in the order of the parameter `cameras`.
        counters: returns what the model has counted.
        faults: returns why nothing is answered until somebody acts.
        run: by which a client knows that the process was started again.
    """

    name: str
    answering: Answering
    standing: StandingService
    status: Callable[[], Status]
    refusal: Callable[[], str]
    cameras: Callable[[], Sequence[CameraState]]
    counters: Callable[[], Mapping[str, int]]
    faults: Callable[[], Sequence[str]]
    run: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the door.

    Attributes:
        host: address to listen on.
        port: 0 takes any that is free.
        token: what clients must show; empty for none.
        hosts: names beside addresses, localhost and this machine's own by which browsers may call it.
        origins: of other pages whose scripts may use it, such as `http://panel.local:3000`.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def access_from_config(config: NodeConfig) -> Access:
    """Return who may use the door, as the parameters and the environment say.

    Raises:
        ConfigError: other machines could reach it without a token, or the token cannot be read or is too short.
    """
    token = _read_token(config.http_token_file)
    if not token and not is_loopback(config.http_host):
        raise ConfigError(
            f"http_host must be a loopback address such as 127.0.0.1 while there is no token, got "
            f"{config.http_host!r}; name a file with one by http_token_file, or set {TOKEN_VARIABLE}"
        )
    return Access(
        host=config.http_host,
        port=config.http_port,
        token=token,
        hosts=tuple(filter(None, config.http_hosts)),
        origins=tuple(filter(None, config.http_origins)),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(path: str) -> str:
    if not path:
        token = os.environ.get(TOKEN_VARIABLE, "")
        where = TOKEN_VARIABLE
    else:
        where = f"http_token_file {path}"
        token = read_secret(path, "http_token_file")
        if not token:
            raise ConfigError(f"{where} must hold a token, got none; make one: openssl rand -hex 32")
    if token and (len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError(
            f"{where} must be at least {MIN_TOKEN_CHARACTERS} printable ASCII characters without blanks, got "
            f"{len(token)}; make one: openssl rand -hex 32"
        )
    return token
