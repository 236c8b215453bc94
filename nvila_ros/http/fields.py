"""Plain JSON to checked values; each error names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from nvila_ros.errors import shown
from nvila_ros.http.errors import ApiError
from nvila_ros.http.limits import MAX_JSON_DEPTH


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        ApiError: it is none, or is nested too deeply.
    """
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body must be JSON, but {str(error)[:200]}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, got {shown(value)}", code="invalid_json")
    if _is_deep(value):
        raise ApiError(400, f"the body must be at most {MAX_JSON_DEPTH} levels deep", code="invalid_json")
    return value


def invalid(param: str, rule: str, value: Any) -> ApiError:
    """Return the error of a value outside its rule."""
    return ApiError(400, f"{param} must be {rule}, got {shown(value)}", param=param, code="invalid_value")


def integer(values: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """Return a whole number, None where it is missing or null."""
    value = values.get(name)
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not low <= value <= high:
        raise invalid(name, f"a whole number in [{low}, {high}]", value)
    return int(value)


def number(values: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    """Return a number, None where it is missing or null."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise invalid(name, f"a number in [{low:g}, {high:g}]", value)
    return float(value)


def flag(values: Mapping[str, Any], name: str) -> bool:
    """Return a truth value, False where it is missing or null."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, "true or false", value)
    return bool(value)


def text(values: Mapping[str, Any], name: str) -> str:
    """Return a text, empty where it is missing or null."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not is_unicode(value):
        raise invalid(name, "a text of Unicode characters", value)
    return value


def mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object, empty where it is missing or null."""
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, "an object", value)
    return value


def texts(value: Any, name: str, most: int) -> tuple[str, ...]:
    """Return a list of distinct, non-empty texts."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise invalid(name, f"a list of 1 to {most} texts", value)
    if not all(isinstance(each, str) and each and is_unicode(each) for each in value):
        raise invalid(name, "a list of texts, none of them empty", value)
    return tuple(value)


def is_unicode(value: str) -> bool:
    """Whether a text is made of characters alone: JSON can write halves of them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
