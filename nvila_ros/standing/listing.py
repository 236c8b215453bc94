"""The standing queries that a node starts with: a YAML file in, checked queries out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvila_ros.config import from_dict
from nvila_ros.errors import ConfigError
from nvila_ros.files import read_yaml
from nvila_ros.standing.query import YAML_HINT, StandingQuery


def read_queries(path: Path) -> tuple[StandingQuery, ...]:
    """Read a list of standing queries, each a mapping of the fields of `StandingQuery`.

    Raises:
        ConfigError: the file is not readable as such a list, or a query in it breaks a rule; the message names it.
    """
    given = _load(path)
    if not isinstance(given, list):
        raise ConfigError(f"{path} must hold a list of standing queries, got {type(given).__name__}")
    queries = tuple(_read_query(f"{path}: query {i}", values) for i, values in enumerate(given, start=1))
    names = [query.name for query in queries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{path}: names must be distinct, got {repeated} more than once")
    return queries


def query_from_dict(values: Mapping[str, Any]) -> StandingQuery:
    """Build a standing query from plain values, of a file or a message.

    Raises:
        ConfigError: an unknown key (near names are listed) or a value outside its rule.
    """
    query: StandingQuery = from_dict(StandingQuery, values)
    return query


def _load(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {getattr(error, 'strerror', None) or error}") from error


def _read_query(place: str, values: Any) -> StandingQuery:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{place} must be a mapping of names to values, got {values!r:.80}")
    if values.get("name"):
        place = f"{place} ({values['name']})"
    if isinstance(values.get("target"), bool | int):
        raise ConfigError(f"{place}: target must be a text, got {values['target']}; {YAML_HINT}")
    try:
        return query_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
