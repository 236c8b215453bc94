"""LoRA by peft: low-rank products beside linear maps, put in place, folded into plain weights, and saved.

Imported only where something learns by LoRA: peft brings transformers along, which takes seconds.

Source: LoRA (arXiv 2106.09685), QLoRA (arXiv 2305.14314).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
from torch import Tensor, nn

from nvila_ros.training.finetuning.int4_linear import Int4Linear
from nvila_ros.training.finetuning.settings import Settings

ADAPTER = "default"  # the name that peft gives the only one
_PEFT_PREFIX = "base_model.model."  # of keys in peft's files


def add_adapters(model: nn.Module, names: list[str], settings: Settings) -> None:
    """Put an adapter beside each named linear map; the first product is 0, so the model still gives what it gave.

    Everything but the adapters stops learning.
    """
    config = _config(names, settings)
    with torch.random.fork_rng(devices=[]):  # the model is still on the CPU
        torch.manual_seed(settings.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")  # about four-bit maps, which are registered
            inject_adapter_in_model(config, model, ADAPTER)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the linear maps that have an adapter, by the names that a checkpoint gives them."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def fold(lora: LoraLinear, base_weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return the weight that gives what a map and its adapter give together, (N, K) float32.

    Args:
        lora: the map with its adapter.
        base_weight: its own weight, (N, K).
        down: the adapter's first factor, (rank, K).
        up: its second, (N, rank).
    """
    return base_weight.float() + lora.scaling[ADAPTER] * (up.float() @ down.float())


def save_adapter(folder: Path, weights: Mapping[str, Tensor], names: list[str], settings: Settings) -> None:
    """Write an adapter as peft does, for `PeftModel.from_pretrained` over the checkpoint that was tuned.

    Args:
        folder: made where it is missing.
        weights: the factors by the names that they have in the model.
        names: the maps that have an adapter.
        settings: the run's.
    """
    config = _config(names, settings)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {_PEFT_PREFIX + key.replace(f".{ADAPTER}.", "."): tensor.contiguous() for key, tensor in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _config(names: list[str], settings: Settings) -> LoraConfig:
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=sorted(names),
    )
    config._register_custom_module({Int4Linear: LoraLinear})  # peft's only way to register another kind of map
    return config
