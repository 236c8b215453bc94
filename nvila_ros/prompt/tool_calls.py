"""Calls of tools as choices: `NAME(argument)` of a closed list, written by a model as VILA-M3 writes its experts.

A robot's detectors are named alike. Nothing is called here: the answer is which call the model asks for.
Source: Project-MONAI/VLM-Radiology-Agent-Framework, whose model ends an answer in such as `<VISTA3D(everything)>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nvila_ros.errors import QueryError, shown

NONE = "none"
"""The choice of no call."""
_CALL = re.compile(r"([A-Za-z][\w.-]{0,63})\(([^()<>]*)\)")
_RULE = "a tool must be NAME(argument), with | between arguments to choose from, or none"


def list_calls(tools: Sequence[str]) -> tuple[str, ...]:
    """Return every call that some tools allow, `<NAME(argument)>` each, and `none` where it is among them.

    Args:
        tools: such as `VISTA3D(everything|lung tumor)`, `CXR()` or `none`.

    Raises:
        QueryError: one is not written so, or a call is there twice.
    """
    calls = [call for tool in tools for call in _calls_of(tool)]
    repeated = sorted({call for call in calls if calls.count(call) > 1})
    if repeated:
        raise QueryError(f"calls of tools must be distinct, got {repeated[:3]} more than once; write each once")
    return tuple(calls)


def _calls_of(tool: str) -> Iterator[str]:
    if tool == NONE:
        yield NONE
        return
    match = _CALL.fullmatch(tool)
    if match is None:
        raise QueryError(f"{_RULE}; got {shown(tool)}")
    for argument in match[2].split("|"):
        if argument != argument.strip():
            raise QueryError(f"{_RULE}; got blanks around an argument in {shown(tool)}")
        yield f"<{match[1]}({argument})>"
