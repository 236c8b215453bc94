"""What learns and what does not, steps that rows and ranks do not change, and results that every loader reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantized import pack_nibbles
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.int4 import quantize_int4
from nvila_ros.runtime.onnxruntime.engine import load as load_onnx
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import PackedRow, join
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.finetuning.adapters import adapted
from nvila_ros.training.finetuning.int4_linear import Int4Linear, dequantize
from nvila_ros.training.finetuning.learner import Learner, whole
from nvila_ros.training.finetuning.results import write_checkpoint, write_results
from nvila_ros.training.finetuning.run import TuningData, TuningRun, open_run
from nvila_ros.training.finetuning.settings import LLM_MODES, TOWER_MODES, Settings
from nvila_ros.training.finetuning.state import read_losses
from nvila_ros.training.finetuning.step_batches import blank_row
from nvila_ros.training.finetuning.tuning import prepare, tuned_weights
from nvila_ros.training.ranks import Ranks
from nvila_ros.training.token_labels import IGNORE
from tests.golden_cases import GOLDEN

pytestmark = pytest.mark.slow  # trains

WORLD = PlantedWorld(PlantedSpec(num_samples=12))
CPU = torch.device("cpu")
FLAT = {"lora_rank": 4, "group_size": 32, "precision": "fp32", "batch": 4, "lr": 1e-2}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A tiny random one, in NVILA's original layout."""
    return open_checkpoint(GOLDEN / "lite" / "ckpt")


def new_run(checkpoint: Checkpoint, folder: Path, **settings: Any) -> TuningRun:
    told = Settings(**{**FLAT, "num_steps": 2, **settings})
    return open_run(checkpoint, TuningData([WORLD], [WORLD]), told, folder, Ranks(), CPU)


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_losses(folder / "losses.jsonl")]


def learned_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def encode(checkpoint: Checkpoint, sample: Sample) -> EncodedSample:
    return encode_sample(checkpoint.spec, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), sample)


@pytest.mark.parametrize("tower", TOWER_MODES)
def test_tower_learns_what_its_mode_says_and_the_projector_always_does(checkpoint: Checkpoint, tower: str) -> None:
    model = load_torch_model(checkpoint)
    every = {name for name, _ in model.named_parameters()}

    prepare(model, Settings(**FLAT, tower=tower, llm="frozen"))

    learned = learned_names(model)
    assert {name for name in every if name.startswith("mm_projector.")} == {
        name for name in learned if name.startswith("mm_projector.")
    }
    in_tower = {name for name in learned if name.startswith("vision_tower.")}
    of_norms = {
        f"vision_tower.vision_model.encoder.layers.{i}.layer_norm{k}.{kind}"
        for i in range(checkpoint.spec.vision.num_live_layers)
        for k in (1, 2)
        for kind in ("weight", "bias")
    }
    wanted = {
        "frozen": set(),
        "layernorm": of_norms,
        "full": {name for name in every if name.startswith("vision_tower.")},
    }
    if tower == "lora":
        assert in_tower
        assert all(".lora_A." in name or ".lora_B." in name for name in in_tower)
        maps = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in in_tower}
        assert maps == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    else:
        assert in_tower == wanted[tower]
    assert not {name for name in learned if name.startswith("llm.")}


@pytest.mark.parametrize("llm", LLM_MODES)
def test_language_model_learns_what_its_mode_says(checkpoint: Checkpoint, llm: str) -> None:
    model = load_torch_model(checkpoint)
    every = {name for name, _ in model.named_parameters() if name.startswith("llm.")}

    prepare(model, Settings(**FLAT, tower="frozen", llm=llm))

    learned = {name for name in learned_names(model) if name.startswith("llm.")}
    if llm in ("frozen", "full"):
        assert learned == (every if llm == "full" else set())
    else:
        assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in learned} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        kind = Int4Linear if llm == "qlora" else nn.Linear
        assert all(type(lora.get_base_layer()) is kind for _, lora in adapted(model))


