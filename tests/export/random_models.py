"""Random models, quantized by rounding to nearest, and what torch makes of them when it is told naively."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec

GROUP = 16
HEAD = "llm.lm_head"


def make_spec(
    projector: str,
    is_tied: bool,
    kv_heads: int,
    rows: int,
    grid: int,
    head_size: int = 16,
    is_vila15: bool = False,
) -> ModelSpec:
    """Return a small model; every width is a multiple of the group size. That of a VILA 1.5 has a rest of pixels."""
    width = head_size * kv_heads * rows
    return ModelSpec(
        name="random",
        vision=VisionSpec(
            width=32,
            num_layers=3,
            num_heads=2,
            mlp_width=48,
            image_px=14 * grid + 6 * is_vila15,
            patch_px=14,
            num_live_layers=2,
        ),
        projector=ProjectorSpec(kind=projector, in_width=32, out_width=width, is_column_major=is_vila15),
        decoder=DecoderSpec(
            width=width,
            num_layers=2,
            num_heads=kv_heads * rows,
            num_kv_heads=kv_heads,
            mlp_width=48,
            vocab_size=90,
            rope_theta=1e4,
            is_tied=is_tied,
            max_positions=64,
            has_bias=not is_vila15,
        ),
        image_mode="resize",
        num_video_frames=8,
        dtype="bfloat16",
    )


def round_int4(weight_NK: np.ndarray, group: int = GROUP) -> Int4Weight:
    """Round to nearest with the scale that the largest of each group asks for."""
    weight_GgN = weight_NK.T.reshape(-1, group, len(weight_NK))
    scale_GN = half(np.abs(weight_GgN).max(axis=1) / 7)
    values = np.clip(np.round(weight_GgN / scale_GN[:, None]), -8, 7).astype(np.int8)
    return Int4Weight(values.reshape(weight_NK.T.shape), scale_GN)


def round_int8(weight_NK: np.ndarray, input_scale: float | None) -> Int8Weight:
    """Round to nearest with the scale that the largest of each output asks for."""
    scale_N = half(np.abs(weight_NK).max(axis=1) / 127)
    values_KN = np.clip(np.round(weight_NK.T / scale_N), -127, 127).astype(np.int8)
    return Int8Weight(values_KN, scale_N, input_scale)


def half(scale: np.ndarray) -> np.ndarray:
    """Round to what float16 holds, so that graphs of both dtypes have the same scales."""
    return scale.astype(np.float16).astype(np.float32)


def weights_of(model: Nvila) -> dict[str, Weight]:
    """Return a model's tensors."""
    return {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}


def linear_maps(model: Nvila) -> dict[str, nn.Linear]:
    """Return every linear map that a graph may hold quantized, by its key."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def quantize(model: Nvila, kind_by_part: Mapping[str, str], peak_by_name: Mapping[str, float]) -> dict[str, Weight]:
    """Return weights in which each part's linear maps, and the head, are of one kind.

    Args:
        model: the model as trained.
        kind_by_part: `float`, `int4`, `int8` with the input's scale found before, or `int8_by_token`.
        peak_by_name: largest absolute input of each linear map.
    """
    weights = weights_of(model)
    for name in dict.fromkeys([*linear_maps(model), HEAD]):
        kind = kind_by_part[name.split(".")[0]]
        weight_NK = weights.get(f"{name}.weight", weights["llm.model.embed_tokens.weight"])
        if kind == "int4":
            weights[f"{name}.weight"] = round_int4(weight_NK)
        elif kind != "float":
            scale = half(np.array(peak_by_name[name] / 127)).item() if kind == "int8" else None
            weights[f"{name}.weight"] = round_int8(weight_NK, scale)
    return weights


class Naive:
    """A model in torch, whose weights are dequantized and whose inputs are rounded by hand."""

    def __init__(self, model: Nvila, weights: Mapping[str, Weight]) -> None:
        self.model = model
        self.weights = weights
        for name, module in linear_maps(model).items():
            weight = weights[f"{name}.weight"]
            if not isinstance(weight, np.ndarray):
                module.weight.data = torch.from_numpy(weight.dequantize().T.copy())
                module.register_forward_pre_hook(lambda _, args, weight=weight: (round_input(args[0], weight),))

    def logits(self, embeds_LD: np.ndarray) -> np.ndarray:
        """Return the logits after each of L tokens, (L, V)."""
        hidden_LD = self.model.llm(torch.from_numpy(embeds_LD)[None])[0]
        head = self.weights.get(f"{HEAD}.weight", self.weights["llm.model.embed_tokens.weight"])
        if isinstance(head, np.ndarray):
            return functional.linear(hidden_LD, torch.from_numpy(head)).numpy()
        return (round_input(hidden_LD, head) @ torch.from_numpy(head.dequantize())).numpy()


def round_input(x: Tensor, weight: Weight) -> Tensor:
    """Return a map's input as the map sees it."""
    if not isinstance(weight, Int8Weight):
        return x
    scale = weight.input_scale
    step = x.abs().amax(dim=-1, keepdim=True) / 127 if scale is None else torch.tensor(scale)
    return (x / step).round().clip(-128, 127) * step


def find_peaks(model: Nvila, tile_NCHW: np.ndarray, feat_NPE: np.ndarray, embeds_LD: np.ndarray) -> dict[str, float]:
    """Return the largest absolute input of each linear map, and of the head, on these inputs."""
    peaks: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: peaks.update({name: args[0].abs().max().item()}))
        for name, module in linear_maps(model).items()
    ]
    model.vision(torch.from_numpy(tile_NCHW))
    model.project(torch.from_numpy(feat_NPE))
    peaks[HEAD] = model.llm(torch.from_numpy(embeds_LD)[None]).abs().max().item()
    for hook in hooks:
        hook.remove()
    return peaks
