"""Build ONNX graphs node by node.

Graphs are built from the spec, not traced, so they do not depend on a version of torch and need none. Weights stay
outside the graph (external data): a graph takes some kilobytes, and one weights file serves all graphs. The nodes of a
linear map depend on the kind of its weight: an array, or one of the forms of `models/quantized.py`.

Shapes: L rows, K inputs and N outputs of a linear map, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nvila_ros.errors import ConfigError
from nvila_ros.export.forms import ORT, GraphForm
from nvila_ros.models.host import sums_int8_exactly
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, Weights, as_array, pack_nibbles

BLOCK_ROWS = 8192  # packed at a time: a whole vocabulary in bytes would be the largest array in memory
WEIGHTS_FILE = "weights.bin"
ORT_DOMAIN = "com.microsoft"
FUSED_GROUPS = (16, 32, 64, 128)
"""Inputs that may share a scale in a fused map."""
EIGHT_BITS = 4  # ONNX Runtime's number for a fused map that rounds its inputs so
IR_VERSION = 10  # the first with four-bit integers; read by onnxruntime >= 1.18
ONNX_TYPE = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.bool_): TensorProto.BOOL,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(ml_dtypes.int4): TensorProto.INT4,
}

Dim = int | str


class GraphBuilder:
    """Collects nodes; every method appends nodes and returns the name of the output.

    Attributes:
        weights: arrays outside the graph, by a name of key, layout and type, so that equal names in several graphs mean
            the same bytes. Four-bit values are `ml_dtypes.int4` here and packed when they are written.
    """

    def __init__(self, name: str, form: GraphForm = ORT) -> None:
        self.name = name
        self.form = form
        self.weights: dict[str, np.ndarray] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._rounded: dict[tuple[str, float], str] = {}
        self._rows: dict[tuple[str, float | None], tuple[str, str]] = {}

    def input(self, name: str, shape: Sequence[Dim], dtype: str = "") -> str:
        """Declare an input, of the form's dtype unless another is named."""
        self._inputs.append(helper.make_tensor_value_info(name, self._onnx_type(dtype), shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dim], dtype: str = "") -> None:
        """Declare an output under `name`, of the form's dtype unless another is named."""
        if value != name:
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, self._onnx_type(dtype), shape))

    def weight(self, name: str, array: np.ndarray, dtype: str = "") -> str:
        """Refer to a weight, kept outside the graph in the form's dtype unless another is named."""
        return self._store(name, np.ascontiguousarray(array, dtype=dtype or self.form.dtype))

    def plain(self, key: str, weights: Weights) -> str:
        """Refer to a weight in the checkpoint's layout; only linear maps may be quantized."""
        return self.weight(key, as_array(weights, key))

    def constant(self, array: np.ndarray) -> str:
        """Refer to a small constant, kept inside the graph; equal ones are stored once."""
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, num_outputs: int = 1, called: str = "", **attributes: object) -> str:
        """Append a node and return its first output's name, `called` or a fresh one; the others end in `:1`, `:2`."""
        stem = called or f"{kind}_{len(self._nodes)}"
        outputs = [stem, *(f"{stem}:{i}" for i in range(1, num_outputs))]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=stem, **attributes))
        return stem

    def split(self, x: str, widths: Sequence[int], names: Sequence[str]) -> list[str]:
        """Cut the last dimension into parts of given widths, each an output of the given name."""
        self._nodes.append(helper.make_node("Split", [x, self.ints(*widths)], names, name=names[0], axis=-1))
        return list(names)

    def scalar(self, value: float, dtype: str = "") -> str:
        """Refer to a scalar of the form's dtype unless another is named."""
        return self.constant(np.array(value, dtype or self.form.dtype))

    def ints(self, *values: int) -> str:
        """Refer to a 1-D int64 constant: a shape, axes or starts."""
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 is inferred."""
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *axes: int) -> str:
        """Permute the dimensions."""
        return self.op("Transpose", x, perm=list(axes))

    def cast(self, x: str, dtype: str) -> str:
        """Change the dtype; nothing where the form computes in it."""
        return x if dtype == self.form.dtype else self.op("Cast", x, to=self._onnx_type(dtype))

    def linear(self, x: str, name: str, weights: Weights) -> str:
        """Multiply by a weight, stored (N, K) or quantized, and add its bias, where it has one."""
        weight, has_bias = weights[f"{name}.weight"], f"{name}.bias" in weights
        if not isinstance(weight, np.ndarray) and (group := self._fused_group(weight)):
            bias = self.plain(f"{name}.bias", weights) if has_bias else ""
            return self._fused(x, f"{name}.weight", weight, group, bias)
        y = self.matmul(x, f"{name}.weight", weight)
        return self.op("Add", y, self.plain(f"{name}.bias", weights)) if has_bias else y

    def matmul(self, x: str, name: str, weight: Weight) -> str:
        """Multiply (L, K) by a weight, stored (N, K) or quantized, to (L, N).

        Raises:
            ConfigError: the weight cannot be expressed in this form.
        """
        if not isinstance(weight, np.ndarray) and (group := self._fused_group(weight)):
            return self._fused(x, name, weight, group)
        if isinstance(weight, Int4Weight):
            return self.op("MatMul", x, self._dequantize_int4(name, weight))
        if isinstance(weight, Int8Weight):
            if self.form.is_for_ort:
                return self._matmul_integers(x, name, weight)
            if weight.input_scale is None:
                raise ConfigError(f"{name} has no input scale, which {self.form} needs; calibrate it")
            return self.op("MatMul", self._fake_quantize(x, weight.input_scale), self._dequantize_int8(name, weight))
        return self.op("MatMul", x, self.weight(f"{name}.T", weight.T))

    def layer_norm(self, x: str, name: str, weights: Weights, eps: float) -> str:
        """LayerNorm over the last dimension; its sums are float32 in every form."""
        scale, bias = (self.plain(f"{name}.{key}", weights) for key in ("weight", "bias"))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, name: str, weights: Weights, eps: float) -> str:
        """RMSNorm over the last dimension; its sums are float32 in every form, since float16 ends below 256 squared."""
        scale = self.plain(f"{name}.weight", weights)
        if self.form.decoder == "in_place":
            return self.op("RMSNormalization", x, scale, axis=-1, epsilon=eps, stash_type=TensorProto.FLOAT)
        wide = self.cast(x, "float32")
        mean = self.op("ReduceMean", self.op("Mul", wide, wide), self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.scalar(eps, "float32")))
        normed = self.op("Div", wide, root)
        if self.form.dtype != "float32":
            normed = self.op("Cast", normed, to=self._onnx_type(""))
        return self.op("Mul", normed, scale)

    def gelu(self, x: str) -> str:
        """Exact GELU: x/2 (1 + erf(x / sqrt 2))."""
        erf = self.op("Erf", self.op("Mul", x, self.scalar(0.5**0.5)))
        return self.op("Mul", self.op("Mul", x, self.scalar(0.5)), self.op("Add", erf, self.scalar(1.0)))

    def gelu_tanh(self, x: str) -> str:
        """GELU in its tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
        cube = self.op("Mul", self.op("Mul", x, x), x)
        inner = self.op("Add", x, self.op("Mul", cube, self.scalar(0.044715)))
        tanh = self.op("Tanh", self.op("Mul", inner, self.scalar((2 / np.pi) ** 0.5)))
        return self.op("Mul", self.op("Mul", x, self.scalar(0.5)), self.op("Add", tanh, self.scalar(1.0)))

    def silu(self, x: str) -> str:
        """X * sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def finish(self, offset_by_weight: dict[str, int]) -> onnx.ModelProto:
        """Return the model, whose weights lie at the given offsets of the weights file."""
        initializers = [*self._constants.values()]
        initializers += [_external(name, array, offset_by_weight[name]) for name, array in self.weights.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", self.form.opset)]
        if self.form.has_fused_operators:
            opsets.append(helper.make_opsetid(ORT_DOMAIN, 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="nvila_ros")

    def _store(self, name: str, array: np.ndarray) -> str:
        name = f"{name}.{array.dtype.name}"
        self.weights[name] = array
        return name

    def _onnx_type(self, dtype: str) -> int:
        return ONNX_TYPE[np.dtype(dtype or self.form.dtype)]

    def _scale(self, name: str, scale: np.ndarray) -> str:
        """Store scales in the form's dtype.

        Raises:
            ConfigError: a scale is zero or infinite in that dtype.
        """
        kept = scale.astype(self.form.dtype)
        if not (np.isfinite(kept) & (kept > 0)).all():
            found = f"{scale.min():.3g} to {scale.max():.3g}"
            raise ConfigError(f"scales of {name} must be positive {kept.dtype}, got {found}; leave it unquantized")
        return self.weight(f"{name}.scale", kept)

    def _dequantize_int4(self, name: str, weight: Int4Weight) -> str:
        """Return (K, N): the form that TensorRT fuses into its GEMM and ONNX Runtime into MatMulNBits."""
        values = self._store(f"{name}.T", np.ascontiguousarray(weight.values_KN).view(ml_dtypes.int4))
        scale = self._scale(name, weight.scale_GN)
        return self.op("DequantizeLinear", values, scale, axis=0, block_size=weight.group_size)

    def _fused_group(self, weight: Int4Weight | Int8Weight) -> int:
        """Return the inputs that share a scale in the fused form of a weight, or 0 if there is none."""
        if self.form.maps != "fused":
            return 0
        if isinstance(weight, Int4Weight):
            return weight.group_size if weight.group_size in FUSED_GROUPS else 0
        if weight.input_scale is not None:
            return 0
        return max((group for group in FUSED_GROUPS if len(weight.values_KN) % group == 0), default=0)

    def _fused(self, x: str, name: str, weight: Int4Weight | Int8Weight, group: int, bias: str = "") -> str:
        """Multiply in integers; values have an offset of 8 or 128, and an output's are contiguous in its groups."""
        (num_in, num_out), bits = weight.values_KN.shape, 4 if isinstance(weight, Int4Weight) else 8
        blocks = np.empty((num_out, num_in // group, group * bits // 8), np.uint8)
        for start in range(0, num_out, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            values_NK = weight.values_KN[:, rows].T
            packed = pack_nibbles(values_NK) ^ 0x88 if bits == 4 else values_NK.view(np.uint8) ^ 0x80
            blocks[rows] = packed.reshape(blocks[rows].shape)
        scale = weight.scale_GN.T if isinstance(weight, Int4Weight) else np.repeat(weight.scale_N, num_in // group)
        inputs = [self._store(f"{name}.fused", blocks), self.weight(f"{name}.fused.scale", scale.reshape(-1))]
        inputs += ["", "", bias] if bias else []  # the empty ones: zero points, and an order of the groups
        sizes = {"K": num_in, "N": num_out, "bits": bits, "block_size": group, "accuracy_level": EIGHT_BITS}
        return self.op("MatMulNBits", x, *inputs, domain=ORT_DOMAIN, **sizes)

    def _dequantize_int8(self, name: str, weight: Int8Weight) -> str:
        """Return (K, N) with a scale for each output."""
        values = self._store(f"{name}.T", np.ascontiguousarray(weight.values_KN))
        return self.op("DequantizeLinear", values, self._scale(name, weight.scale_N), axis=1)

    def _fake_quantize(self, x: str, scale: float) -> str:
        """Round to eight bits by a calibrated scale; maps of one input share the nodes, as q, k and v do."""
        if (x, scale) not in self._rounded:
            step, zero = self.scalar(scale), self.constant(np.array(0, np.int8))
            values = self.op("QuantizeLinear", x, step, zero)
            self._rounded[x, scale] = self.op("DequantizeLinear", values, step, zero)
        return self._rounded[x, scale]

    def _matmul_integers(self, x: str, name: str, weight: Int8Weight) -> str:
        """Multiply in integers, the input rounded by its scale or, without one, each row by its own maximum.

        Explicit, since ONNX Runtime recognizes only some products of Q/DQ pairs as integer products. The inputs have an
        offset of 128 in uint8: it multiplies two signed matrices ten times slower. So have the weights where its
        product of unsigned and signed numbers saturates.
        """
        values_KN = np.ascontiguousarray(weight.values_KN)
        rows, row_scale = self._round_rows(x, weight.input_scale)
        if sums_int8_exactly():
            sums = self.op("MatMulInteger", rows, self._store(f"{name}.T", values_KN), self._middle())
        else:
            values = self._store(f"{name}.T.u8", values_KN.view(np.uint8) ^ 0x80)
            sums = self.op("MatMulInteger", rows, values, self._middle(), self._middle())
        y = self.op("Mul", self.op("Cast", sums, to=TensorProto.FLOAT), self._scale(name, weight.scale_N))
        return self.op("Mul", y, row_scale)

    def _round_rows(self, x: str, scale: float | None) -> tuple[str, str]:
        """Return x in eight bits and its scale, or that of each row; maps of one input share them."""
        if (x, scale) in self._rows:
            return self._rows[x, scale]
        if scale is not None:
            step = self.scalar(scale)
            rows = self.op("QuantizeLinear", x, step, self._middle())
        else:
            largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
            # The maximum of a row of zeros is 0; any positive scale keeps it zero.
            step = self.op("Mul", self.op("Max", largest, self.scalar(1e-12)), self.scalar(1 / 127))
            rounded = self.op("Add", self.op("Round", self.op("Div", x, step)), self.scalar(128))
            rows = self.op("Cast", rounded, to=TensorProto.UINT8)
        self._rows[x, scale] = (rows, step)
        return rows, step

    def _middle(self) -> str:
        return self.constant(np.array(128, np.uint8))


def _external(name: str, array: np.ndarray, offset: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=ONNX_TYPE[array.dtype], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", num_bytes(array))):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def num_bytes(array: np.ndarray) -> int:
    """Return the bytes of an array in the weights file; two values of four bits share a byte."""
    return -(-array.size // 2) if array.dtype == ml_dtypes.int4 else array.nbytes


def pack(array: np.ndarray) -> np.ndarray:
    """Return an array in the layout of the weights file; of two four-bit values the first is in the low bits."""
    if array.dtype != ml_dtypes.int4:
        return array
    values = array.reshape(-1).view(np.int8)
    values = np.append(values, np.int8(0)) if values.size % 2 else values
    return pack_nibbles(values[None])[0]
