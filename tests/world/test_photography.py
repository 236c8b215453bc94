"""The second renderer shows the same objects in the same places and colours, and nothing else of the first."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.world import photography, rendering
from nvila_ros.world.exposure import draw_camera, expose
from nvila_ros.world.scene import (
    COLORS,
    CONTOURS,
    EVAL_SEED_BASE,
    SHAPES,
    Light,
    Object,
    Scene,
    scene_rng,
)
from nvila_ros.world.scene_sampler import sample_scene
from nvila_ros.world.surfaces import MAKERS, draw_surface, to_light

pytestmark = pytest.mark.slow  # films hundreds of scenes

SEEDS = st.integers(0, 2**32 - 1)
ASPECTS = st.sampled_from([1.0, 4 / 3, 16 / 9, 0.75])
SIZES = st.sampled_from([(112, 112), (224, 168), (97, 61), (640, 480), (1100, 760), (8, 5)])
VGA = (640, 480)


def draw(seed: int, *, aspect: float = 4 / 3, is_moving: bool | None = None) -> Scene:
    return sample_scene(scene_rng(seed), aspect=aspect, duration_s=2.0, is_moving=is_moving)


def without(scene: Scene, index: int) -> Scene:
    return replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])


def emptied(scene: Scene) -> Scene:
    """The scene without objects and under light that does not change."""
    return replace(scene, objects=(), light=replace(scene.light, drift=0.0))


def silhouette(obj: Object, t_s: float, aspect: float, width: int, height: int) -> np.ndarray:
    """(height, width) bool: the pixels whose centre lies in the object, as its contours say."""
    x, y = obj.position(t_s)
    cos, sin = np.cos(obj.angle), np.sin(obj.angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    mask = np.zeros((height, width), np.uint8)
    points = [(c @ turn) * obj.size * (width / aspect, height) + (x * width, y * height) for c in CONTOURS[obj.shape]]
    cv2.fillPoly(mask, [np.rint((p - 0.5) * 16).astype(np.int32) for p in points], 1, shift=4)
    return mask.astype(bool)


def hue_of(rgb: np.ndarray) -> tuple[float, float, float]:
    """Hue in degrees, saturation and value in 0..1."""
    hue, saturation, value = cv2.cvtColor((rgb / 255).astype(np.float32)[None, None], cv2.COLOR_RGB2HSV)[0, 0].tolist()
    return hue, saturation, value


HUES = {name: hue_of(np.array(rgb))[0] for name, rgb in COLORS.items() if name not in ("white", "black")}


def name_color(rgb: np.ndarray) -> str:
    """The nearest of `COLORS`: by hue, where there is one to be seen."""
    hue, saturation, value = hue_of(rgb)
    if saturation < 0.35 or value < 0.22:
        return "white" if value > 0.45 else "black"
    return min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))


def to_gray(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)


def changed(scene: Scene, index: int, t_s: float, mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the object changes the frame by more than half of what it changes within the mask."""
    frames = [photography.render(s, t_s, *VGA).astype(np.float32) for s in (scene, without(scene, index))]
    change = cv2.GaussianBlur(np.abs(frames[0] - frames[1]).sum(axis=2), (0, 0), 1.0)
    return change > np.median(change[mask]) / 2


