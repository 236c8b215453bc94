"""Views and what they become: what is pooled with what, in which order tokens stand, what stands around them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import ModelSpec, Overrides, Pool, Wrap
from nvila_ros.prompt.chat import MediaTokens
from nvila_ros.visual.encode import arrange, merge_features
from nvila_ros.visual.pooling import pool_tokens
from nvila_ros.visual.views import View, view_clip, view_image, view_images, whole_groups
from tests.golden_cases import GOLDEN

LITE, S2, VIDEO = (open_checkpoint(GOLDEN / name / "ckpt").spec for name in ("lite", "s2", "video"))


def change(spec: ModelSpec, **values: object) -> ModelSpec:
    return dataclasses.replace(spec, **values)


def tokens(num_blocks: int, num_tokens: int, width: int = 3) -> np.ndarray:
    return np.arange(num_blocks * num_tokens * width, dtype=np.float32).reshape(num_blocks, num_tokens, width)


def make_view(mode: str, num_tiles: int, grids: tuple = ()) -> View:
    return View((np.zeros((112, 112, 3), np.uint8),) * num_tiles, mode, grids)


@given(frames=st.integers(1, 3), pool=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2])))
def test_pooling_averages_consecutive_frames_rows_and_columns(frames: int, pool: Pool) -> None:
    visual_FGD = np.random.default_rng(frames).normal(size=(frames * pool[0], 16, 2)).astype(np.float32)

    got = pool_tokens(visual_FGD, pool)

    grid = visual_FGD.reshape(-1, 4, 4, 2)
    want = [
        grid[f : f + pool[0], y : y + pool[1], x : x + pool[2]].mean(axis=(0, 1, 2))
        for f in range(0, len(grid), pool[0])
        for y in range(0, 4, pool[1])
        for x in range(0, 4, pool[2])
    ]
    assert np.allclose(got.reshape(-1, 2), want, atol=1e-6)
    assert len(got) == frames


def test_clip_has_a_newline_behind_each_pooled_frame() -> None:
    seen = arrange(VIDEO, make_view("clip", 16), tokens(16, 16))

    assert seen.parts == (MediaTokens((16, "\n", 16, "\n")),)
    assert seen.visual_GD.shape == (32, 3)


def test_levels_of_a_clip_follow_one_another_and_wraps_stand_where_upstream_puts_them() -> None:
    spec = change(VIDEO, video_pools=((2, 4, 4), (1, 2, 2)), video_wrap=Wrap(start="<", end=">", sep="|"))

    seen = arrange(spec, make_view("clip", 2), tokens(2, 16))

    assert seen.parts == (MediaTokens(("<", 1, ">", "|", "<", 4, ">", "<", 4, ">", "|")),)
    assert np.array_equal(seen.visual_GD[1:5], pool_tokens(tokens(2, 16), (1, 2, 2))[0])


def test_tiles_have_a_text_newline_behind_them_and_images_have_none() -> None:
    assert arrange(LITE, make_view("tiled", 2), tokens(2, 9)).parts == (MediaTokens((9, "\n")), "\n") * 2
    assert arrange(LITE, make_view("image", 2), tokens(2, 9)).parts == (MediaTokens((9, "\n")),) * 2


def test_scaled_image_is_one_medium_in_raster_order() -> None:
    view = make_view("scaled", 3 + 2, ((1, 1), (1, 2), (1, 2)))

    seen = arrange(S2, view, tokens(2, 4))

    assert seen.parts == (MediaTokens((8, "\n")),)
    rows = seen.visual_GD[:, 0] / 3
    assert rows.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_tile_outside_s2_stands_for_every_scale() -> None:
    feat_NPE = np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)

    merged = merge_features(S2, make_view("image", 2), feat_NPE)

    assert np.array_equal(merged, np.concatenate([feat_NPE] * 3, axis=-1))
    assert np.array_equal(merge_features(LITE, make_view("image", 2), feat_NPE), feat_NPE)


@given(width=st.integers(8, 400), height=st.integers(8, 400), max_tiles=st.integers(9, 16))
def test_views_show_scales_in_order_with_the_aspect_at_the_last(width: int, height: int, max_tiles: int) -> None:
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)

    view = view_image(change(S2, max_tiles=max_tiles), image)

    rows, columns = view.grids[-1]
    assert view.grids[:2] == ((1, 1), (2, 2))
    assert 9 <= rows * columns <= max_tiles
    assert len(view.tiles) == 1 + 4 + rows * columns
    assert np.array_equal(view.tiles[0], view_images(S2, [image]).tiles[0])


@given(num_frames=st.integers(0, 300), sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_whole_groups_suit_every_level(num_frames: int, sizes: list[int]) -> None:
    spec = change(VIDEO, video_pools=tuple((size, 1, 1) for size in sizes))

    kept = whole_groups(spec, num_frames)

    assert all(kept % size == 0 for size in sizes)
    assert 0 <= num_frames - kept < spec.frames_per_group
    if kept:
        seen = arrange(spec, make_view("clip", kept), tokens(kept, 16))
        assert len(seen.visual_GD) == sum(16 * kept // size for size in sizes)


def test_clip_view_holds_one_tile_a_frame() -> None:
    images = [np.zeros((40, 60, 3), np.uint8)] * 8

    assert view_clip(VIDEO, images).mode == "clip"
    assert [tile.shape for tile in view_clip(VIDEO, images).tiles] == [(112, 112, 3)] * 8


@pytest.mark.parametrize(
    ("spec", "overrides", "rule"),
    [
        (S2, Overrides(max_tiles=4), "max_tiles must hold the last scale's 9 tiles, got 4"),
        (LITE, Overrides(video_mode="frames"), r"unknown video mode 'frames'; known are \['video', 'images'\]"),
        (LITE, Overrides(pixel_dtype="int8"), "unknown pixel dtype 'int8'"),
    ],
)
def test_overrides_that_do_not_suit_are_refused(spec: ModelSpec, overrides: Overrides, rule: str) -> None:
    with pytest.raises(CheckpointError, match=rule):
        overrides.apply(spec)


def test_fewer_tiles_cut_less() -> None:
    image = np.zeros((48, 64, 3), np.uint8)

    assert len(view_image(LITE, image).tiles) == 13
    assert len(view_image(Overrides(max_tiles=2).apply(LITE), image).tiles) == 1
