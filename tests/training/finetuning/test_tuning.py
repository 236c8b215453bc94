"""What learns and what does not, by the modes of the parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.quantized import pack_nibbles
from nvila_ros.quantization.int4 import quantize_int4
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import join
from nvila_ros.training.finetuning.adapters import adapted
from nvila_ros.training.finetuning.int4_linear import Int4Linear, dequantize
from nvila_ros.training.finetuning.settings import LLM_MODES, TOWER_MODES, Settings
from nvila_ros.training.finetuning.tuning import prepare
from tests.training.finetuning.small_runs import FLAT, WORLD, encode, learned_names, new_run

pytestmark = pytest.mark.slow  # trains


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