def centre_of(mask: np.ndarray) -> np.ndarray:
    """Centre of gravity (x, y), fractions of width and height."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    return np.array([(columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height])


@given(seed=SEEDS, size=SIZES, aspect=ASPECTS, t_s=st.floats(0, 2))
def test_frame_depends_on_its_arguments_alone(seed: int, size: tuple[int, int], aspect: float, t_s: float) -> None:
    scene = draw(seed, aspect=aspect)

    frame = photography.render(scene, t_s, *size)
    photography.render(draw(seed + 1), t_s, *size)

    assert frame.shape == (size[1], size[0], 3)
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, photography.render(draw(seed, aspect=aspect), t_s, *size))


@given(seed=SEEDS, aspect=ASPECTS, is_moving=st.booleans(), t_s=st.floats(0, 2), data=st.data())
def test_objects_are_where_the_scene_says(
    seed: int, aspect: float, is_moving: bool, t_s: float, data: st.DataObject
) -> None:
    scene = draw(seed, aspect=aspect, is_moving=is_moving)
    index = data.draw(st.integers(0, len(scene.objects) - 1))

    mask = silhouette(scene.objects[index], t_s, aspect, *VGA)
    seen = changed(scene, index, t_s, mask)

    assert centre_of(seen) == pytest.approx(centre_of(mask), abs=0.006)


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_silhouette_is_that_of_the_shape(shape: str, color: str) -> None:
    overlaps = []
    for seed in range(4):
        obj = Object(shape, color, COLORS[color], 0.15, 0.4, 0.55, 0.0, 0.0, 0.3)
        scene = replace(draw(seed), objects=(obj,))
        mask = silhouette(obj, 0.0, scene.aspect, *VGA)

        seen = changed(scene, 0, 0.0, mask)

        overlaps.append((seen & mask).sum() / (seen | mask).sum())

    assert np.mean(overlaps) > 0.93
    assert min(overlaps) > 0.85


def test_nearly_every_object_has_the_colour_of_its_name() -> None:
    names = []
    for seed in range(EVAL_SEED_BASE, EVAL_SEED_BASE + 80):
        scene = draw(seed)
        frame = photography.render(scene, 0.7, *VGA)
        for obj in scene.objects:
            inside = silhouette(obj, 0.7, scene.aspect, *VGA)
            names.append((obj.color, name_color(np.median(frame[inside], axis=0))))

    assert {color for color, _ in names} == set(COLORS)
    assert np.mean([color == seen for color, seen in names]) >= 0.97


@pytest.mark.parametrize("gain", [0.75, 1.25])
@pytest.mark.parametrize("warmth", [-0.06, 0.06])
@pytest.mark.parametrize("color", COLORS)
def test_colour_can_be_told_under_the_most_coloured_and_the_dimmest_cameras(
    color: str, warmth: float, gain: float
) -> None:
    cameras = {seed: draw_camera(seed) for seed in range(1000)}
    warmths = {seed: camera.balance[0] - camera.balance[2] for seed, camera in cameras.items()}
    edges = {seed: camera.falloff + camera.vignette for seed, camera in cameras.items()}
    worst = [min(warmths, key=warmths.__getitem__), max(warmths, key=warmths.__getitem__)]
    corners = [(0.15, 0.2), (0.85, 0.2), (0.15, 0.8), (0.85, 0.8)]
    objects = tuple(Object("circle", color, COLORS[color], 0.12, x, y, 0.0, 0.0, 0.0) for x, y in corners)

    for seed in (*worst, max(edges, key=edges.__getitem__)):
        scene = replace(draw(0), seed=seed, objects=objects, light=Light(gain, warmth, 0.0, 0.0))
        frame = photography.render(scene, 0.0, 320, 240)
        for obj in objects:
            inside = silhouette(obj, 0.0, scene.aspect, 320, 240)
            assert name_color(np.median(frame[inside], axis=0)) == color


def test_black_and_white_stand_out_from_every_ground_and_no_shadow_is_black() -> None:
    black = Object("square", "black", COLORS["black"], 0.1, 0.2, 0.3, 0.0, 0.0, 0.0)
    white = replace(black, color="white", rgb=COLORS["white"], x=0.8, y=0.7)
    for seed in range(40):
        scene = replace(draw(seed), objects=(black, white))
        frame = cv2.blur(to_gray(photography.render(scene, 0.0, *VGA)), (7, 7))  # noise is no shadow

        masks = [silhouette(obj, 0.0, scene.aspect, *VGA) for obj in scene.objects]
        bodies = [cv2.erode(mask.astype(np.uint8), np.ones((13, 13))).astype(bool) for mask in masks]
        around = [cv2.dilate(mask.astype(np.uint8), np.ones((61, 61))).astype(bool) for mask in masks]
        objects = cv2.dilate((masks[0] | masks[1]).astype(np.uint8), np.ones((21, 21))).astype(bool)
        assert np.median(frame[bodies[0]]) < frame[around[0] & ~objects].min() - 8
        assert np.median(frame[bodies[1]]) > frame[around[1] & ~objects].max() + 8


@settings(max_examples=20)
@given(seed=SEEDS, appears_s=st.floats(0.2, 1.8))
def test_an_object_is_filmed_when_it_is_visible_only(seed: int, appears_s: float) -> None:
    scene = draw(seed)
    late = replace(scene, objects=(replace(scene.objects[0], appears_s=appears_s), *scene.objects[1:]))

    before, after = appears_s - 0.1, appears_s + 0.1

    assert np.array_equal(photography.render(late, before, *VGA), photography.render(without(scene, 0), before, *VGA))
    assert np.array_equal(photography.render(late, after, *VGA), photography.render(scene, after, *VGA))


def test_what_lies_outside_the_frame_is_left_out() -> None:
    scene = draw(0)
    gone = replace(scene, objects=(replace(scene.objects[0], x=-2.0),))

    frame = photography.render(gone, 0.0, *VGA)

    assert np.array_equal(frame, photography.render(without(gone, 0), 0.0, *VGA))


def measure(render: rendering.Render, statistic: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """A statistic of two frames of the same empty scene, over scenes."""
    empty = [emptied(draw(EVAL_SEED_BASE + k)) for k in range(40)]
    return np.array([statistic(render(scene, 0.0, *VGA), render(scene, 0.1, *VGA)) for scene in empty])


def steps_at_block_edges(frame: np.ndarray, _: np.ndarray) -> float:
    """Mean step between columns where blocks of 8 meet, relative to the mean step elsewhere; 1 where there is none."""
    steps = np.abs(np.diff(to_gray(frame), axis=1)).mean(axis=0)
    return float(steps[7::8].mean() / np.delete(steps, np.s_[7::8]).mean()) if steps.any() else 1.0


def likeness_of_noise(frame: np.ndarray, later: np.ndarray) -> float:
    """Correlation of the noise of neighbours; 1 where there is none."""
    noise = frame[..., 1].astype(np.float32) - later[..., 1]
    return float(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) if noise.any() else 1.0


def texture_of(frame: np.ndarray, _: np.ndarray) -> float:
    """Deviation in grey levels of what is coarser than noise and finer than the light's slope."""
    small = cv2.resize(to_gray(frame), (80, 60), interpolation=cv2.INTER_AREA)
    return float((small - cv2.GaussianBlur(small, (0, 0), 6)).std())


