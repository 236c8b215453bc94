"""Which parameters of a model learn, and in which precision the others are kept.

Tower: nothing, its layer norms, adapters beside its linear maps, or all. Language model: nothing, adapters, adapters
over four-bit weights, or all. The projector always learns as a whole.

Source: NVILA (arXiv 2412.04468), section on fine-tuning, table 5; NVLabs/VILA: layer norms are what is left of the
tower when embeddings, attention and MLPs are frozen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvila_ros.models.nvila import Nvila
from nvila_ros.training.finetuning.int4_linear import Int4Linear, dequantize
from nvila_ros.training.finetuning.settings import FP8, FP32, FULL, LAYER_NORM, LORA, QLORA, Settings
from nvila_ros.training.fp8 import Fp8AdamW, convert_linears

TOWER_LAYERS, LLM_LAYERS = "vision_tower.vision_model.encoder.layers.", "llm.model.layers."
_NORM = re.compile(
    r"vision_tower\..*layer_?norm[12]?\."
)  # layer_norm1, layer_norm2, and post_layernorm where it is built


def prepare(model: Nvila, settings: Settings) -> None:
    """Make a float32 model on the CPU ready to learn what the settings say.

    Raises:
        ConfigError: the weights cannot be held in four bits with this group size.
    """
    if settings.llm == QLORA:
        for name in linear_names(model, LLM_LAYERS):
            model.set_submodule(name, Int4Linear(model.get_submodule(name), settings.group_size))
    names = adapter_names(model, settings)
    if names:
        from nvila_ros.training.finetuning.adapters import add_adapters

        add_adapters(model, names, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(name, settings))
        is_wide = parameter.dtype == torch.float32  # scales of four bits are not
        if settings.precision != FP32 and is_wide and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()  # as autocast would do for each product anew
    if settings.precision == FP8:
        convert_linears(model.llm.model["layers"])
    if settings.saves_memory:
        for layer in layers_of(model):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    model.train()


def _learns(name: str, settings: Settings) -> bool:
    if ".lora_" in name:
        return True
    if name.startswith("mm_projector."):
        return True
    if name.startswith("vision_tower."):
        return settings.tower == FULL or (settings.tower == LAYER_NORM and _NORM.match(name) is not None)
    return settings.llm == FULL


def adapter_names(model: nn.Module, settings: Settings) -> list[str]:
    """Return the linear maps that have, or will have, an adapter."""
    names = linear_names(model, TOWER_LAYERS) if settings.tower == LORA else []
    return names + (linear_names(model, LLM_LAYERS) if settings.llm in (LORA, QLORA) else [])


def linear_names(model: nn.Module, prefix: str) -> list[str]:
    """Return the names of the linear maps below a prefix, in the model's order."""
    kinds = (nn.Linear, Int4Linear)
    return [name for name, module in model.named_modules() if name.startswith(prefix) and isinstance(module, kinds)]


def layers_of(model: Nvila) -> Iterator[nn.Module]:
    """Yield the layers of the tower and of the language model."""
    yield from model.vision_tower["vision_model"].encoder["layers"]
    yield from model.llm.model["layers"]


def new_optimizer(groups: list[dict], settings: Settings, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW over groups of parameters; with FP8 its states are FP8 too."""
    if settings.precision == FP8:
        return Fp8AdamW(groups)
    return torch.optim.AdamW(groups, fused=device.type == "cuda")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters learn, and how many there are; four-bit weights count as what they stand for."""
    kept = [parameter for name, parameter in model.named_parameters() if not name.endswith(("qweight", "scale_GN"))]
    packed = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, Int4Linear))
    return sum(p.numel() for p in kept if p.requires_grad), sum(p.numel() for p in kept) + packed


def tuned_weights(model: Nvila, whole: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight that differs from the checkpoint's by its key there, adapters folded in, float32 on the CPU.

    Args:
        model: prepared, and trained.
        whole: puts a parameter together where ranks hold shares of it; every rank must go through all of them.
    """
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if hasattr(module, "lora_A"):
            from nvila_ros.training.finetuning.adapters import ADAPTER, fold

            down, up = (whole(getattr(module, part)[ADAPTER].weight) for part in ("lora_A", "lora_B"))
            base = module.get_base_layer()
            if isinstance(base, Int4Linear):
                weight = dequantize(whole(base.qweight), whole(base.scale_GN)).T
            else:
                weight = whole(base.weight)
            yield f"{name}.weight", fold(module, weight, down, up)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            yield name, whole(parameter)
