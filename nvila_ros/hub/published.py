"""The published models: one table in `config/published.yaml`, and from a name to a repository.

In: a name such as NVILA-Lite-2B, or owner/name[@revision]. Out: where it lies, and what is known about it before any
byte of it was fetched.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nvila_ros.errors import ConfigError, HubError, shown
from nvila_ros.files import read_yaml
from nvila_ros.models.variants import VARIANTS, count_parameters
from nvila_ros.paths import share_path

STATES = ("loads", "refused")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published model.

    Attributes:
        name: to type.
        repo: owner/name on the hub.
        purpose: what it is for.
        state: `loads` or `refused`.
        verified: how the state was found: the reference's tensors, shapes alone, a config.
        variant: the row of `models.variants.VARIANTS` with its dimensions; empty if none has.
        licence: the tag of its page; empty if none was seen.
        gb: size of its files, 1e9 bytes; computed from the variant where the page was not read; 0 if unknown.
        reason: why it is refused.
        alias: another name to type; empty if there is none.
    """

    name: str
    repo: str
    purpose: str
    state: str
    verified: str
    variant: str = ""
    licence: str = ""
    gb: float = 0.0
    reason: str = ""
    alias: str = ""

    @property
    def size_gb(self) -> float:
        """Size of its files, 1e9 bytes; 0 if unknown."""
        if self.gb or not self.variant:
            return self.gb
        parameters = count_parameters(VARIANTS[self.variant].spec).values()
        return sum(part.in_file for part in parameters) * 2 / 1e9


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository and one of its revisions."""

    repo: str
    revision: str = "main"


@functools.cache
def published() -> Mapping[str, Published]:
    """Return every published model by its name.

    Raises:
        ConfigError: the table breaks a rule.
    """
    path = share_path("config", "published.yaml")
    try:
        rows: dict[str, dict[str, Any]] = read_yaml(path)
        return {name: _read_row(name, row) for name, row in rows.items()}
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _read_row(name: str, row: Mapping[str, Any]) -> Published:
    unknown = sorted(set(row) - {field.name for field in fields(Published)})
    found = Published(name=name, **row) if not unknown else None
    if found is None or found.state not in STATES or (found.variant and found.variant not in VARIANTS):
        raise ConfigError(
            f"{name} must have known keys, a state of {STATES} and a known variant, got {shown(dict(row))}"
        )
    return found


def find_source(name: str) -> HubSource:
    """Return where a name lies.

    Raises:
        HubError: it is neither published nor owner/name[@revision]; near names are listed.
    """
    base, _, revision = name.partition("@")
    row = find_published(base)
    repo = row.repo if row else base
    if re.fullmatch(f"{_NAME}/{_NAME}", repo) and ".." not in name and re.fullmatch(r"[\w./-]{0,100}", revision):
        return HubSource(repo, revision or "main")
    near = difflib.get_close_matches(base, published(), n=3, cutoff=0.5)
    raise HubError(
        f"no model is published as {shown(name)}; give owner/name[@revision]"
        + (f", or one of {near}" if near else ", or a name that nvila fetch lists")
    )


def find_published(name: str) -> Published | None:
    """Return what is known about a name or a repository, or None."""
    base = name.partition("@")[0]
    return next((row for row in published().values() if base in (row.name, row.repo, row.alias or row.name)), None)


def fetch_command(name: str) -> str:
    """Return the command that fetches a published model, with its size; empty where the name is no such thing."""
    try:
        find_source(name)
    except HubError:
        return ""
    row = find_published(name)
    return f"nvila fetch {name}" + (f" ({row.size_gb:.1f} GB)" if row and row.size_gb else "")
