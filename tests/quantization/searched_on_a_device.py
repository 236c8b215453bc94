"""A process whose torch knows a device of fake tensors: layers are searched on it, and every tensor must lie there.

Fake tensors say of each operation on which device its result would be, and refuse to mix two, without a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from nvila_ros.models import decoder, siglip
from nvila_ros.models.variants import VARIANTS
from nvila_ros.quantization import awq
from nvila_ros.quantization.layers import device_of, listen, run_decoder_layer, run_tower_layer
from nvila_ros.quantization.quantize import smooth_layer

DEVICE = "elsewhere"
GROUP = 64
KNOWN = VARIANTS["NVILA-8B"].spec
VISION = replace(KNOWN.vision, width=64, num_heads=2, mlp_width=128)
DECODER = replace(KNOWN.decoder, width=256, num_heads=2, num_kv_heads=1, mlp_width=512)


def check_decoder_layer() -> None:
    """Search a decoder layer's scales and clips."""
    layer = on_device(decoder.DecoderLayer, DECODER, 0)
    prompts_LD = [torch.zeros(5, DECODER.width), torch.zeros(9, DECODER.width)]
    hidden = [*prompts_LD]
    with listen(layer, sorted(set(awq.TAPPED.values())), 14) as taps:
        run_decoder_layer(DECODER, layer, hidden)
    divisors = awq.fold_scales(DECODER, layer, prompts_LD, taps, GROUP)
    down_KN = layer.mlp.down_proj.weight.T.contiguous()
    clip_GN = awq.search_clip(down_KN, taps["mlp.down_proj"].rows() / divisors["mlp.down_proj"], GROUP)

    assert {x.device.type for x in hidden} == {"cpu"}  # the whole set stays with the host
    searched = [*divisors.values(), clip_GN, *layer.state_dict().values(), *(tap.mean_abs() for tap in taps.values())]
    assert {x.device.type for x in searched} == {DEVICE}
    assert device_of(layer).type == DEVICE


def check_tower_layer() -> None:
    """Smooth a tower layer."""
    layer = on_device(siglip.VisionLayer, VISION)
    feat_NPE = torch.zeros(3, 16, VISION.width)
    with listen(layer, ["self_attn.q_proj", "mlp.fc1"], 48) as taps:
        run_tower_layer(layer, feat_NPE)
    divisors = smooth_layer(layer, taps, 0.5)

    assert feat_NPE.device.type == "cpu"
    smoothed = [divisors["self_attn.q_proj"], divisors["mlp.fc1"], *layer.state_dict().values()]
    assert {x.device.type for x in smoothed} == {DEVICE}


def on_device(kind: type[nn.Module], *args: object) -> Any:
    """Return a layer on the device."""
    with torch.device("meta"):
        layer = kind(*args)
    state = {key: torch.empty(tensor.shape, device=DEVICE) for key, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    return layer.requires_grad_(False)


if __name__ == "__main__":
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        check_decoder_layer()
        check_tower_layer()
