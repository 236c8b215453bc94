"""What the door serves, as an OpenAPI document."""

from __future__ import annotations

from typing import Any


def document(version: str) -> dict[str, Any]:
    """Return the document."""
    return {"openapi": "3.1.0", "info": {"title": "nvila_ros", "version": version}, "paths": {}}
