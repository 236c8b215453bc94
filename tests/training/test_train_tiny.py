"""Training: batches are functions of the step, a stopped run goes on as if it had not, files say what was trained."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.paths import share_path
from nvila_ros.prompt.chat import PLACEHOLDER, MediaTokens
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training import tiny_scale, train_tiny
from nvila_ros.training.batches import Batches
from nvila_ros.training.chats import encode_chat
from nvila_ros.training.losses import batch_loss
from nvila_ros.training.mix import Mix
from nvila_ros.training.recipes import RECIPES, TrainingRecipe, TrainingStage
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.tiny import SPEC, new_model, write_tokenizer
from nvila_ros.training.tiny_scale import widen
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.training.train_tiny import train
from nvila_ros.world.questions import Question
from nvila_ros.world.wide_scenes import Look
from tests.full_disk import largest_file
from tests.training.test_batches import assert_same

pytestmark = pytest.mark.slow
MIX = Mix(kinds=("dense", "images", "clips"), seed_base=7, num_samples=4, num_clips=2, num_turns=3)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> ChatTokenizer:
    return ChatTokenizer.from_folder(tokenizer_path)


def make_batches(tokenizer: ChatTokenizer) -> Batches:
    return Batches(MIX, tokenizer, SPEC)


def recipe_of(*stages: TrainingStage) -> TrainingRecipe:
    return dataclasses.replace(RECIPES["nvila-tiny"], stages=stages)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_batch_is_a_function_of_its_step(tokenizer: ChatTokenizer, step: int) -> None:
    first, second, other = (make_batches(tokenizer)[k] for k in (step, step, step + 3))

    assert_same(first, second)
    assert not np.array_equal(first.tile_BFHWC[:2, :1], other.tile_BFHWC[:2, :1])


def test_batch_has_one_placeholder_per_visual_token(tokenizer: ChatTokenizer) -> None:
    for step in (1, 2):
        batch = make_batches(tokenizer)[step]
        num_samples, num_frames = batch.tile_BFHWC.shape[:2]
        assert (batch.chats.ids_BL == PLACEHOLDER).sum() == num_samples * num_frames * SPEC.tokens_per_tile


def test_loss_counts_answers_and_their_ends_alone(tokenizer: ChatTokenizer) -> None:
    turns = [Question("color", "What color is the star?", "red"), Question("count", "How many objects are there?", "2")]

    chat = encode_chat(tokenizer, MediaTokens((4, "\n")), turns)

    ids, labels = chat.ids, chat.labels
    told = [label for label in labels if label != IGNORE]
    assert told == [*tokenizer.encode("red"), tokenizer.answer_end, *tokenizer.encode("2"), tokenizer.answer_end]
    assert [ids[i + 1] for i, label in enumerate(labels[:-1]) if label != IGNORE] == told[:-1]


def test_saved_checkpoint_is_the_model_rounded_to_bf16(tokenizer_path: Path, tmp_path: Path) -> None:
    model = new_model(seed=3)

    save_checkpoint(model, tokenizer_path, tmp_path / "ckpt")

    checkpoint = open_checkpoint(tmp_path / "ckpt")
    assert {**vars_of(checkpoint.spec), "name": SPEC.name} == vars_of(SPEC)
    loaded = load_torch_model(checkpoint).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value.bfloat16().float()), key


def test_saved_config_spells_scales_and_pooling_as_upstream_does(tokenizer_path: Path, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny_scale.SPEC, merge_scale=1)

    save_checkpoint(widen(new_model(seed=3), spec), tokenizer_path, tmp_path / "ckpt")

    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    wanted = {
        "image_aspect_ratio": "dynamic_s2",
        "dynamic_s2": True,
        "s2_scales": "112,224,336",
        "s2_max_split_size": 112,
        "s2_resize_output_to_scale_idx": 1,
        "mm_hidden_size": 384,
        "num_video_frames": 32,
        "video_encoder": '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[4, 1, 1]]}',
    }
    assert {key: config[key] for key in wanted} == wanted
    assert {**vars_of(open_checkpoint(tmp_path / "ckpt").spec), "name": spec.name} == vars_of(spec)


def test_recipes_are_of_the_checkpoints_they_are_named_after() -> None:
    assert {name: recipe.spec.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_stage_without_a_tower_rate_leaves_the_tower_as_it_is(tmp_path: Path) -> None:
    mix = Mix(kinds=("quick", "scaled"), seed_base=7, num_samples=2, num_clips=2, num_turns=2)
    stage = TrainingStage("all", mix, 2, 1e-3, 0.0)
    train(dataclasses.replace(RECIPES["nvila-tiny-scale"], stages=(stage,)), tmp_path / "out", tmp_path, num_workers=0)

    before, after = _weights(share_path("checkpoints", "nvila-tiny")), _weights(tmp_path / "out")
    is_same = {key: np.array_equal(before[key], after[key]) for key in before if not key.startswith("mm_projector")}
    assert all(same for key, same in is_same.items() if key.startswith("vision_tower"))
    assert not all(is_same.values())


def vars_of(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__slots__}


def test_run_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    recipe = recipe_of(TrainingStage("all", MIX, 6, 1e-3, 5e-4, is_bf16=False))
    train(recipe, tmp_path / "whole", tmp_path / "work-whole", num_workers=0)

    stopped = tmp_path / "work-stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvila_ros.training.train_tiny.SAVE_EVERY_S", 0.0)
        patch.setattr("nvila_ros.training.train_tiny.batch_loss", _fail_at(5))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "stopped", stopped, num_workers=0)
    train(recipe, tmp_path / "stopped", stopped, num_workers=0)

    for key, value in _weights(tmp_path / "whole").items():
        assert np.array_equal(_weights(tmp_path / "stopped")[key], value), key


def test_finished_run_writes_its_last_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(TrainingStage("first", MIX, 1, 1e-3, 1e-3), TrainingStage("second", MIX, 1, 1e-3, 1e-3))
    train(recipe, tmp_path / "out", tmp_path / "work", num_workers=0)
    wanted, written = _weights(tmp_path / "out"), []
    monkeypatch.setattr(train_tiny, "save_checkpoint", lambda *told: written.append(save_checkpoint(*told)))

    train(recipe, tmp_path / "out", tmp_path / "work", num_workers=0)

    assert len(written) == 1
    found = _weights(tmp_path / "out")
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


def _fail_at(call: int):
    calls = iter(range(call))

    def loss(*args):
        if next(calls) == call - 1:
            raise KeyboardInterrupt
        return batch_loss(*args)

    return loss


def _weights(path: Path) -> dict[str, np.ndarray]:
    return dict(open_checkpoint(path).weights())


@pytest.mark.parametrize("state", [{}, {"step": 1, "model": {}, "heads": {}, "optimizer": {}}])
def test_state_of_another_model_is_refused(tmp_path: Path, state: dict[str, object]) -> None:
    torch.save(state, tmp_path / "all.pt")

    with pytest.raises(CheckpointError, match="another model"):
        train(recipe_of(TrainingStage("all", MIX, 2, 1e-3, 1e-3)), tmp_path / "out", tmp_path, num_workers=0)


def _write_half(path: Path) -> None:
    torch.save({"step": 1, "model": torch.zeros(99)}, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive"),
        _write_half,
    ],
    ids=["empty", "no-archive", "half"],
)
def test_spoilt_state_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    spoil(tmp_path / "all.pt")

    with pytest.raises(CheckpointError, match=r"all\.pt is damaged \(.+\); remove it"):
        train(recipe_of(TrainingStage("all", MIX, 2, 1e-3, 1e-3)), tmp_path / "out", tmp_path, num_workers=0)


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(recipe_of(TrainingStage("all", MIX, 1, 1e-3, 1e-3)), tmp_path / "out", tmp_path, num_workers=0)

    with pytest.raises(ConfigError, match=r"another steps, \{'all': 1\} and not \{'all': 2\}"):
        train(recipe_of(TrainingStage("all", MIX, 2, 1e-3, 1e-3)), tmp_path / "out", tmp_path, num_workers=0)


def test_state_that_the_disk_has_no_room_for_is_told(tmp_path: Path) -> None:
    with (
        largest_file(10_000),
        pytest.raises(ConfigError, match=r"all\.pt cannot be written: .* make room, then run again"),
    ):
        train(recipe_of(TrainingStage("all", MIX, 1, 1e-3, 1e-3)), tmp_path / "out", tmp_path, num_workers=0)


WIDE = Mix(
    kinds=("wide", "wide-dense", "wide-clips", "wide-events"),
    seed_base=7,
    num_samples=3,
    num_clips=2,
    num_dense=5,
    num_turns=3,
    clip_grids=((4, 1),),
    look=Look(),
    second_camera_share=0.5,
    has_events=False,
)


def test_wide_batch_is_a_function_of_its_step(tokenizer: ChatTokenizer) -> None:
    batches = Batches(WIDE, tokenizer, SPEC)
    for step in range(4):
        assert_same(batches[step], batches[step])
    assert batches[1].chats is None
    assert len(batches[1].color_NP) == 5
    assert all(batches[step].chats is not None for step in (0, 2, 3))


def test_stages_that_are_left_start_with_the_checkpoint_of_those_before(tmp_path: Path) -> None:
    start = share_path("checkpoints", "nvila-tiny")
    recipe = recipe_of(TrainingStage("first", MIX, 5, 1e-3, 1e-3), TrainingStage("wide", WIDE, 1, 0.0, 0.0))

    train(recipe.continued(start, ["wide"]), tmp_path / "out", tmp_path / "work", num_workers=0)

    before, after = _weights(start), _weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert (tmp_path / "out" / "llm" / "vocab.json").read_bytes() == (start / "llm" / "vocab.json").read_bytes()


def test_stage_that_the_recipe_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--stages must be some of tower,.*,wide,hold, got deep"):
        RECIPES["nvila-tiny"].continued(Path("anywhere"), ["deep"])


def test_missing_photographs_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    look = Look(photographs=("no_such_package/a.png",), photograph_share=0.1)
    stages = [TrainingStage("first", MIX, 1, 1e-3, 1e-3)]
    stages.append(TrainingStage("wide", dataclasses.replace(WIDE, look=look), 1, 1e-3, 1e-3))

    with pytest.raises(ConfigError, match="not installed: pip install"):
        train(recipe_of(*stages), tmp_path / "out", tmp_path / "work", num_workers=0)

    assert not (tmp_path / "work").exists()
