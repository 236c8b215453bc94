"""The camera of the second renderer: what its light, lens and sensor are like, and the way from light to a JPEG file.

In: linear light in planes R, G, B. Out: the frame ``(height, width, 3)`` uint8 RGB that the file holds. All
randomness is that of a seed, and for the noise that of the time in ms too.

Noise is of each pixel, and as strong after a resize to the model's input whatever size was filmed: a sensor of more
pixels gives each of them less light.

Source: noise of light and of read-out as in the linear camera model of the EMVA standard 1288.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from nvila_ros.world.scene import Scene
from nvila_ros.world.surfaces import GAMMA

LOOK_SEED = 0x1E45
"""Goes before a scene's seed, so that nothing here repeats what the first renderer draws of it."""

_GRAIN = (720, 1024)  # rows and columns of the window of noise; larger frames repeat it
_GRAIN_SLACK = 256
_SENSOR_ROWS = 480  # the frame whose noise `PhotoCamera` states


class PhotoCamera(NamedTuple):
    """What the seed settles for a whole clip; lengths are fractions of the height.

    light_x, light_y: the direction that light comes from. shot, read: variance of light 1 and deviation in the dark,
    of a pixel of 480 rows. balance: gains of R, G, B.
    """

    light_x: float
    light_y: float
    falloff: float
    vignette: float
    shadow: float
    shadow_length: float
    shadow_softness: float
    shading: float
    roughness: float
    distortion: float
    defocus: float
    fringe: float
    haze: float
    shot: float
    read: float
    balance: tuple[float, float, float]
    contrast: float
    quality: int


@lru_cache(maxsize=64)
def draw_camera(seed: int) -> PhotoCamera:
    """Draw light, lens and sensor; squares keep the worst ones rare."""
    rng = np.random.default_rng((LOOK_SEED, seed))
    turn, falloff, vignette, shadow, length, softness, shading, roughness = rng.random(8).tolist()
    distortion, defocus, fringe, haze, noise, read, red, blue, contrast, quality = rng.random(10).tolist()
    return PhotoCamera(
        light_x=math.cos(2 * math.pi * turn),
        light_y=math.sin(2 * math.pi * turn),
        falloff=0.04 + 0.18 * falloff,
        vignette=0.05 + 0.2 * vignette,
        shadow=0.15 + 0.22 * shadow,
        shadow_length=0.006 + 0.012 * length,
        shadow_softness=0.006 + 0.014 * softness,
        shading=0.05 + 0.1 * shading,
        roughness=0.05 + 0.15 * roughness,
        distortion=0.012 * distortion,
        defocus=0.009 * defocus * defocus,
        fringe=fringe,
        haze=0.012 * haze,
        shot=0.0002 + 0.008 * noise * noise,
        read=0.001 + 0.006 * read,
        balance=(0.92 + 0.16 * red, 1.0, 0.92 + 0.16 * blue),
        contrast=0.25 * contrast,
        quality=40 + int(51 * quality),
    )


def expose(frame_CHW: np.ndarray, scene: Scene, t_s: float, camera: PhotoCamera) -> list[np.ndarray]:
    """Count the light with the noise of light and of read-out; planes (H, W) uint8, 255 times its square root."""
    height, width = frame_CHW.shape[1:]
    area = width * height / (_SENSOR_ROWS**2 * scene.aspect)  # a smaller pixel has less light to count
    grain_CHW = _grain(scene.seed, t_s, width, height)
    roots = []
    for light_HW, gain, balance, grain_HW in zip(
        frame_CHW, scene.light.gains(t_s), camera.balance, grain_CHW, strict=True
    ):
        light_HW += camera.haze
        light_HW *= gain * balance
        light_HW += cv2.sqrt(light_HW * (camera.shot * area) + camera.read**2 * area) * grain_HW
        roots.append(cv2.convertScaleAbs(cv2.sqrt(np.maximum(light_HW, 0)), alpha=255))
    return roots


def _grain(seed: int, t_s: float, width: int, height: int) -> np.ndarray:
    """(3, H, W) float32 noise of deviation 1: a window of the field that the seed and the time in ms choose."""
    rng = np.random.default_rng((LOOK_SEED, seed, round(t_s * 1000) % 2**32))
    top, left = rng.integers(_GRAIN_SLACK, size=2).tolist()
    rows, columns = min(height, _GRAIN[0]), min(width, _GRAIN[1])
    window = _grain_field()[:, top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return window
    return np.stack([cv2.copyMakeBorder(p, 0, height - rows, 0, width - columns, cv2.BORDER_WRAP) for p in window])


@lru_cache(maxsize=1)
def _grain_field() -> np.ndarray:
    """(3, rows, columns) float32 noise of deviation 1.

    Part is of each pixel and alike in all colours; the rest of red and blue comes in blotches, since a sensor has fewer
    pixels of these and what lies between is interpolated.
    """
    rng = np.random.default_rng(LOOK_SEED)
    rows, columns = _GRAIN[0] + _GRAIN_SLACK, _GRAIN[1] + _GRAIN_SLACK
    luma = rng.standard_normal((rows, columns), np.float32)
    field = np.empty((3, rows, columns), np.float32)
    for channel, spacing in enumerate((3, 1, 3)):
        own = rng.standard_normal((-(-rows // spacing), -(-columns // spacing)), np.float32)
        # By a whole factor: any other would leave the noise weaker in some places than in others.
        own = cv2.resize(own, None, fx=spacing, fy=spacing, interpolation=cv2.INTER_LINEAR)
        field[channel] = 0.6 * luma + 0.8 / own.std() * own[:rows, :columns]
    return field


def develop(roots: list[np.ndarray], camera: PhotoCamera) -> np.ndarray:
    """(H, W, 3) uint8 RGB of roots of light: tone curve, then what a JPEG file keeps of it."""
    bgr = cv2.LUT(cv2.merge(roots[::-1]), _tone_table(camera.contrast))
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, camera.quality, *sampling])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=64)
def _tone_table(contrast: float) -> np.ndarray:
    """(256,) uint8 from 255 times the root of light to a level: the screen's gamma and a curve of that contrast."""
    level = np.linspace(0, 1, 256) ** (2 / GAMMA)
    curve = level + contrast * level * (1 - level) * (2 * level - 1)
    return np.rint(255 * curve).astype(np.uint8)