@pytest.mark.parametrize(("tower", "llm"), [("lora", "lora"), ("layernorm", "frozen"), ("full", "full")])
@torch.no_grad()
def test_model_gives_what_it_gave_before_it_learns(checkpoint: Checkpoint, tower: str, llm: str) -> None:
    row = join([encode(checkpoint, WORLD.read(0))])
    model = load_torch_model(checkpoint)
    before = learned_log_probs(model, row)

    prepare(model, Settings(**FLAT, tower=tower, llm=llm))

    assert torch.equal(learned_log_probs(model, row), before)


@pytest.mark.parametrize(
    ("tower", "llm"), [("layernorm", "qlora"), ("lora", "lora"), ("full", "full"), ("frozen", "lora")]
)
def test_exactly_what_learns_changes(checkpoint: Checkpoint, tmp_path: Path, tower: str, llm: str) -> None:
    run = new_run(checkpoint, tmp_path, tower=tower, llm=llm)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}

    run.train()

    changed = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    dead = {name for name in learned_names(run.model) if run.model.get_parameter(name).grad.abs().max() == 0}
    assert changed == learned_names(run.model) - dead
    assert len(dead) <= 0.1 * len(changed)  # such as the bias of a key, which shifts all scores alike


def test_four_bit_map_holds_what_the_engines_compute_and_passes_gradients_on() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 24), torch.randn(5, 64)
    packed = Int4Linear(linear, 32)

    weight = quantize_int4(linear.weight.detach().T.numpy(), 32)
    plain = nn.Linear(64, 24)
    plain.weight.data = torch.from_numpy(weight.dequantize().T.copy())
    plain.bias = linear.bias
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(each) for layer, each in zip((packed, plain), inputs, strict=True)]
    for y in outputs:
        y.square().sum().backward()

    assert np.array_equal(packed.qweight.numpy(), pack_nibbles(weight.values_KN))
    assert np.array_equal(dequantize(packed.qweight, packed.scale_GN).numpy(), weight.dequantize())
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_group_size_that_does_not_divide_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 128 and 64 inputs; the largest that divides them is 64"):
        new_run(checkpoint, tmp_path, llm="qlora", group_size=128)


