"""Read AWQ weights as NVILA's TinyChat packs them, and turn them into this project's symmetric form.

In: a folder of safetensors with each linear map's `qweight`, `scales` and `scaled_zeros`. Out: the decoder's weights by
`part.key`, and the error that the change of scheme adds to each map. AWQ folds its scales into norms and biases of the
layers, so these are read from the packed file as well; only what lies outside the layers may come from the unquantized
checkpoint. The published files are pickles (`*-v2.pt`), which are never opened here.

How a word is laid out, from what llm-awq's `pack_intweight` (interleave 4, stride 64) writes: outputs come in fours and
inputs in blocks of 64. A block holds 4 outputs x 2 halves x 8 words; word w of a half of 32 inputs holds the inputs
w, w + 8, w + 16 and w + 24 of that half, the first in the lowest four bits. A value q stands for
q * scale + scaled_zero, where scaled_zero = -zero * scale, for groups of 128 inputs; the rows of both tables are padded
with zeros to a multiple of 8.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import TensorInfo, find_pickles, read_header
from nvila_ros.models.quantized import Int4Weight, NamedWeights
from nvila_ros.models.shapes import Shapes, expected_shapes
from nvila_ros.models.spec import ModelSpec
from nvila_ros.quantization.int4 import check_groups, quantize_int4

GROUP_SIZE = 128
PACKED = ("qweight", "scales", "scaled_zeros")
_FIRST = "model.layers.0.self_attn.q_proj.qweight"
_CONVERT = (
    "pickles can run code and are not opened: where that is acceptable, save them with "
    '`python -c "import sys, torch; from safetensors.torch import save_file; '
    'save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, sys.argv[2])" '
    "FILE.pt FILE.safetensors`"
)
_OUTPUTS, _BLOCK = 4, 64  # outputs interleaved in a row of words, inputs of a block
_ORDER = (_OUTPUTS, 2, 4, 8)  # output, half, input within the word, word


def unpack_words(qweight: np.ndarray) -> np.ndarray:
    """Return the values in 0..15 of packed words, (N, K) uint8.

    Args:
        qweight: int16 (N / 4, K).

    Raises:
        CheckpointError: it is not such an array.
    """
    if qweight.dtype != np.int16 or qweight.ndim != 2 or qweight.shape[1] % _BLOCK:
        raise CheckpointError(
            f"qweight must be int16 of N / 4 rows and a multiple of {_BLOCK} columns, got {qweight.dtype} "
            f"{qweight.shape}; only TinyChat's version 2 files are read"
        )
    rows, num_inputs = qweight.shape
    outputs, halves, in_word, words = _ORDER
    packed = qweight.view(np.uint16).reshape(rows, -1, outputs, halves, words, 1)
    values = packed >> (4 * np.arange(in_word, dtype=np.uint16)) & 0xF  # (N / 4, blocks, output, half, word, in word)
    return values.transpose(0, 2, 1, 3, 5, 4).reshape(rows * outputs, num_inputs).astype(np.uint8)


def dequantize_words(qweight: np.ndarray, scales: np.ndarray, scaled_zeros: np.ndarray) -> np.ndarray:
    """Return a linear map's weight, inputs first, (K, N) float32.

    Args:
        qweight: int16 (N / 4, K).
        scales: float16, at least (K / 128, N).
        scaled_zeros: as scales.

    Raises:
        CheckpointError: the tables do not suit the words.
    """
    values_KN = unpack_words(qweight).T.astype(np.float32)
    num_inputs, num_outputs = values_KN.shape
    num_groups = num_inputs // GROUP_SIZE
    for name, table in (("scales", scales), ("scaled_zeros", scaled_zeros)):
        if num_inputs % GROUP_SIZE or table.ndim != 2 or len(table) < num_groups or table.shape[1] != num_outputs:
            raise CheckpointError(
                f"{name} must have a row for each {GROUP_SIZE} of {num_inputs} inputs and {num_outputs} columns, "
                f"got {table.shape}; use tables of the same linear map and group size"
            )
        if not np.isfinite(table).all():
            raise CheckpointError(f"{name} must be finite, got values that are not; copy the packed file anew")
    scale_KN, zero_KN = (
        np.repeat(table[:num_groups].astype(np.float32), GROUP_SIZE, axis=0) for table in (scales, scaled_zeros)
    )
    return values_KN * scale_KN + zero_KN


def requantize_words(qweight: np.ndarray, scales: np.ndarray, scaled_zeros: np.ndarray) -> tuple[Int4Weight, float]:
    """Return the weight in symmetric form, and the relative squared error that this adds.

    Raises:
        CheckpointError: see `dequantize_words`.
    """
    weight_KN = dequantize_words(qweight, scales, scaled_zeros)
    symmetric = quantize_int4(weight_KN, GROUP_SIZE)
    lost, whole = np.square(symmetric.dequantize() - weight_KN, dtype=np.float64).sum(), np.square(weight_KN).sum()
    return symmetric, float(lost / max(whole, np.finfo(np.float32).tiny))


OnMap = Callable[[str, float], None]
"""Called after each linear map: its key, and the relative squared error."""


def open_packed(folder: Path, spec: ModelSpec) -> dict[str, TensorInfo]:
    """Find a decoder's packed tensors, and check all of them before any is read.

    Args:
        folder: with one or more safetensors files.
        spec: of the model whose decoder was packed.

    Returns:
        every tensor of the layers, by its key from `model.layers.` on.

    Raises:
        CheckpointError: there are only pickles, the file is not packed by TinyChat's version 2, or a tensor is missing,
            has another shape than the decoder asks for or belongs to none of its maps.
        ConfigError: the decoder's widths cannot be parted into groups.
    """
    tensors = _read_layers(folder)
    wanted = {key: shape for name, shape in layer_shapes(spec).items() for key, shape in _packed(name, shape).items()}
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{folder} must hold {len(missing)} more tensors, first {missing[0]}; AWQ changes norms and biases along "
            "with the linear maps, so give the whole packed state"
        )
    strange = sorted(key for key in tensors.keys() - wanted.keys() if key.endswith(PACKED))
    if strange:
        raise CheckpointError(f"{folder} packs {strange[0]}, which this decoder does not have; give its own checkpoint")
    for key, shape in wanted.items():
        _check_tensor(folder, key, tensors[key], shape)
    return {key: tensors[key] for key in wanted}


def requantize_layers(packed: Mapping[str, TensorInfo], spec: ModelSpec, on_map: OnMap) -> NamedWeights:
    """Yield the tensors of a decoder's layers by `part.key`, linear maps in symmetric form, the others float32.

    Raises:
        CheckpointError: a tensor cannot be read, or a value is NaN or infinite.
    """
    for key, shape in layer_shapes(spec).items():
        if len(shape) == 1:
            yield f"llm.{key}", packed[key].read(np.float32)
            continue
        symmetric, loss = requantize_words(*(packed[name].read() for name in _packed(key, shape)))
        on_map(key, loss)
        yield f"llm.{key}", symmetric


def layer_shapes(spec: ModelSpec) -> Shapes:
    """Return the shape of every tensor of the decoder's layers, by its key from `model.layers.` on."""
    stem = "llm.model.layers."
    return {key.removeprefix("llm."): s for key, s in expected_shapes(spec).items() if key.startswith(stem)}


