"""Light and lens that the synthetic world's camera does not have, so that a model does not rely on its light.

In: the tiles of one sample. Out: the same under another exposure, tint and gamma, with light that falls off across the
frame, out of focus and with coarser noise; each only in a part of the samples.
"""

from __future__ import annotations

import cv2
import numpy as np

RELIT_SHARE = 0.7
"""Share of the samples that are changed at all."""
_GAMMA, _GAIN, _TINT = 0.35, 0.25, 0.06  # logs
_HAZE = 24.0  # grey levels
_FIELD = (0.65, 1.3)
_BLUR_PX = (0.4, 1.1)
_NOISE = 14.0  # grey levels


def relight(rng: np.random.Generator, tile_FHWC: np.ndarray, share: float = RELIT_SHARE) -> np.ndarray:
    """Return tiles of one sample, (F, H, W, 3) uint8, all under the same new light; noise differs from tile to tile.

    A share of the samples is changed, the others come back as they are.
    """
    if rng.random() >= share:
        return tile_FHWC
    does_field, does_blur, does_noise = (rng.random(3) < (0.5, 0.3, 0.4)).tolist()
    table = _draw_table(rng)
    height, width = tile_FHWC.shape[1:3]
    field = cv2.resize(rng.uniform(*_FIELD, (3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    sigma = float(rng.uniform(*_BLUR_PX))
    strength, grain = float(rng.uniform(2, _NOISE)), int(rng.integers(1, 4))
    relit = []
    for tile in tile_FHWC:
        lit = cv2.LUT(tile, table[None])
        if does_field:
            lit = np.clip(lit * field[..., None], 0, 255).astype(np.uint8)
        if does_blur:
            lit = cv2.GaussianBlur(lit, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        if does_noise:
            cells = rng.standard_normal((height // grain, width // grain, 3), np.float32) * strength
            lit = np.clip(lit + cv2.resize(cells, (width, height)), 0, 255).astype(np.uint8)
        relit.append(lit)
    return np.stack(relit)


def _draw_table(rng: np.random.Generator) -> np.ndarray:
    """What becomes of each grey level of each channel, (256, 3) uint8."""
    gamma = np.exp(rng.uniform(-_GAMMA, _GAMMA))
    gain = np.exp(rng.uniform(-_GAIN, _GAIN) + rng.uniform(-_TINT, _TINT, 3))
    haze = rng.uniform(0, _HAZE)
    level = np.linspace(0, 1, 256)[:, None] ** gamma
    return np.clip(haze + level * (255 - haze) * gain + 0.5, 0, 255).astype(np.uint8)