def test_frames_have_the_blocks_of_jpeg_and_those_of_the_first_renderer_have_none() -> None:
    first, second = measure(rendering.render, steps_at_block_edges), measure(photography.render, steps_at_block_edges)

    assert np.quantile(first, 0.9) < 1.1
    assert np.median(second) > 1.5


def test_noise_is_finer_than_that_of_the_first_renderer() -> None:
    first, second = measure(rendering.render, likeness_of_noise), measure(photography.render, likeness_of_noise)

    assert np.median(second) < np.median(first) - 0.1


def test_no_ground_is_plain_as_some_of_the_first_renderer_are() -> None:
    first, second = measure(rendering.render, texture_of), measure(photography.render, texture_of)

    assert first.min() < 0.5
    assert second.min() > 2 * first.min()
    assert second.min() > 0.8


def test_ground_is_darker_on_the_side_away_from_the_light() -> None:
    for seed in range(20):
        camera = draw_camera(seed)
        _, light = photography.light_ground(seed, 4 / 3, 64, 48)

        x, y = round(31.5 + 20 * camera.light_x), round(23.5 + 15 * camera.light_y)

        assert light[y, x] > light[47 - y, 63 - x]
        assert 0.5 < light.min() < light.max() < 1.25


@pytest.mark.parametrize("size", [(1280, 960), (320, 240)])
def test_noise_is_as_strong_to_the_model_at_every_size(size: tuple[int, int]) -> None:
    scene = replace(emptied(draw(0)), light=Light(1.0, 0.0, 0.0, 0.0))
    camera = draw_camera(scene.seed)._replace(shot=0.0005, read=0.0, haze=0.0)

    def strength(width: int, height: int) -> float:
        flat = np.full((3, height, width), 0.25, np.float32)
        level = expose(flat, scene, 0.0, camera)[1].astype(np.float32)
        return float(cv2.resize(level, (80, 60), interpolation=cv2.INTER_AREA).std())

    assert strength(*size) == pytest.approx(strength(*VGA), rel=0.15)


def test_noise_of_light_grows_with_its_root() -> None:
    scene = replace(emptied(draw(0)), light=Light(1.0, 0.0, 0.0, 0.0))
    camera = draw_camera(scene.seed)._replace(shot=0.0005, read=0.0, haze=0.0)

    def deviation(light: float) -> float:
        root = expose(np.full((3, 480, 640), light, np.float32), scene, 0.0, camera)[1] / 255
        return float((root.astype(np.float64) ** 2).std())

    assert deviation(0.36) / deviation(0.09) == pytest.approx(2, rel=0.03)
    assert deviation(0.36) == pytest.approx(np.sqrt(0.0005 * 0.36), rel=0.05)


@pytest.mark.parametrize("name", MAKERS)
def test_every_surface_has_texture_of_several_sizes(name: str) -> None:
    field = MAKERS[name](np.random.default_rng(3), 400)

    blurred = [field, *(cv2.GaussianBlur(field, (0, 0), 2.0**k) for k in range(1, 7))]
    bands = [float((fine - coarse).std()) for fine, coarse in pairwise(blurred)]

    assert field.shape == (400, 400)
    assert field.dtype == np.float32
    assert 0.2 < field.mean() < 0.8
    assert sum(band > 0.01 for band in bands) >= 3


@given(seed=SEEDS, aspect=ASPECTS)
def test_ground_is_muted_and_of_middle_brightness(seed: int, aspect: float) -> None:
    surface = draw_surface(np.random.default_rng(seed), aspect, 64, 48)

    assert surface.dtype == np.float32
    assert to_light(np.array(50)) <= surface.min()
    assert surface.max() <= to_light(np.array(175))
    levels = 255 * np.maximum(surface, 0) ** (1 / 2.2)
    assert np.ptp(levels, axis=0).max() < 45


@pytest.mark.parametrize("size", [(1280, 960), (224, 168)])
def test_ground_is_the_same_picture_at_every_size(size: tuple[int, int]) -> None:
    for seed in range(10):
        small, other = (
            cv2.resize(
                np.moveaxis(draw_surface(np.random.default_rng(seed), 4 / 3, *s), 0, 2),
                (80, 60),
                interpolation=cv2.INTER_AREA,
            )
            for s in (VGA, size)
        )
        assert np.abs(small - other).mean() < 0.01
