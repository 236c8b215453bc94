"""Batches over scales, frames and pools: functions of their step, whole prompts, labels of what the frames tell."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.paths import share_path
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training import batches as batches_module
from nvila_ros.training import tiny
from nvila_ros.training.batches import Batch, Batches
from nvila_ros.training.chats import PREFIX
from nvila_ros.training.losses import Heads, batch_loss, merge_scales, see
from nvila_ros.training.mix import Mix
from nvila_ros.training.steps import shape_key, to_device
from nvila_ros.training.tiny_scale import SPEC, narrow, new_model, widen
from nvila_ros.training.token_labels import GONE, IGNORE, MOTION_LABELS, token_labels
from nvila_ros.visual.encode import arrange, merge_features
from nvila_ros.visual.views import View
from nvila_ros.world.events import sample_event_scene
from nvila_ros.world.scene import (
    COLORS,
    Jump,
    Object,
    Scene,
    scene_rng,
)

KINDS = ("images", "scaled", "clips", "events", "quick", "dense")
CLIP_GRIDS = ((4, 1), (8, 2), (16, 4))
MIX = Mix(kinds=KINDS, seed_base=7, num_samples=3, num_clips=2, num_turns=3, clip_grids=CLIP_GRIDS, small_share=0.5)
GRIDS = ((1, 1), (2, 2), (3, 4))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def batches() -> Batches:
    return Batches(MIX, ChatTokenizer.from_folder(share_path("checkpoints", "nvila-tiny", "llm")), SPEC)


@pytest.fixture(scope="module")
def model() -> Nvila:
    torch.manual_seed(0)
    model = Nvila(SPEC).requires_grad_(False)
    for parameter in model.mm_projector.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def assert_same(first: object, second: object) -> None:
    for name in first.__slots__:
        got, want = getattr(first, name), getattr(second, name)
        if name == "chats" and got is not None:
            assert_same(got, want)
        else:
            assert np.array_equal(got, want), name


def shown(num_tiles: int, **how: object) -> Batch:
    return Batch(tile_BFHWC=np.zeros((2, num_tiles, 1, 1, 3), np.uint8), **how)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(len(KINDS)))
def test_batch_is_a_function_of_its_step_with_a_placeholder_for_each_visual_token(
    batches: Batches, model: Nvila, step: int
) -> None:
    batch, again = batches[step], batches[step]

    assert_same(batch, again)
    feat_NPE = torch.zeros(np.prod(batch.tile_BFHWC.shape[:2]), SPEC.vision.num_patches, SPEC.vision.width)
    if batch.chats is not None:
        assert len(see(model, feat_NPE, batch)) == (batch.chats.ids_BL == PLACEHOLDER).sum()


@pytest.mark.slow
def test_clips_are_drawn_with_all_frames_and_pools(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        batches_module, "film_tiles", lambda scene, times_s, px, rows: np.zeros((len(times_s), 8, 8, 3), np.uint8)
    )

    drawn = {(batch.tile_BFHWC.shape[1], batch.pool) for batch in (batches[len(KINDS) * k + 4] for k in range(40))}

    assert drawn == set(CLIP_GRIDS)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(len(KINDS)))
def test_every_batch_gives_a_loss(batches: Batches, model: Nvila, step: int) -> None:
    loss, right = batch_loss(model, Heads(SPEC), model.vision, to_device(batches[step], torch.device("cpu")))

    assert torch.isfinite(loss)
    assert 0 <= right <= 1


@pytest.mark.slow
def test_batches_of_one_shape_share_a_key_and_others_do_not(batches: Batches) -> None:
    keys = [shape_key(batches[step]) for step in range(len(KINDS))]

    assert len(set(keys)) == len(KINDS)
    assert shape_key(batches[len(KINDS) - 1]) == shape_key(batches[2 * len(KINDS) - 1])


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1])
def test_loss_is_the_mean_over_the_answers_of_prompts_read_one_by_one(
    batches: Batches, model: Nvila, step: int
) -> None:
    batch = to_device(replace(batches[step], color_NP=None, shape_NP=None), torch.device("cpu"))
    rows = batch.chats
    rows.column_BL.fill_(IGNORE)
    rows.row_BL.fill_(IGNORE)

    loss, _ = batch_loss(model, Heads(SPEC), model.vision, batch)

    tiles = batch.tile_BFHWC.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    visual_BVD = see(model, model.vision(tiles), batch).unflatten(0, (len(rows.ids_BL), -1))
    labels_BL = torch.full_like(rows.ids_BL, IGNORE)
    for row_L, places, labels in zip(labels_BL, rows.answer_BT, rows.labels_BT, strict=True):
        row_L[places[labels != IGNORE]] = labels[labels != IGNORE]
    told = []
    for sample, owners in enumerate(rows.owner_BL):
        for owner in range(1, max(int(owners.max()), 1) + 1):
            is_read = (owners == PREFIX) | (owners == owner)
            ids, labels = rows.ids_BL[sample, is_read], labels_BL[sample, is_read]
            embeds = model.llm.embed(ids.clamp(min=0))
            embeds[ids == PLACEHOLDER] = visual_BVD[sample]
            logits = model.llm.head(model.llm(embeds[None]))[0]
            told.append(functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")[labels >= 0])
    assert torch.isclose(loss, torch.cat(told).mean(), atol=1e-4)


def test_pooled_tokens_are_those_of_a_naive_loop(model: Nvila) -> None:
    feat_NPE = torch.randn(16, SPEC.vision.num_patches, SPEC.vision.width)

    visual_GD = see(model, feat_NPE, shown(8, pool=4))

    frames = [model.project(torch.cat([feat_PE] * 3, dim=-1)[None])[0] for feat_PE in feat_NPE]
    naive = [sum(frames[k : k + 4]) / 4 for k in range(0, 16, 4)]
    assert torch.allclose(visual_GD, torch.cat(naive), atol=1e-5)


@pytest.mark.parametrize("merge_scale", [0, 1, 2, -1])
def test_scaled_image_is_what_the_node_makes_of_it(model: Nvila, merge_scale: int) -> None:
    feat_BFPE = torch.randn(2, 17, SPEC.vision.num_patches, SPEC.vision.width)

    visual_GD = see(model, feat_BFPE.flatten(0, 1), shown(17, grids=GRIDS, merge_scale=merge_scale))

    spec, view = replace(SPEC, merge_scale=merge_scale), View((), "scaled", GRIDS)
    seen = []
    for feat_FPE in feat_BFPE.numpy():
        merged = merge_features(spec, view, feat_FPE)
        seen.append(arrange(spec, view, model.project(torch.from_numpy(merged)).numpy()).visual_GD)
    assert np.allclose(visual_GD.numpy(), np.concatenate(seen), atol=1e-5)


def test_merged_map_holds_the_scales_side_by_side() -> None:
    """The smallest scale repeats, the largest is itself; checked patch by patch."""
    feat_BFPE = torch.randn(1, 17, 4, 3)

    blocks = merge_scales(feat_BFPE, GRIDS, -1).view(3, 4, 2, 2, 9)  # rows, columns of blocks, then of patches

    for row, column, y, x in np.ndindex(3, 4, 2, 2):
        small_y, small_x = (2 * row + y) // 3, (2 * column + x) // 4
        assert torch.equal(blocks[row, column, y, x, :3], feat_BFPE[0, 0, 2 * small_y + small_x])
        assert torch.equal(blocks[row, column, y, x, 6:], feat_BFPE[0, 5 + 4 * row + column, 2 * y + x])


def test_widened_projector_says_of_repeated_features_what_the_narrow_one_says() -> None:
    slim = tiny.new_model(seed=1)
    for parameter in slim.mm_projector.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    feat_NPE = torch.randn(2, SPEC.vision.num_patches, SPEC.vision.width)

    wide = widen(slim, SPEC)

    assert torch.allclose(wide.project(feat_NPE.repeat(1, 1, 3)), slim.project(feat_NPE), atol=1e-5)


def test_narrowed_projector_says_what_the_wide_one_says_of_repeated_features(model: Nvila) -> None:
    feat_NPE = torch.randn(2, SPEC.vision.num_patches, SPEC.vision.width)

    slim = narrow(model, tiny.SPEC)

    assert torch.allclose(slim.project(feat_NPE), model.project(feat_NPE.repeat(1, 1, 3)), atol=1e-5)


@pytest.mark.slow
def test_training_starts_as_nvila_tiny() -> None:
    first, second = new_model(0), new_model(1)

    assert first.spec == SPEC
    assert all(torch.equal(first.state_dict()[key], value) for key, value in second.state_dict().items())


def test_shipped_checkpoint_is_of_the_recipe_and_small() -> None:
    folder = share_path("checkpoints", "nvila-tiny-scale")

    assert open_checkpoint(folder).spec == SPEC
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 8e6


def scene_of(*objects: Object) -> Scene:
    base = sample_event_scene(scene_rng(0), aspect=1.0, duration_s=8.0)
    return replace(base, objects=objects)


def obj(color: str, x: float, y: float, **when: object) -> Object:
    return Object("square", color, COLORS[color], 0.12, x, y, 0.0, 0.0, 0.0, **when)


def test_labels_tell_when_what_appears_was_first_seen_and_in_which_order() -> None:
    """Eight frames, one each second, in groups of four: the quarters tell, and the rank from the second one on."""
    scene = scene_of(obj("red", 0.13, 0.13, appears_s=1.5), obj("blue", 0.87, 0.87, appears_s=2.5))

    labels = token_labels(scene, [float(t) for t in range(8)], 4, 8, 4)

    top_left, bottom_right = 0, 15
    assert labels.event[:, top_left].tolist() == [3, 1]  # seen in two quarters of the first group, then all along
    assert labels.event[:, bottom_right].tolist() == [2, 1]
    assert labels.rank[:, [top_left, bottom_right]].tolist() == [[0, 1], [0, 1]]
    assert labels.event[:, 6].tolist() == [0, 0]
    assert labels.rank[0, 6] == IGNORE


def test_labels_tell_what_is_gone_from_the_group_on_that_never_shows_it() -> None:
    scene = scene_of(obj("red", 0.13, 0.13, vanishes_s=1.5), obj("blue", 0.87, 0.87))

    labels = token_labels(scene, [float(t) for t in range(6)], 2, 8, 4)

    assert labels.event[:, 0].tolist() == [1, GONE, GONE]
    assert labels.event[:, 15].tolist() == [1, 1, 1]
    assert (labels.rank == IGNORE).all()


def test_labels_are_silent_on_an_order_that_no_frame_tells() -> None:
    scene = scene_of(obj("red", 0.13, 0.13, appears_s=1.2), obj("blue", 0.87, 0.87, appears_s=1.8))

    assert (token_labels(scene, [0.0, 1.0, 2.0, 3.0], 1, 8, 4).rank == IGNORE).all()


def test_labels_tell_a_jump_from_the_frame_on_that_shows_it() -> None:
    scene = scene_of(obj("red", 0.13, 0.13, jump=Jump(1.5, 1.0, 0.4, 0.0)))

    missed = token_labels(scene, [0.0, 1.0, 3.0], 1, 8, 4).motion
    caught = token_labels(scene, [0.0, 1.0, 2.0, 3.0], 1, 8, 4).motion

    assert missed[:, 0].tolist() == [0, MOTION_LABELS["still"], MOTION_LABELS["still"]]
    assert caught[:, 0].tolist() == [0, MOTION_LABELS["still"], 0, MOTION_LABELS["right"]]
    assert caught[2, 2] == MOTION_LABELS["right"]