def _packed(key: str, shape: tuple[int, ...]) -> Shapes:
    """Return the tensors that a file holds of one tensor; of tables the fewest rows, since they may be padded."""
    if len(shape) == 1:
        return {key: shape}
    (num_outputs, num_inputs), stem = shape, key.removesuffix("weight")
    check_groups(num_inputs, GROUP_SIZE)
    shapes = ((num_outputs // _OUTPUTS, num_inputs), *[(num_inputs // GROUP_SIZE, num_outputs)] * 2)
    return {f"{stem}{kind}": each for kind, each in zip(PACKED, shapes, strict=True)}


def _read_layers(folder: Path) -> dict[str, TensorInfo]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = find_pickles(folder)
        hint = f"found {pickles}; {_CONVERT}" if pickles else "give a folder with the packed state in safetensors"
        raise CheckpointError(f"no safetensors in {folder}; {hint}")
    tensors = {key: info for file in files for key, info in read_header(file, "").items()}
    prefix = next((key.removesuffix(_FIRST) for key in tensors if key.endswith(_FIRST)), None)
    if prefix is None:
        raise CheckpointError(f"{folder} holds no {_FIRST}; it is no decoder that TinyChat packed")
    stem = f"{prefix}model.layers."
    return {key.removeprefix(prefix): info for key, info in tensors.items() if key.startswith(stem)}


def _check_tensor(folder: Path, key: str, info: TensorInfo, shape: tuple[int, ...]) -> None:
    is_table, is_words = key.endswith(PACKED[1:]), key.endswith(PACKED[0])
    is_right = info.shape == shape or (is_table and len(info.shape) == 2 and info.shape[1] == shape[1])
    if not is_right or info.shape[0] < shape[0]:
        rows = " or more rows" if is_table else ""
        raise CheckpointError(
            f"{key} must be {shape}{rows} by the checkpoint's config, {folder} has {info.shape}; give the checkpoint "
            "that was packed"
        )
    kinds = ("I16",) if is_words else ("F16", "BF16", "F32")
    if info.dtype not in kinds:
        raise CheckpointError(
            f"{key} must be of {' or '.join(kinds)}, {folder} has {info.dtype}; only TinyChat's version 2 is read"
        )
