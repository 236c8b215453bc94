"""A clip that is pooled group by group is the clip pooled at once, to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import Pool, Wrap
from nvila_ros.visual.clip_groups import group_key, pool_group, show_groups
from nvila_ros.visual.encode import arrange
from nvila_ros.visual.frame_cache import ENTRY_BYTES, EncodedFrame, FrameCache, FrameKey
from nvila_ros.visual.views import View
from tests.golden_cases import GOLDEN

VIDEO = open_checkpoint(GOLDEN / "video" / "ckpt").spec
KEYS = [FrameKey("left", stamp, bytes([stamp]) * 16, False) for stamp in range(8)]


@pytest.mark.parametrize(
    "pools", [((8, 1, 1),), ((2, 4, 4), (1, 2, 2)), ((4, 1, 1), (2, 2, 1), (8, 4, 4)), ((1, 1, 1),)], ids=str
)
@pytest.mark.parametrize("num_groups", [1, 3])
def test_groups_side_by_side_are_the_clip(pools: tuple[Pool, ...], num_groups: int) -> None:
    spec = replace(VIDEO, video_pools=pools, video_wrap=Wrap(start="<", end=">", sep="|"))
    size = spec.frames_per_group
    shape = (num_groups * size, spec.tokens_per_tile, 64)
    visual_FGD = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    shown = show_groups(spec, [pool_group(spec, visual_FGD[i : i + size]) for i in range(0, len(visual_FGD), size)])

    whole = arrange(spec, View((), "clip"), visual_FGD)
    assert shown.parts == whole.parts
    assert np.array_equal(shown.visual_GD, whole.visual_GD)


@pytest.mark.parametrize("other", [KEYS[::-1], KEYS[:-1], [*KEYS[:-1], replace(KEYS[-1], digest=bytes(16))]])
def test_other_frames_are_another_group(other: list[FrameKey]) -> None:
    assert group_key(KEYS) == group_key(list(KEYS))
    assert group_key(other) != group_key(KEYS)
    assert group_key(KEYS[:1]) != KEYS[0]


def test_frame_that_was_let_go_leaves_first_though_it_came_last() -> None:
    encoded = [EncodedFrame(View((), "image"), np.zeros((1, 4, 8), np.float32)) for _ in range(4)]
    cache = FrameCache(3 * (ENTRY_BYTES + encoded[0].visual_BGD.nbytes))
    for key, each in zip(KEYS[:3], encoded, strict=False):
        cache.put(key, each)

    cache.let_go(KEYS[2])
    cache.let_go(KEYS[7])
    cache.put(KEYS[3], encoded[3])

    assert [key for key in KEYS if cache.get(key)] == [KEYS[0], KEYS[1], KEYS[3]]
