"""What nvila-tiny-when learns from: its tokens, its rows, its batches and their soft loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.paths import share_path
from nvila_ros.prompt.time_tokens import time_of_place, token_of_place
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training import tiny_when
from nvila_ros.training.batches import Batches
from nvila_ros.training.losses import Heads, batch_loss
from nvila_ros.training.mix import Mix
from nvila_ros.training.moments import draw_timed, draw_timed_turns
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.steps import to_device
from nvila_ros.world.scene import scene_rng
from nvila_ros.world.timed_events import WHEN, happening

NUM = tiny_when.NUM_TIME_TOKENS
MIX = Mix(
    kinds=("timed",), seed_base=0, num_samples=2, num_clips=2, num_turns=4, clip_grids=((6, 1),), has_patches=False
)


@pytest.fixture(scope="module")
def model() -> Nvila:
    return tiny_when.new_model(0)


@pytest.fixture(scope="module")
def folder(model: Nvila, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model as a checkpoint."""
    root = tmp_path_factory.mktemp("when")
    tiny_when.write_tokenizer(root / "tokenizer")
    save_checkpoint(model, root / "tokenizer", root / "checkpoint")
    return root / "checkpoint"


def test_checkpoint_opens_with_its_time_tokens_behind_the_rows_of_nvila_tiny(model: Nvila, folder: Path) -> None:
    tokenizer = ChatTokenizer.from_folder(folder / "llm")

    assert tokenizer.time_ids == tuple(range(480, 480 + NUM))
    assert open_checkpoint(folder).spec.decoder == tiny_when.SPEC.decoder
    start = load_torch_model(open_checkpoint(share_path("checkpoints", "nvila-tiny"))).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value[: len(start[name])], start[name]), name


def test_turns_ask_when_with_the_tokens_of_the_truth_and_whether_as_often_so_as_not() -> None:
    answers: list[str] = []
    for seed in range(40):
        rng = scene_rng(seed)
        scene = draw_timed(rng, 8)
        duration_s = scene.duration_s * 8 / 7
        events = {WHEN.format(each.text): each for each in happening(scene, duration_s)}
        for turn in draw_timed_turns(rng, scene, 8, 8, NUM):
            if turn.text in events:
                event = events[turn.text]
                tokens = [token_of_place(t_s / duration_s, NUM) for t_s in (event.start_s, event.end_s)]
                assert turn.answer == "<t{}> <t{}>".format(*tokens)
            else:
                answers.append(turn.answer)

    assert 0.4 < answers.count("yes") / len(answers) < 0.6


@pytest.mark.parametrize("t_s", [0.0, 0.7, 2.0, 3.1])
def test_token_stands_for_the_time_that_it_is_read_as(t_s: float) -> None:
    stamps_ns = [round(i * 0.5e9) for i in range(8)]  # 3.5 s, and the last frame lasts as long as the others

    place = token_of_place(t_s / 4.0, NUM) / (NUM - 1)

    assert time_of_place(place, stamps_ns) / 1e9 == pytest.approx(t_s, abs=4.0 / (NUM - 1) / 2)


def test_batch_labels_time_tokens_and_their_loss_is_soft(model: Nvila, folder: Path) -> None:
    batch = Batches(MIX, ChatTokenizer.from_folder(folder / "llm"), tiny_when.SPEC)[0]
    labels = batch.chats.labels_BT
    torch.manual_seed(0)
    heads = Heads(tiny_when.SPEC)

    def loss(batch) -> float:
        with torch.no_grad():
            return float(batch_loss(model, heads, model.vision, to_device(batch, torch.device("cpu")))[0])

    assert batch.time_ids == tuple(range(480, 480 + NUM))
    assert np.isin(labels, batch.time_ids).sum() >= 4
    assert np.isin(labels, batch.time_ids).sum() % 2 == 0
    assert loss(batch) != pytest.approx(loss(dataclasses.replace(batch, time_ids=())), abs=1e-4)


def test_labels_say_which_frame_it_is_and_what_is_on_its_way(folder: Path) -> None:
    batches = Batches(MIX, ChatTokenizer.from_folder(folder / "llm"), tiny_when.SPEC)
    seen = set()
    for step in range(6):
        batch = batches[step]
        num = len(batch.moment_NG) // MIX.num_clips
        assert (batch.moment_NG == np.tile(np.arange(num), MIX.num_clips)[:, None]).all()
        for k in range(MIX.num_clips):
            scene = draw_timed(scene_rng(step * MIX.num_clips + k), num)
            moving = batch.moving_NG[k * num : (k + 1) * num].any(axis=1)
            slides = [obj.jump for obj in scene.objects if obj.jump is not None]
            times_s = np.linspace(0, scene.duration_s, num)
            want = [any(s.start_s < t < s.start_s + s.duration_s for s in slides) for t in times_s]
            assert moving.tolist() == want
            seen |= set(want)
    assert seen == {True, False}


def test_files_are_those_that_the_recipe_writes(folder: Path) -> None:
    shipped = share_path("checkpoints", tiny_when.SPEC.name)

    for name in ("config.json", "llm/added_tokens.json", "llm/tokenizer_config.json", "llm/config.json"):
        assert (folder / name).read_text() == (shipped / name).read_text(), name
    before = load_file(share_path("checkpoints", "nvila-tiny", "vision_tower", "model.safetensors"))
    after = load_file(shipped / "vision_tower" / "model.safetensors")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
