"""Wide scenes: as wide as their look says, never hidden by more than a third, and apart from their ground."""

import math
from collections import Counter

import cv2
import numpy as np
import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.world import photographs, photography
from nvila_ros.world.grounds import PHOTOGRAPH
from nvila_ros.world.photographs import EXAMINATION, TRAINING, crop_photograph
from nvila_ros.world.rendering import _contours_px, render, render_background
from nvila_ros.world.scene import CONTOUR_RADII, Scene, scene_rng
from nvila_ros.world.scene_sampler import sample_scene
from nvila_ros.world.wide_scenes import MAX_WIDE_OBJECTS, Look, redress, sample_wide_scene

DRAWN = Look()
CROWDED = Look(counts=(MAX_WIDE_OBJECTS,), overlap_share=1.0)


def draw(seed: int, look: Look = DRAWN) -> Scene:
    return sample_wide_scene(scene_rng(seed), look, aspect=4 / 3)


def silhouettes(scene: Scene, rows: int = 240) -> list[np.ndarray]:
    masks = []
    for obj in scene.objects:
        mask = np.zeros((rows, round(rows * scene.aspect)), np.uint8)
        cv2.fillPoly(mask, _contours_px(obj, 0.0, scene.aspect, mask.shape[1], rows), 1, shift=4)
        masks.append(mask > 0)
    return masks


def test_scenes_hold_none_to_six_things_of_all_sizes_and_angles() -> None:
    scenes = [draw(seed) for seed in range(200)]

    objects = [obj for scene in scenes for obj in scene.objects]
    heights = [2 * obj.size * CONTOUR_RADII[obj.shape] for obj in objects]
    assert set(Counter(len(scene.objects) for scene in scenes)) == set(range(MAX_WIDE_OBJECTS + 1))
    assert 0.08 <= min(heights) < 0.1
    assert 0.45 < max(heights) <= 0.6
    assert max(abs(obj.angle) for obj in objects) > math.radians(170)
    assert all(len({(obj.color, obj.shape) for obj in scene.objects}) == len(scene.objects) for scene in scenes)


def test_at_most_a_third_of_a_thing_is_hidden() -> None:
    worst = 0.0
    for seed in range(150):
        masks = silhouettes(draw(seed, CROWDED))
        for index, mask in enumerate(masks):
            above = np.any(masks[index + 1 :], axis=0) if index + 1 < len(masks) else np.zeros_like(mask)
            worst = max(worst, (mask & above).sum() / mask.sum())

    assert 0.05 < worst <= 1 / 3


def test_a_thing_is_unlike_its_ground() -> None:
    for seed in range(100):
        scene = draw(seed)
        width = round(240 * scene.aspect)
        ground = render_background(scene.background, scene.aspect, width, 240).astype(float)
        for obj, mask in zip(scene.objects, silhouettes(scene), strict=True):
            distance = np.linalg.norm(ground[mask] - np.array(obj.rgb), axis=1)
            assert (distance < 50).mean() < 0.5


@pytest.mark.parametrize("camera", [render, photography.render])
def test_both_cameras_show_the_ground_of_a_wide_scene(camera) -> None:
    light, dark = (
        np.mean([camera(draw(seed, Look(tones=(tone,), counts=(0,))), 0.0, 64, 48).mean() for seed in range(10)])
        for tone in ("light", "dark")
    )

    assert light > 150
    assert dark < 80


def test_redress_keeps_what_moves_and_gives_it_another_ground() -> None:
    scene = sample_scene(scene_rng(5), aspect=4 / 3, duration_s=2.0, is_moving=True)

    dressed = redress(scene_rng(6), DRAWN, scene)

    assert [(o.color, o.shape, o.x, o.vx, o.vy) for o in dressed.objects] == [
        (o.color, o.shape, o.x, o.vx, o.vy) for o in scene.objects
    ]
    assert dressed.background.is_shared
    assert dressed.duration_s == scene.duration_s


def test_shadow_darkens_the_ground_beside_a_thing_alone() -> None:
    scene = next(scene for seed in range(50) if (scene := draw(seed)).shadow is not None and len(scene.objects) == 1)
    without = Scene(**{name: getattr(scene, name) for name in scene.__slots__} | {"shadow": None})

    with_shadow, bare = (render(each, 0.0, 320, 240).astype(int) for each in (scene, without))

    differs = np.abs(with_shadow - bare).max(axis=2) > 3
    assert 0 < differs.mean() < 0.4
    assert (with_shadow <= bare + 1)[differs].mean() > 0.99


def test_photographs_of_suites_are_others_than_those_of_training() -> None:
    files = [{name.partition("#")[0] for name in names} for names in (TRAINING, EXAMINATION)]

    assert not files[0] & files[1]


def test_a_photograph_that_is_not_installed_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"no_such_package/a.png is not installed: pip install"):
        crop_photograph("no_such_package/a.png", 0, 4 / 3, 64, 48)


@pytest.mark.parametrize("name", [*TRAINING, *EXAMINATION])
def test_photographs_are_found_and_cut_as_the_seed_says(name: str) -> None:
    pytest.importorskip("skimage")
    try:
        first, second = (crop_photograph(name, seed, 4 / 3, 64, 48) for seed in (1, 2))
    except ConfigError:
        pytest.skip("its package is not installed")

    assert first.shape == (48, 64, 3)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, crop_photograph(name, 1, 4 / 3, 64, 48))


def test_look_with_photographs_shows_them() -> None:
    if not _has_photographs():
        pytest.skip("the photographs extra is not installed")
    look = Look(photographs=TRAINING, photograph_share=1.0)

    scenes = [draw(seed, look) for seed in range(20)]

    assert {scene.background.kind for scene in scenes} == {PHOTOGRAPH}
    assert len({scene.background.photograph for scene in scenes}) > 8


def _has_photographs() -> bool:
    try:
        photographs.crop_photograph(TRAINING[0], 0, 1.0, 8, 8)
    except ConfigError:
        return False
    return True
