"""What a run leaves: checkpoints that every loader reads, adapters, held-out losses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.runtime.onnxruntime.engine import load as load_onnx
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import join
from nvila_ros.training.finetuning.learner import whole
from nvila_ros.training.finetuning.results import write_checkpoint, write_results
from nvila_ros.training.finetuning.run import TuningData, open_run
from nvila_ros.training.finetuning.settings import Settings
from nvila_ros.training.finetuning.tuning import tuned_weights
from nvila_ros.training.ranks import Ranks
from tests.training.finetuning.small_runs import CPU, FLAT, WORLD, encode, learned_names, new_run

pytestmark = pytest.mark.slow  # trains


@pytest.mark.parametrize(("tower", "llm"), [("layernorm", "qlora"), ("lora", "lora"), ("full", "full")])
def test_written_checkpoint_gives_what_the_tuned_model_gives(
    checkpoint: Checkpoint, tmp_path: Path, tower: str, llm: str
) -> None:
    run = new_run(checkpoint, tmp_path / "out" / "training", tower=tower, llm=llm)
    run.train()
    row = join([encode(checkpoint, WORLD.read(0))])

    write_results(run, checkpoint, tmp_path / "out")

    written = open_checkpoint(tmp_path / "out")
    plain, tuned = load_torch_model(checkpoint), dict(tuned_weights(run.model, whole))
    plain.load_state_dict(tuned, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(
            learned_log_probs(plain, row), learned_log_probs(run.model.eval(), row), atol=1e-4, rtol=1e-5
        )
    for key, info in written.tensors.items():
        assert info.dtype == checkpoint.tensors[key].dtype == "BF16"
        if key in tuned:
            rounded = tuned[key].bfloat16().float().numpy()
            assert np.array_equal(info.read(np.float32), rounded), key
    load_onnx(written)  # any backend takes it


def test_weights_that_do_not_learn_are_the_same_to_the_bit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = new_run(checkpoint, tmp_path / "out" / "training", tower="layernorm", llm="frozen")
    run.train()

    write_results(run, checkpoint, tmp_path / "out")

    written = open_checkpoint(tmp_path / "out")
    assert written.tensors.keys() == checkpoint.tensors.keys()
    changed = {
        key
        for key, info in checkpoint.tensors.items()
        if not np.array_equal(info.read(np.float32), written.tensors[key].read(np.float32))
    }
    assert changed
    assert changed <= learned_names(run.model)


def test_what_describes_the_other_checkpoint_is_left_behind(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(checkpoint.path, tmp_path / "source")
    for name in ("README.md", "known_world.json"):
        (tmp_path / "source" / name).write_text("{}")

    write_checkpoint(open_checkpoint(tmp_path / "source"), {}, tmp_path / "out")

    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in checkpoint.path.iterdir()} - {
        "README.md",
        "known_world.json",
    }


def test_saved_adapter_is_one_that_peft_loads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from peft import PeftModel

    run = new_run(checkpoint, tmp_path, tower="frozen", llm="lora", num_steps=3)
    run.train()
    run.model.eval()
    write_results(run, checkpoint, tmp_path / "out")

    loaded: Nvila = PeftModel.from_pretrained(load_torch_model(checkpoint), str(tmp_path / "adapter")).base_model.model
    loaded.mm_projector.load_state_dict(run.model.mm_projector.state_dict())
    row = join([encode(checkpoint, WORLD.read(1))])
    with torch.no_grad():
        torch.testing.assert_close(
            learned_log_probs(loaded.eval(), row), learned_log_probs(run.model, row), atol=1e-5, rtol=0
        )


def test_foreign_weight_is_never_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor llm\.unknown"):
        write_checkpoint(checkpoint, {"llm.unknown": torch.zeros(1)}, tmp_path)

    assert not (tmp_path / "config.json").exists()


def test_held_out_loss_is_that_of_the_untuned_model_before_the_first_step(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    run = new_run(checkpoint, tmp_path, row_tokens=200)
    rows = [join([encode(checkpoint, WORLD.read(i))]) for i in range(len(WORLD))]
    with torch.no_grad():
        wanted = -torch.cat([learned_log_probs(load_torch_model(checkpoint), row) for row in rows]).mean().item()

    assert run.held_out_loss() == pytest.approx(wanted, abs=1e-6)
    assert run.model.training


def test_held_out_samples_that_tell_nothing_are_refused_before_the_first_step(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "told.jsonl").write_text('{"image": "none.png", "question": "What?", "answer": "a"}\n')
    told = RecordFile(tmp_path / "told.jsonl", tmp_path)

    with pytest.raises(ConfigError, match=r"held-out samples must have .* got none: .*none\.png"):
        open_run(
            checkpoint,
            TuningData([WORLD], [told]),
            Settings(**FLAT, num_steps=2, is_strict=False),
            tmp_path,
            Ranks(),
            CPU,
        )
