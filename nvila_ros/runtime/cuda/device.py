"""Whether the GPU that torch sees can run a model, and in which dtype."""

from __future__ import annotations

import torch

from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import weight_bytes

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
ROOM = 1.2
"""Memory beside the weights, as a share of them: caches, activations, CUDA's own."""
FIRST_BF16 = 8  # major number of the compute capability
GIB = 1 << 30


def why_not_on_gpu(spec: ModelSpec, num_bytes: int = 0) -> str:
    """Return why torch's GPU cannot run a model, and what to do; empty if it can.

    Args:
        spec: of the model.
        num_bytes: of its weights; 0 takes those of a checkpoint in half precision.
    """
    if not torch.cuda.is_available():
        build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        return (
            f"torch {torch.__version__}, {build}, sees no GPU; install the torch of this machine's CUDA, on a Jetson "
            "that of its JetPack"
        )
    free, needed = torch.cuda.mem_get_info()[0], ROOM * (num_bytes or sum(weight_bytes(spec, "fp16").values()))
    if needed > free:
        return (
            f"the GPU has {free / GIB:.1f} GiB free and {spec.name} needs about {needed / GIB:.1f}; end what else runs "
            "there, or make a build of four bits (nvila build)"
        )
    return ""


def choose_dtype(spec: ModelSpec) -> torch.dtype:
    """Return the checkpoint's dtype; float16 in place of bfloat16 on GPUs that do not have it, before sm_80."""
    dtype = DTYPES[spec.dtype]
    has_bf16 = not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] >= FIRST_BF16
    return dtype if dtype != torch.bfloat16 or has_bf16 else torch.float16
