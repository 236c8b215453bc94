"""Ask a robot's cameras questions in plain language."""

import sys
from pathlib import Path


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
