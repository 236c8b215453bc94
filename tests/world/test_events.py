"""Small things and quick events: room for every object, events inside the clip, nothing drawn evenly left uneven."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.world.events import (
    MAX_SMALL,
    QUICK_GAPS,
    QUICK_JUMPS,
    sample_event_scene,
    sample_small_scene,
)
from nvila_ros.world.rendering import patch_owners, render
from nvila_ros.world.scene import (
    Jump,
    Scene,
    reach,
    scene_rng,
)

SEEDS = st.integers(0, 2**31 - 1)
ASPECTS = st.sampled_from([1.0, 4 / 3, 16 / 9])
CLIP_S = 4.0


def draw(seed: int, *, aspect: float = 4 / 3, has_pair: bool | None = None) -> Scene:
    return sample_event_scene(scene_rng(seed), aspect=aspect, duration_s=CLIP_S, has_pair=has_pair)


def check_inside_and_apart(scene: Scene, t_s: float) -> None:
    centres = [obj.position(t_s) for obj in scene.objects]
    for k, (obj, (x, y)) in enumerate(zip(scene.objects, centres, strict=True)):
        assert reach(obj) <= min(x, 1 - x) * scene.aspect + 1e-9
        assert reach(obj) <= min(y, 1 - y) + 1e-9
        for other, (other_x, other_y) in zip(scene.objects[:k], centres[:k], strict=True):
            assert math.hypot((x - other_x) * scene.aspect, y - other_y) > reach(obj) + reach(other) + 0.02


@given(seed=SEEDS, aspect=ASPECTS)
def test_small_objects_are_small_distinct_and_apart(seed: int, aspect: float) -> None:
    scene = sample_small_scene(scene_rng(seed), aspect=aspect)

    assert 1 <= len(scene.objects) <= MAX_SMALL
    assert len({(obj.color, obj.shape) for obj in scene.objects}) == len(scene.objects)
    assert all(obj.size <= 0.055 for obj in scene.objects)
    check_inside_and_apart(scene, 0.0)


@given(seed=SEEDS, aspect=ASPECTS, when=st.floats(0, 1))
def test_objects_of_an_event_scene_stay_inside_and_apart(seed: int, aspect: float, when: float) -> None:
    check_inside_and_apart(draw(seed, aspect=aspect), when * CLIP_S)


@given(seed=SEEDS)
def test_two_objects_appear_a_short_time_apart(seed: int) -> None:
    scene = draw(seed, has_pair=True)

    pair = [obj for obj in scene.objects if math.isfinite(obj.appears_s)]
    first, second = sorted(obj.appears_s for obj in pair)
    assert 0 < first < second < CLIP_S
    assert QUICK_GAPS[0] * CLIP_S - 1e-9 <= second - first <= QUICK_GAPS[1] * CLIP_S + 1e-9
    assert all(obj.jump is None for obj in pair)


@given(seed=SEEDS)
def test_jumps_are_quick_and_end_where_they_began(seed: int) -> None:
    for obj in draw(seed, has_pair=False).objects:
        assert obj.position(0.0) == obj.position(CLIP_S)
        if obj.jump is not None:
            assert QUICK_JUMPS[0] * CLIP_S <= obj.jump.duration_s <= QUICK_JUMPS[1] * CLIP_S
            assert 0 < obj.jump.start_s < obj.jump.start_s + obj.jump.duration_s < CLIP_S
            x, y = obj.position(obj.jump.start_s + obj.jump.duration_s / 2)
            assert (x - obj.x, y - obj.y) == pytest.approx((obj.jump.dx, obj.jump.dy))


def test_jump_goes_out_stays_and_comes_back() -> None:
    jump = Jump(1.0, 0.4, 0.3, 0.0)

    assert [jump.share(t_s) for t_s in (0.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.35, 1.4, 3.0)] == pytest.approx(
        [0, 0, 0.5, 1, 1, 1, 0.5, 0, 0]
    )


def test_jump_directions_are_drawn_evenly() -> None:
    counts = Counter(obj.jump_direction for seed in range(600) for obj in draw(seed, has_pair=False).objects)

    assert np.array(list(counts.values())) / counts.total() == pytest.approx([0.2] * 5, abs=0.04)


def test_nothing_is_seen_of_an_object_before_it_appears() -> None:
    for seed in range(20):
        scene = draw(seed, has_pair=True)
        k, obj = next((k, obj) for k, obj in enumerate(scene.objects, start=1) if math.isfinite(obj.appears_s))
        times_s = (obj.appears_s - 0.01, obj.appears_s + 0.01)
        x, y = obj.position(obj.appears_s)
        pixels = [render(scene, t_s, 64, 48)[int(48 * y), int(64 * x)].astype(int) for t_s in times_s]

        assert [(patch_owners(scene, t_s, 16) == k).any() for t_s in times_s] == [False, True]
        assert obj.shape == "ring" or np.abs(pixels[0] - pixels[1]).max() > 15
