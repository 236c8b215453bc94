"""The parts of NVILA as OpenVINO models, built node by node from spec and weights.

Nodes are arranged so that the CPU plugin finds its fused kernels: RMSNorm, rotary positions, compressed matrices and
attention. The decoder is cut into stages of some layers. Each is a stateless model: past keys and values are inputs,
the new rows are outputs.

Shapes: C channels, P patches, E vision width, G visual tokens, L tokens in this call, T past tokens, M = T + L, R
tokens whose logits are wanted, D decoder width, A query heads, K kv heads, Q = A / K, S head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nvila_ros.models.host import sums_int8_exactly
from nvila_ros.models.quantized import Int8Weight, Weight, Weights, join_outputs
from nvila_ros.models.spec import DecoderSpec, ProjectorSpec, VisionSpec
from nvila_ros.runtime.openvino.api import ops, ov
from nvila_ros.runtime.openvino.weights import Value, WeightStore

DYNAMIC_GROUP = 128
"""Inputs that share a scale where activations are quantized to eight bits while the model runs."""


class ModelBuilder:
    """Builds the operations that the parts share; every method returns its output."""

    def __init__(self, weights: Weights, store: WeightStore) -> None:
        self._weights, self._store = weights, store

    def vector(self, name: str) -> Value:
        """Return a float weight as a constant."""
        return self._store.constant(np.asarray(self._weights[name], np.float32))

    def linear(self, x: Value, name: str) -> Value:
        """Multiply by a weight and add its bias, where it has one."""
        y = self.product(x, self._weights[f"{name}.weight"])
        return ops.add(y, self.vector(f"{name}.bias")).output(0) if f"{name}.bias" in self._weights else y

    def linears(self, x: Value, *names: str) -> list[Value]:
        """Multiply by several weights at once: fewer and larger products need fewer barriers."""
        weights = [self._weights[f"{name}.weight"] for name in names]
        joined = join_outputs(weights)
        if joined is None:
            return [self.linear(x, name) for name in names]
        y = self.product(x, joined)
        if f"{names[0]}.bias" in self._weights:
            bias = np.concatenate([np.asarray(self._weights[f"{name}.bias"], np.float32) for name in names])
            y = ops.add(y, self._store.constant(bias)).output(0)
        widths = [len(w) if isinstance(w, np.ndarray) else w.values_KN.shape[1] for w in weights]
        return ops.variadic_split(y, ops.constant(np.int64(2)), ints(*widths)).outputs()

    def product(self, x: Value, weight: Weight) -> Value:
        """Multiply by a weight, in integers where it is quantized so."""
        # Without such sums the plugin's int8 products saturate; it then multiplies in float by the rounded weights.
        if isinstance(weight, Int8Weight) and weight.input_scale is not None and sums_int8_exactly():
            low, high = (scalar(edge * weight.input_scale) for edge in (-128, 127))
            x = ops.fake_quantize(x, low, high, low, high, 256).output(0)
        return ops.matmul(x, self._store.matrix(weight), False, True).output(0)

    def layer_norm(self, x: Value, name: str, eps: float) -> Value:
        """LayerNorm over the last dimension."""
        normed = ops.mvn(x, ints(-1), True, eps, "inside_sqrt")
        return ops.add(ops.multiply(normed, self.vector(f"{name}.weight")), self.vector(f"{name}.bias")).output(0)

    def rms_norm(self, x: Value, name: str, eps: float) -> Value:
        """RMSNorm over the last dimension."""
        mean = ops.reduce_mean(ops.power(x, scalar(2)), ints(-1), True)
        scale = ops.divide(scalar(1), ops.sqrt(ops.add(mean, scalar(eps))))
        return ops.multiply(ops.multiply(x, scale), self.vector(f"{name}.weight")).output(0)

    def split_heads(self, x: Value, num_heads: int, head_size: int) -> Value:
        """Turn (1, L, heads * S) into (1, heads, L, S)."""
        return ops.transpose(ops.reshape(x, ints(0, 0, num_heads, head_size), True), ints(0, 2, 1, 3)).output(0)

    def join_heads(self, x: Value, width: int) -> Value:
        """Turn (1, heads, L, S) into (1, L, heads * S)."""
        return ops.reshape(ops.transpose(x, ints(0, 2, 1, 3)), ints(0, 0, width), True).output(0)


def build_vision(spec: VisionSpec, weights: Weights, store: WeightStore, attention: ov.Type = ov.Type.f32) -> ov.Model:
    """Build `tile` (1, C, H, W) to `feat` (1, P, E); `attention` is the type of the attention alone."""
    builder = ModelBuilder(weights, store)
    tile = parameter("tile", [1, 3, spec.image_px, spec.image_px])
    stem = "vision_tower.vision_model"
    kernel, step = builder.vector(f"{stem}.embeddings.patch_embedding.weight"), [spec.patch_px, spec.patch_px]
    x = ops.convolution(tile, kernel, step, [0, 0], [0, 0], [1, 1])
    x = ops.transpose(ops.reshape(x, ints(0, spec.width, spec.num_patches), True), ints(0, 2, 1))
    x = ops.add(x, builder.vector(f"{stem}.embeddings.patch_embedding.bias"))
    x = ops.add(x, builder.vector(f"{stem}.embeddings.position_embedding.weight")).output(0)
    for i in range(spec.num_live_layers):
        x = _vision_layer(builder, spec, f"{stem}.encoder.layers.{i}", x, attention)
    return finish("vision", {"feat": x}, [tile])


def _vision_layer(builder: ModelBuilder, spec: VisionSpec, name: str, x: Value, attention: ov.Type) -> Value:
    normed = builder.layer_norm(x, f"{name}.layer_norm1", spec.norm_eps)
    # Not joined: to split so many rows again would copy them. Converted before the transpose, which then moves half.
    head_size = spec.width // spec.num_heads
    q, k, v = (builder.linear(normed, f"{name}.self_attn.{key}_proj") for key in "qkv")
    heads = (ops.convert(head, attention) for head in (ops.multiply(q, scalar(head_size**-0.5)), k, v))
    q, k, v = (builder.split_heads(head, spec.num_heads, head_size) for head in heads)
    shares = ops.softmax(ops.matmul(q, k, False, True), -1)
    mixed = builder.join_heads(ops.matmul(shares, v, False, False), spec.width)
    mixed = ops.convert(mixed, np.float32).output(0)
    x = ops.add(x, builder.linear(mixed, f"{name}.self_attn.out_proj")).output(0)
    normed = builder.layer_norm(x, f"{name}.layer_norm2", spec.norm_eps)
    hidden = ops.gelu(builder.linear(normed, f"{name}.mlp.fc1"), "tanh").output(0)
    return ops.add(x, builder.linear(hidden, f"{name}.mlp.fc2")).output(0)


def build_projector(spec: ProjectorSpec, grid: int, weights: Weights, store: WeightStore) -> ov.Model:
    """Build `feat` (1, P, E) to `visual` (1, G, D)."""
    builder, name = ModelBuilder(weights, store), "mm_projector.layers"
    feat = parameter("feat", [1, grid * grid, spec.in_width])
    x = _space_to_depth(feat, grid, spec)
    x = builder.linear(builder.layer_norm(x, f"{name}.1", 1e-5), f"{name}.2")
    x = ops.gelu(x, "erf").output(0)
    if spec.kind == "mlp_downsample_3x3_fix":
        x = builder.linear(builder.layer_norm(x, f"{name}.4", 1e-5), f"{name}.5")
        x = builder.linear(ops.gelu(x, "erf").output(0), f"{name}.7")
    else:
        x = builder.linear(x, f"{name}.4")
    return finish("projector", {"visual": x}, [feat])


def _space_to_depth(feat: Value, grid: int, spec: ProjectorSpec) -> Value:
    """Zero-pad at the bottom and right, then merge blocks in the order (row in block, column in block, channel)."""
    r, e = spec.downsample, spec.in_width
    pad = -grid % r
    blocks = (grid + pad) // r
    x = ops.pad(ops.reshape(feat, ints(1, grid, grid, e), False), ints(0, 0, 0, 0), ints(0, pad, pad, 0), "constant")
    x = ops.transpose(
        ops.reshape(x, ints(blocks, r, blocks, r, e), False),
        ints(*((2, 0) if spec.is_column_major else (0, 2)), 1, 3, 4),
    )
    return ops.reshape(x, ints(1, blocks * blocks, r * r * e), False).output(0)


def build_stage(
    spec: DecoderSpec, layers: range, weights: Weights, store: WeightStore, attention: ov.Type = ov.Type.f32
) -> ov.Model:
    """Build some layers of the decoder: `hidden` (1, L, D) to `hidden_out`, alike or (1, R, D) after the last layer.

    Other inputs: `cos` and `sin` (1, 1, L, S), the additive `mask` (1, 1, L, M), `rows` (R,) int64, the tokens whose
    logits are wanted, and for each layer `past_k_0`... (T, K, S). Other outputs: `new_k_0`... (L, K, S). `attention` is
    the type of the attention alone.
    """
    stage = _DecoderStage(spec, ModelBuilder(weights, store), attention)
    x = stage.hidden
    for i in layers:
        # In the last layer, tokens whose logits are not wanted need only keys and values.
        x = stage.layer(i, x, is_last=i == spec.num_layers - 1)
    return finish("stage", {"hidden_out": x, **stage.new}, stage.inputs)


class _DecoderStage:
    """Some layers of the decoder, with their inputs and outputs beside `hidden`."""

    def __init__(self, spec: DecoderSpec, builder: ModelBuilder, attention: ov.Type) -> None:
        self.spec, self.builder, self.attention = spec, builder, attention
        self.hidden = parameter("hidden", [1, -1, spec.width])
        self.cos, self.sin = (parameter(name, [1, 1, -1, spec.head_size]) for name in ("cos", "sin"))
        mask, self.rows = parameter("mask", [1, 1, -1, -1]), parameter("rows", [-1], np.int64)
        self.mask = ops.convert(mask, attention).output(0)
        self.inputs = [self.hidden, self.cos, self.sin, mask, self.rows]
        self.new: dict[str, Value] = {}

    def layer(self, i: int, x: Value, is_last: bool) -> Value:
        """Return the hidden states after one layer; after the last, those of the wanted tokens alone."""
        builder, name = self.builder, f"llm.model.layers.{i}"
        normed = builder.rms_norm(x, f"{name}.input_layernorm", self.spec.norm_eps)
        x = self._wanted(x, 1) if is_last else x
        mixed = builder.join_heads(self._attend(i, normed, is_last), self.spec.width)
        x = ops.add(x, builder.linear(mixed, f"{name}.self_attn.o_proj")).output(0)
        normed = builder.rms_norm(x, f"{name}.post_attention_layernorm", self.spec.norm_eps)
        # Not joined as q, k and v are: the plugin fuses what follows a product, but not beyond a split.
        gate = ops.swish(builder.linear(normed, f"{name}.mlp.gate_proj"))
        both = ops.multiply(gate, builder.linear(normed, f"{name}.mlp.up_proj")).output(0)
        return ops.add(x, builder.linear(both, f"{name}.mlp.down_proj")).output(0)

    def _attend(self, i: int, normed: Value, is_last: bool) -> Value:
        """Return (1, A, L, S), or (1, A, R, S), the query heads of one kv head as heads of its own batch."""
        spec, builder, s = self.spec, self.builder, self.spec.head_size
        num_kv = spec.num_kv_heads
        heads = builder.linears(normed, *(f"llm.model.layers.{i}.self_attn.{key}_proj" for key in "qkv"))
        counts = (spec.num_heads, num_kv, num_kv)
        q, k, v = (builder.split_heads(head, count, s) for head, count in zip(heads, counts, strict=True))
        q, k = (_rotate(head, self.cos, self.sin, s) for head in (q, k))
        all_k, all_v = self._append(f"k_{i}", k), self._append(f"v_{i}", v)
        q, mask = (self._wanted(value, 2) if is_last else value for value in (q, self.mask))
        q = ops.reshape(ops.convert(q, self.attention), ints(num_kv, spec.num_heads // num_kv, -1, s), False)
        mixed = ops.scaled_dot_product_attention(q, all_k, all_v, mask)  # (K, Q, L, S)
        return ops.reshape(ops.convert(mixed, np.float32), ints(1, spec.num_heads, -1, s), False).output(0)

    def _append(self, name: str, new: Value) -> Value:
        """Return past and new rows, (K, 1, M, S); declare the past as an input and the new rows as an output."""
        num_kv, s = self.spec.num_kv_heads, self.spec.head_size
        past = parameter(f"past_{name}", [-1, num_kv, s])
        self.inputs.append(past)
        rows = ops.reshape(ops.transpose(new, ints(0, 2, 1, 3)), ints(-1, num_kv, s), False).output(0)
        self.new[f"new_{name}"] = rows
        all_rows = ops.convert(ops.concat([past, rows], 0), self.attention)
        return ops.unsqueeze(ops.transpose(all_rows, ints(1, 0, 2)), ints(1)).output(0)

    def _wanted(self, x: Value, axis: int) -> Value:
        return ops.gather(x, self.rows, ops.constant(np.int64(axis))).output(0)


def _rotate(x: Value, cos: Value, sin: Value, head_size: int) -> Value:
    """Rotary positions on (1, heads, L, S); channel i pairs with i + S/2."""
    half = head_size // 2
    first, second = ops.variadic_split(x, ops.constant(np.int64(3)), ints(half, half)).outputs()
    rotated = ops.concat([ops.multiply(second, scalar(-1)), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(rotated, sin)).output(0)


def build_head(spec: DecoderSpec, head: Weight, weights: Weights, store: WeightStore) -> ov.Model:
    """Build `hidden` (1, R, D) to `logits` (1, R, V)."""
    builder = ModelBuilder(weights, store)
    hidden = parameter("hidden", [1, -1, spec.width])
    logits = builder.product(builder.rms_norm(hidden, "llm.model.norm", spec.norm_eps), head)
    return finish("head", {"logits": logits}, [hidden])


def parameter(name: str, shape: list[int], dtype: type = np.float32) -> Value:
    """Declare an input; -1 is a dimension that changes from call to call."""
    value = ops.parameter(shape, dtype).output(0)
    value.set_names({name})
    return value


def finish(name: str, outputs: Mapping[str, Value], inputs: list[Value]) -> ov.Model:
    """Return the model of these outputs and inputs."""
    for key, value in outputs.items():
        value.set_names({key})
    parameters = [value.get_node() for value in inputs]
    return ov.Model([ops.result(value) for value in outputs.values()], parameters, name)


def scalar(value: float) -> ov.Node:
    """Return a float32 scalar."""
    return ops.constant(np.float32(value))


def ints(*values: int) -> ov.Node:
    """Return a 1-D int64 constant: a shape or axes."""
    return ops.constant(np.array(values, np.int64))
