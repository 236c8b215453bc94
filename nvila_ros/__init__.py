"""Ask a robot's cameras questions in plain language.

The names below are what Python programs use without ROS; `nvila_ros.client` is for those with ROS. Each is imported
when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvila_ros.errors import NvilaError
    from nvila_ros.serving.model import Model, PieceStream, load, read_clip
    from nvila_ros.types import Answer, FinishReason, Frame

__all__ = ["Answer", "FinishReason", "Frame", "Model", "NvilaError", "PieceStream", "load", "read_clip"]
_HOME_BY_NAME = {
    "Answer": "types",
    "FinishReason": "types",
    "Frame": "types",
    "Model": "serving.model",
    "NvilaError": "errors",
    "PieceStream": "serving.model",
    "load": "serving.model",
    "read_clip": "serving.model",
}


def _generated_folder() -> list[str]:
    """Return the one folder, if any, of this package's generated interfaces and libraries that lies elsewhere.

    pip and colcon may install `msg`, `srv`, `action` and `native` into another folder than these sources: the first
    one on `sys.path` joins this package. Other folders called nvila_ros, such as another checkout's, do not: a module
    that is missing here must not be taken from there.
    """
    own = Path(__file__).resolve().parent
    if (own / "msg" / "__init__.py").is_file():
        return []
    folders = (Path(entry or ".", "nvila_ros") for entry in sys.path)
    return next(([str(folder)] for folder in folders if (folder / "msg" / "__init__.py").is_file()), [])


__path__ += _generated_folder()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOME_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its names are {__all__}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_BY_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
