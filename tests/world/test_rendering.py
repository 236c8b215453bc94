"""The synthetic world holds what it promises: room for every object, true labels, one look at every size."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import patch_labels, render
from nvila_ros.world.scene import (
    COLORS,
    SHAPES,
    Object,
    Scene,
    is_clear,
    reach,
    scene_rng,
)
from nvila_ros.world.scene_sampler import sample_scene

SEEDS = st.integers(0, 2**31 - 1)
ASPECTS = st.sampled_from([1.0, 4 / 3, 16 / 9])


def draw(seed: int, *, aspect: float = 4 / 3, duration_s: float = 2.0, is_moving: bool | None = None) -> Scene:
    return sample_scene(scene_rng(seed), aspect=aspect, duration_s=duration_s, is_moving=is_moving)


def without_camera(scene: Scene) -> Scene:
    """The scene under plain light, seen by a perfect camera."""
    return replace(scene, noise=0.0, blur=0.0, light=replace(scene.light, gain=1.0, warmth=0.0, drift=0.0))


def downscale(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((112, 112), Image.Resampling.BICUBIC), np.float32)


def single(shape: str, color: str = "red", *, size: float = 0.19) -> Scene:
    base = without_camera(draw(0, duration_s=0.0, is_moving=False))
    return replace(base, objects=(Object(shape, color, COLORS[color], size, 0.5, 0.5, 0.0, 0.0, 0.0),))


@given(seed=SEEDS, aspect=ASPECTS, is_moving=st.booleans(), when=st.floats(0, 1))
def test_objects_stay_inside_the_frame_and_apart(seed: int, aspect: float, is_moving: bool, when: float) -> None:
    scene = draw(seed, aspect=aspect, is_moving=is_moving)

    centres = [obj.position(when * scene.duration_s) for obj in scene.objects]
    for k, (obj, (x, y)) in enumerate(zip(scene.objects, centres, strict=True)):
        assert reach(obj) <= min(x, 1 - x) * aspect + 1e-9
        assert reach(obj) <= min(y, 1 - y) + 1e-9
        for other, (other_x, other_y) in zip(scene.objects[:k], centres[:k], strict=True):
            distance = np.hypot((x - other_x) * aspect, y - other_y)
            assert distance > reach(obj) + reach(other) + 0.02


@given(seed=SEEDS, aspect=ASPECTS)
def test_objects_are_distinct_and_move_along_one_axis_far_enough(seed: int, aspect: float) -> None:
    scene = draw(seed, aspect=aspect, is_moving=True)

    assert 1 <= len(scene.objects) <= 4
    assert len({(obj.color, obj.shape) for obj in scene.objects}) == len(scene.objects)
    for obj in scene.objects:
        assert 0.09 <= obj.size <= 0.19
        ways = sorted(abs(v) * scene.duration_s for v in (obj.vx, obj.vy))
        assert ways[0] == 0
        assert (ways[1] == 0) == (obj.direction == "still")
        assert ways[1] == 0 or 0.18 <= ways[1] <= 0.5


@given(seed=SEEDS)
def test_standing_scene_stands(seed: int) -> None:
    scene = draw(seed, is_moving=False)

    assert not scene.is_moving
    assert all(obj.position(0.0) == obj.position(2.0) for obj in scene.objects)


def test_counts_and_directions_are_drawn_evenly() -> None:
    scenes = [draw(seed, is_moving=True) for seed in range(2000)]

    counts = np.bincount([len(scene.objects) for scene in scenes])[1:] / 2000
    directions = [obj.direction for scene in scenes for obj in scene.objects]
    shares = np.unique(directions, return_counts=True)[1] / len(directions)
    assert counts == pytest.approx([0.25] * 4, abs=0.04)
    assert shares == pytest.approx([0.2] * 5, abs=0.02)


def test_most_standing_scenes_are_clear_of_place_borders_but_some_are_not() -> None:
    scenes = [draw(seed, is_moving=False) for seed in range(500)]

    clear = [all(is_clear(obj.x) and is_clear(obj.y) for obj in scene.objects) for scene in scenes]
    assert 0.85 < np.mean(clear) < 0.98


def test_a_moving_scene_without_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="duration_s > 0"):
        draw(0, duration_s=0.0, is_moving=True)


def test_an_aspect_beyond_any_camera_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5\.\.3"):
        draw(0, aspect=10.0)


@settings(max_examples=20)
@given(seed=SEEDS, size=st.sampled_from([(112, 112), (224, 168), (97, 61), (640, 480)]), t_s=st.floats(0, 2))
def test_frame_depends_on_its_arguments_alone(seed: int, size: tuple[int, int], t_s: float) -> None:
    scene = draw(seed)

    frame = render(scene, t_s, *size)

    assert frame.shape == (size[1], size[0], 3)
    assert frame.dtype == np.uint8
    assert np.array_equal(frame, render(draw(seed), t_s, *size))


def test_noise_changes_from_frame_to_frame() -> None:
    scene = replace(without_camera(draw(3, is_moving=False)), noise=8.0)

    difference = render(scene, 0.0, 224, 168).astype(int) - render(scene, 0.033, 224, 168)

    assert difference.std() == pytest.approx(8 * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (112, 112)])
def test_every_size_looks_alike_to_the_model(size: tuple[int, int]) -> None:
    scenes = [replace(draw(seed), noise=0.0) for seed in range(40)]

    differences = [
        np.abs(downscale(render(s, 0.7, *size)) - downscale(render(s, 0.7, 224, 168))).mean() for s in scenes
    ]

    assert np.mean(differences) < 1.5  # grey levels


@pytest.mark.parametrize("size", [(640, 480), (1280, 960), (112, 112)])
def test_noise_is_as_strong_to_the_model_at_every_size(size: tuple[int, int]) -> None:
    clean = replace(without_camera(draw(0)), objects=())
    noisy = replace(clean, noise=10.0)

    def strength(width: int, height: int) -> float:
        return float((downscale(render(noisy, 0, width, height)) - downscale(render(clean, 0, width, height))).std())

    assert strength(*size) == pytest.approx(strength(224, 168), rel=0.05)


@pytest.mark.parametrize(("width", "height"), [(1280, 960), (640, 480), (224, 168), (112, 84)])
def test_circle_is_round_and_of_its_size_where_the_frame_has_the_aspect_of_the_scene(width: int, height: int) -> None:
    scene = single("circle", "white")
    scene = replace(scene, background=replace(scene.background, low=(0, 0, 0), high=(0, 0, 0)))

    cover = render(scene, 0.0, width, height)[..., 0] / COLORS["white"][0]

    radius_px = 0.19 * height
    assert cover.sum() == pytest.approx(np.pi * radius_px**2, rel=0.02)
    assert cover.sum(axis=0).max() == pytest.approx(2 * radius_px, abs=1)
    assert cover.sum(axis=1).max() == pytest.approx(2 * radius_px, abs=1)


def saturation_and_hue(rgb: np.ndarray) -> tuple[float, float]:
    """Saturation in 0..1 and hue in degrees."""
    saturation, hue = cv2.cvtColor((rgb / 255).astype(np.float32)[None, None], cv2.COLOR_RGB2HSV)[0, 0, 1::-1]
    return float(saturation), float(hue)


def test_colors_keep_apart_under_any_light() -> None:
    hues = {name: saturation_and_hue(np.array(rgb))[1] for name, rgb in COLORS.items()}
    colored = [name for name in COLORS if name not in ("white", "black")]

    for seed in range(400):
        scene = draw(seed)
        for o in scene.objects:
            seen = np.minimum(np.array(o.rgb) * scene.light.gains(0.0), 255)
            saturation, hue = saturation_and_hue(seen)
            if o.color in colored:
                turns = {name: abs((hue - hues[name] + 180) % 360 - 180) for name in colored}
                assert saturation > 0.6
                assert min(turns, key=lambda name: turns[name]) == o.color
            else:
                assert (seen.min() > 155) if o.color == "white" else (seen.max() < 45)


@given(seed=SEEDS)
def test_background_is_muted_and_of_middle_brightness(seed: int) -> None:
    scene = replace(without_camera(draw(seed)), objects=())

    frame = render(scene, 0.0, 64, 48).astype(float)

    luminance = frame @ [0.299, 0.587, 0.114]
    assert 55 <= luminance.min() <= luminance.max() <= 190
    assert np.ptp(frame, axis=2).max() <= 40


@settings(max_examples=30)
@given(seed=SEEDS, t_s=st.floats(0, 2), grid=st.sampled_from([4, 8, 14]))
def test_patch_labels_agree_with_the_area_under_each_patch(seed: int, t_s: float, grid: int) -> None:
    scene = draw(seed)
    side = 20 * grid
    axis = (np.arange(side) + 0.5) / side

    colors, shapes = patch_labels(scene, t_s, grid)

    assert colors.shape == shapes.shape == (grid, grid)
    assert colors.dtype == shapes.dtype == np.int64
    assert np.array_equal(colors == 0, shapes == 0)
    for obj in scene.objects:
        if obj.shape not in ("circle", "ring"):
            continue
        x, y = obj.position(t_s)
        inside = np.hypot((axis - x)[None] * scene.aspect, (axis - y)[:, None]) <= obj.size
        cover = inside.reshape(grid, 20, grid, 20).mean(axis=(1, 3))
        own = (colors == list(COLORS).index(obj.color) + 1) & (shapes == SHAPES.index(obj.shape) + 1)
        assert own[cover > 0.4].all()
        assert not own[cover < 0.2].any()


def test_nearly_every_object_owns_a_patch() -> None:
    scenes = [draw(seed) for seed in range(300)]

    owners = [{*zip(*(label.ravel().tolist() for label in patch_labels(s, 0.5, 8)), strict=True)} for s in scenes]

    num_owned = sum(len(pairs - {(0, 0)}) for pairs in owners)
    assert num_owned >= 0.97 * sum(len(scene.objects) for scene in scenes)


def test_live_world_shows_the_same_scene_to_everyone() -> None:
    camera, judge = LiveWorld(7), LiveWorld(7)

    index, scene, local_t_s = camera.scene_at(9.5)

    assert (index, local_t_s) == (2, pytest.approx(1.5))
    assert judge.scene_at(9.5)[1] == scene
    assert LiveWorld(8).scene_at(9.5)[1] != scene


def test_live_world_takes_turns_and_keeps_objects_inside_for_a_whole_scene() -> None:
    world = LiveWorld(0, aspect=16 / 9)

    for index in range(40):
        _, scene, _ = world.scene_at(4.0 * index + 0.1)
        assert index % 2 == 1 or not scene.is_moving
        for obj in scene.objects:
            x, y = obj.position(4.0)
            assert reach(obj) <= min(x, 1 - x) * scene.aspect + 1e-9
            assert reach(obj) <= min(y, 1 - y) + 1e-9
