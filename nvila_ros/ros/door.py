"""The HTTP door of the node, where the libraries that it needs are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError
from nvila_ros.http.services import Services, access_from_config

if TYPE_CHECKING:
    from nvila_ros.http.door import HttpDoor


def open_door(config: NodeConfig, services: Callable[[], Services]) -> HttpDoor:
    """Return the door that the parameters ask for, not started yet.

    Raises:
        ConfigError: a library is missing, or the address or token is not acceptable.
    """
    try:
        from nvila_ros.http.door import HttpDoor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"http_port is set, but {error.name} is not installed; install nvila_ros[http], or python3-aiohttp and "
            "python3-prometheus-client"
        ) from error
    return HttpDoor(services(), access_from_config(config))