def test_rates_of_the_parts_are_their_own_and_norms_do_not_decay(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = new_run(
        checkpoint, tmp_path, tower="full", llm="full", lr=1e-3, tower_lr_ratio=20, projector_lr=5e-4, weight_decay=0.1
    )

    found = {
        (name.split(".")[0], parameter.ndim > 1): (group["peak_lr"], group["weight_decay"])
        for group in run.optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    assert found == {
        ("vision_tower", True): (pytest.approx(5e-5), 0.1),
        ("vision_tower", False): (pytest.approx(5e-5), 0.0),
        ("mm_projector", True): (5e-4, 0.1),
        ("mm_projector", False): (5e-4, 0.0),
        ("llm", True): (1e-3, 0.1),
        ("llm", False): (1e-3, 0.0),
    }


def test_loss_is_the_mean_over_all_told_tokens_however_samples_are_packed(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    encoded = [encode(checkpoint, WORLD.read(i)) for i in range(len(WORLD))]
    model = load_torch_model(checkpoint)
    wanted = -torch.cat([learned_log_probs(model, join([sample])) for sample in encoded]).mean().item()

    runs = [new_run(checkpoint, tmp_path / str(n), batch=12, num_steps=2, row_tokens=n) for n in (1, 300, 10000)]
    for run in runs:
        run.train()

    assert losses_of(runs[0].folder)[0] == pytest.approx(wanted, abs=1e-6)
    for run in runs[1:]:
        assert losses_of(run.folder) == pytest.approx(losses_of(runs[0].folder), abs=1e-5)


def test_checkpointing_changes_no_loss(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for saves_memory in (False, True):
        new_run(
            checkpoint, tmp_path / str(saves_memory), tower="full", llm="full", num_steps=3, saves_memory=saves_memory
        ).train()

    assert losses_of(tmp_path / "True") == losses_of(tmp_path / "False")


@pytest.mark.parametrize(("precision", "apart"), [("bf16", 0.005), ("fp8", 0.015)])
def test_lower_precision_learns_alike(checkpoint: Checkpoint, tmp_path: Path, precision: str, apart: float) -> None:
    for each in ("fp32", precision):
        new_run(checkpoint, tmp_path / each, tower="full", llm="full", num_steps=6, lr=1e-4, precision=each).train()

    found, wanted = losses_of(tmp_path / precision), losses_of(tmp_path / "fp32")
    assert found != wanted
    assert found[0] == pytest.approx(wanted[0], rel=apart)  # nothing was learned yet
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.03)


def test_row_without_media_leaves_no_parameter_out(checkpoint: Checkpoint) -> None:
    text = encode(checkpoint, Sample("text", (SampleTurn((), "What?", "That."),), "text"))
    model = load_torch_model(checkpoint)
    prepare(model, Settings(**FLAT, tower="full", llm="full"))

    loss = Learner(model)(join([text]))
    loss.backward()

    assert loss.item() == pytest.approx(-learned_log_probs(model, join([text])).sum().item(), abs=1e-6)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.mm_projector.layers[-1].weight.grad.abs().max() == 0


def test_blank_row_tells_one_token_and_shows_nothing(checkpoint: Checkpoint) -> None:
    row = blank_row()

    assert isinstance(row, PackedRow)
    assert int((row.labels_L != IGNORE).sum()) == 1
    assert math.isfinite(Learner(load_torch_model(checkpoint))(row).item())


@pytest.mark.parametrize(
    "settings",
    [
        {"tower": "lora", "llm": "lora", "lora_dropout": 0.2},
        {"tower": "full", "llm": "full"},
        {"tower": "layernorm", "llm": "qlora", "precision": "bf16", "saves_memory": True},
        {"tower": "layernorm", "llm": "full", "precision": "fp8"},
    ],
)
def test_run_that_goes_on_is_the_run_that_never_stopped(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = new_run(checkpoint, tmp_path / "whole", num_steps=6, save_every=4, **settings)
    whole.train()

    def stop_behind_five(entry: dict[str, Any]) -> None:
        if entry["step"] == 5:
            raise KeyboardInterrupt  # one step past what was saved

    with pytest.raises(KeyboardInterrupt):
        new_run(checkpoint, tmp_path / "cut", num_steps=6, save_every=4, **settings).train(stop_behind_five)
    second = new_run(checkpoint, tmp_path / "cut", num_steps=6, save_every=4, **settings)
    assert second.done == 4
    second.train()

    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    for name in learned_names(whole.model):
        assert torch.equal(second.model.get_parameter(name), whole.model.get_parameter(name)), name


def test_loss_that_is_no_number_is_refused_and_the_last_state_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    new_run(checkpoint, tmp_path, num_steps=4, save_every=2, tower="full", llm="full").train(
        lambda entry: None
    )  # the state of step 4
    (tmp_path / "losses.jsonl").unlink()
    kept = (tmp_path / "state.pt").read_bytes()
    run = new_run(checkpoint, tmp_path, num_steps=8, save_every=2, tower="full", llm="full")
    run.model.mm_projector.layers[-1].weight.data[0, 0] = math.nan

    with pytest.raises(
        ConfigError, match=r"the loss is nan at step 5; the state of step 4 is kept: run again with a lower"
    ):
        run.train()

    assert (tmp_path / "state.pt").read_bytes() == kept


def test_damaged_or_foreign_state_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    new_run(checkpoint, tmp_path, num_steps=1).train()

    with pytest.raises(CheckpointError, match="of another run"):
        new_run(checkpoint, tmp_path, tower="full")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        new_run(checkpoint, tmp_path)


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


def test_sharding_without_torchrun_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start it with torchrun"):
        new_run(checkpoint, tmp_path, is_sharded=True)


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
