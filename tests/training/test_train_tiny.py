"""Training: batches are functions of the step, a stopped run goes on as if it had not, files say what was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.chat import PLACEHOLDER, Media
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_model
from nvila_ros.training.batches import IGNORE, Batches, Mix, encode_chat
from nvila_ros.training.questions import Question
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.tiny import SPEC, new_model, write_tokenizer
from nvila_ros.training.train_tiny import Stage, train

pytestmark = pytest.mark.slow
MIX = Mix(("dense", "images", "clips"), 7, num_samples=4, num_clips=2, num_turns=3)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> ChatTokenizer:
    return ChatTokenizer.from_folder(tokenizer_path)


def make_batches(tokenizer: ChatTokenizer) -> Batches:
    return Batches(MIX, tokenizer, SPEC.vision.image_px, SPEC.vision.grid, SPEC.tokens_per_tile)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_batch_is_a_function_of_its_step(tokenizer: ChatTokenizer, step: int) -> None:
    first, second, other = (make_batches(tokenizer)[k] for k in (step, step, step + 3))

    for name in first.__slots__:
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.tile_BFHWC[:2, :1], other.tile_BFHWC[:2, :1])


def test_batch_has_one_placeholder_per_visual_token(tokenizer: ChatTokenizer) -> None:
    for step in (1, 2):
        batch = make_batches(tokenizer)[step]
        num_samples, num_frames = batch.tile_BFHWC.shape[:2]
        assert (batch.ids_BL == PLACEHOLDER).sum() == num_samples * num_frames * SPEC.tokens_per_tile


def test_loss_counts_answers_and_their_ends_alone(tokenizer: ChatTokenizer) -> None:
    turns = [Question("color", "What color is the star?", "red"), Question("count", "How many objects are there?", "2")]

    ids, labels = encode_chat(tokenizer, Media((4,)), turns)

    told = [label for label in labels if label != IGNORE]
    assert told == [*tokenizer.encode("red"), tokenizer.im_end, *tokenizer.encode("2"), tokenizer.im_end]
    assert [ids[i + 1] for i, label in enumerate(labels[:-1]) if label != IGNORE] == told[:-1]


def test_saved_checkpoint_is_the_model_rounded_to_bf16(tokenizer_path: Path, tmp_path: Path) -> None:
    model = new_model(seed=3)

    save_checkpoint(model, tokenizer_path, tmp_path / "ckpt")

    checkpoint = open_checkpoint(tmp_path / "ckpt")
    assert {**vars_of(checkpoint.spec), "name": SPEC.name} == vars_of(SPEC)
    loaded = load_model(checkpoint).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value.bfloat16().float()), key


def vars_of(spec: object) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__slots__}


def test_run_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = (Stage("all", MIX, 6, 1e-3, 5e-4),)
    train(tmp_path / "whole", tmp_path / "work-whole", num_workers=0, stages=whole)

    stopped = tmp_path / "work-stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvila_ros.training.train_tiny.SAVE_EVERY", 3)
        patch.setattr("nvila_ros.training.train_tiny._loss", _fail_at(5))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", stopped, num_workers=0, stages=whole)
    train(tmp_path / "stopped", stopped, num_workers=0, stages=whole)

    for key, value in _weights(tmp_path / "whole").items():
        assert np.array_equal(_weights(tmp_path / "stopped")[key], value), key


def _fail_at(call: int):
    from nvila_ros.training.train_tiny import _loss

    calls = iter(range(call))

    def loss(*args):
        if next(calls) == call - 1:
            raise KeyboardInterrupt
        return _loss(*args)

    return loss


def _weights(path: Path) -> dict[str, np.ndarray]:
    return open_checkpoint(path).load()


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 1, "model": {}, "heads": {}, "optimizer": {}}, tmp_path / "all.pt")

    with pytest.raises(ConfigError, match="another model"):
        train(tmp_path / "out", tmp_path, num_workers=0, stages=(Stage("all", MIX, 2, 1e-3, 1e-3),))
