"""A thin pen for writing ONNX graphs node by node.

Graphs are written from the spec, not traced: the same graph comes out whatever torch is installed, and none is needed.
Weights stay outside the graph (external data), so a graph is some kilobytes and one weights file serves all parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # the lowest with LayerNormalization: read by every runtime that the project targets
WEIGHTS_FILE = "weights.bin"

Dim = int | str


class GraphPen:
    """Collects nodes; every method appends one and returns the name of its output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, np.ndarray] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, shape: Sequence[Dim]) -> str:
        """Declare a float32 input."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dim]) -> None:
        """Declare a float32 output under `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name: str, array: np.ndarray) -> str:
        """Refer to a float32 weight, kept outside the graph."""
        self.weights[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    def constant(self, array: np.ndarray) -> str:
        """Refer to a small constant, kept inside the graph; equal ones are stored once."""
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, num_outputs: int = 1, **attributes: object) -> str:
        """Append a node and return its first output's name; the others end in `:1`, `:2`."""
        stem = f"{kind}_{len(self._nodes)}"
        outputs = [stem, *(f"{stem}:{i}" for i in range(1, num_outputs))]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=stem, **attributes))
        return stem

    def scalar(self, value: float) -> str:
        """Refer to a float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def ints(self, *values: int) -> str:
        """Refer to a 1-D int64 constant: a shape, axes or starts."""
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes what is left."""
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *axes: int) -> str:
        """Permute the dimensions."""
        return self.op("Transpose", x, perm=list(axes))

    def linear(self, x: str, name: str, weights: dict[str, np.ndarray]) -> str:
        """Multiply by a stored (out, in) weight and add its bias, where it has one."""
        y = self.op("MatMul", x, self.weight(f"{name}.weight.T", weights[f"{name}.weight"].T))
        if f"{name}.bias" not in weights:
            return y
        return self.op("Add", y, self.weight(f"{name}.bias", weights[f"{name}.bias"]))

    def layer_norm(self, x: str, name: str, weights: dict[str, np.ndarray], eps: float) -> str:
        """LayerNorm over the last dimension."""
        scale, bias = (self.weight(f"{name}.{key}", weights[f"{name}.{key}"]) for key in ("weight", "bias"))
        return self.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)

    def rms_norm(self, x: str, name: str, weights: dict[str, np.ndarray], eps: float) -> str:
        """RMSNorm over the last dimension."""
        mean = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.scalar(eps)))
        return self.op("Mul", self.op("Div", x, root), self.weight(f"{name}.weight", weights[f"{name}.weight"]))

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
        """Return the checked model, whose weights lie at the given offsets of the weights file."""
        initializers = [*self._constants.values()]
        initializers += [_external(name, array, offset_by_weight[name]) for name, array in self.weights.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="nvila_ros")


def _external(name: str, array: np.ndarray, offset: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
