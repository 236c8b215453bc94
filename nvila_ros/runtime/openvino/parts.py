"""The parts of NVILA as OpenVINO models, built node by node from spec and weights.

Nodes are laid out so that the CPU plugin finds its fused kernels: root-mean-square norms, rotary positions, compressed
matrices and attention. The decoder is cut into stages of some layers, each a model of its own without a state: past
keys and values go in, and the new rows come out.

Shapes: C channels, P patches, E vision width, G visual tokens, L tokens in this call, T past tokens, M = T + L, R
tokens whose logits are wanted, D decoder width, A query heads, K kv heads, Q = A / K, S head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nvila_ros.models.quantized import Int8Weight, Weight, join_outputs
from nvila_ros.models.spec import DecoderSpec, ProjectorSpec, VisionSpec
from nvila_ros.runtime.openvino.api import ops, ov
from nvila_ros.runtime.openvino.weights import Value, WeightStore

Weights = Mapping[str, Weight]

DYNAMIC_GROUP = 128
"""Inputs that share a scale where activations are rounded to eight bits while the model runs."""


class Pen:
    """Draws the operations that the parts share; every method returns the value that it makes."""

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
        """Multiply by several weights at once: fewer and larger products leave the threads less to wait for."""
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
        """Multiply by a weight, in integers where it says how."""
        if isinstance(weight, Int8Weight) and weight.input_scale is not None:
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
        share = ops.divide(scalar(1), ops.sqrt(ops.add(mean, scalar(eps))))
        return ops.multiply(ops.multiply(x, share), self.vector(f"{name}.weight")).output(0)

    def split_heads(self, x: Value, num_heads: int, head_size: int) -> Value:
        """Turn (1, L, heads * S) into (1, heads, L, S)."""
        return ops.transpose(ops.reshape(x, ints(0, 0, num_heads, head_size), True), ints(0, 2, 1, 3)).output(0)

    def join_heads(self, x: Value, width: int) -> Value:
        """Turn (1, heads, L, S) into (1, L, heads * S)."""
        return ops.reshape(ops.transpose(x, ints(0, 2, 1, 3)), ints(0, 0, width), True).output(0)


def draw_vision(spec: VisionSpec, weights: Weights, store: WeightStore, attention: ov.Type = ov.Type.f32) -> ov.Model:
    """Draw `tile` (1, C, H, W) to `feat` (1, P, E); `attention` is what the attention alone is computed in."""
    pen = Pen(weights, store)
    tile = parameter("tile", [1, 3, spec.image_px, spec.image_px])
    stem = "vision_tower.vision_model"
    kernel, step = pen.vector(f"{stem}.embeddings.patch_embedding.weight"), [spec.patch_px, spec.patch_px]
    x = ops.convolution(tile, kernel, step, [0, 0], [0, 0], [1, 1])
    x = ops.transpose(ops.reshape(x, ints(0, spec.width, spec.num_patches), True), ints(0, 2, 1))
    x = ops.add(x, pen.vector(f"{stem}.embeddings.patch_embedding.bias"))
    x = ops.add(x, pen.vector(f"{stem}.embeddings.position_embedding.weight")).output(0)
    for i in range(spec.num_live_layers):
        x = _vision_layer(pen, spec, f"{stem}.encoder.layers.{i}", x, attention)
    return finish("vision", {"feat": x}, [tile])


def _vision_layer(pen: Pen, spec: VisionSpec, name: str, x: Value, attention: ov.Type) -> Value:
    normed = pen.layer_norm(x, f"{name}.layer_norm1", spec.norm_eps)
    # Not joined, since so many rows would be copied to split them again; halved before they are moved for attention.
    head_size = spec.width // spec.num_heads
    q, k, v = (pen.linear(normed, f"{name}.self_attn.{key}_proj") for key in "qkv")
    heads = (ops.convert(head, attention) for head in (ops.multiply(q, scalar(head_size**-0.5)), k, v))
    q, k, v = (pen.split_heads(head, spec.num_heads, head_size) for head in heads)
    share = ops.softmax(ops.matmul(q, k, False, True), -1)
    mixed = pen.join_heads(ops.matmul(share, v, False, False), spec.width)
    mixed = ops.convert(mixed, np.float32).output(0)
    x = ops.add(x, pen.linear(mixed, f"{name}.self_attn.out_proj")).output(0)
    normed = pen.layer_norm(x, f"{name}.layer_norm2", spec.norm_eps)
    hidden = ops.gelu(pen.linear(normed, f"{name}.mlp.fc1"), "tanh").output(0)
    return ops.add(x, pen.linear(hidden, f"{name}.mlp.fc2")).output(0)


def draw_projector(spec: ProjectorSpec, grid: int, weights: Weights, store: WeightStore) -> ov.Model:
    """Draw `feat` (1, P, E) to `visual` (1, G, D)."""
    pen, name = Pen(weights, store), "mm_projector.layers"
    feat = parameter("feat", [1, grid * grid, spec.in_width])
    x = _space_to_depth(feat, grid, spec.downsample, spec.in_width)
    x = pen.linear(pen.layer_norm(x, f"{name}.1", 1e-5), f"{name}.2")
    x = ops.gelu(x, "erf").output(0)
    if spec.kind == "mlp_downsample_3x3_fix":
        x = pen.linear(pen.layer_norm(x, f"{name}.4", 1e-5), f"{name}.5")
        x = pen.linear(ops.gelu(x, "erf").output(0), f"{name}.7")
    else:
        x = pen.linear(x, f"{name}.4")
    return finish("projector", {"visual": x}, [feat])


def _space_to_depth(feat: Value, grid: int, r: int, e: int) -> Value:
    """Zero-pad at the bottom and right, then merge blocks in the order (row in block, column in block, channel)."""
    pad = -grid % r
    blocks = (grid + pad) // r
    x = ops.pad(ops.reshape(feat, ints(1, grid, grid, e), False), ints(0, 0, 0, 0), ints(0, pad, pad, 0), "constant")
    x = ops.transpose(ops.reshape(x, ints(blocks, r, blocks, r, e), False), ints(0, 2, 1, 3, 4))
    return ops.reshape(x, ints(1, blocks * blocks, r * r * e), False).output(0)


def draw_stage(
    spec: DecoderSpec, layers: range, weights: Weights, store: WeightStore, attention: ov.Type = ov.Type.f32
) -> ov.Model:
    """Draw some layers of the decoder: `hidden` (1, L, D) to `hidden_out`, alike or (1, R, D) after the last layer.

    Other inputs: `cos` and `sin` (1, 1, L, S), the additive `mask` (1, 1, L, M), `rows` (R,) int64, which of the L
    tokens logits are wanted of, and for each layer `past_k_0`... (T, K, S). Other outputs: `new_k_0`... (L, K, S).
    `attention` is what the attention alone is computed in.
    """
    stage = _Stage(spec, Pen(weights, store), attention)
    x = stage.hidden
    for i in layers:
        # Behind its keys and values, the last layer has no work for tokens that no one asks about.
        x = stage.layer(i, x, is_last=i == spec.num_layers - 1)
    return finish("stage", {"hidden_out": x, **stage.new}, stage.inputs)


class _Stage:
    """Some layers of the decoder, and what they take and give beside `hidden`."""

    def __init__(self, spec: DecoderSpec, pen: Pen, attention: ov.Type) -> None:
        self.spec, self.pen, self.attention = spec, pen, attention
        self.hidden = parameter("hidden", [1, -1, spec.width])
        self.cos, self.sin = (parameter(name, [1, 1, -1, spec.head_size]) for name in ("cos", "sin"))
        mask, self.rows = parameter("mask", [1, 1, -1, -1]), parameter("rows", [-1], np.int64)
        self.mask = ops.convert(mask, attention).output(0)
        self.inputs = [self.hidden, self.cos, self.sin, mask, self.rows]
        self.new: dict[str, Value] = {}

    def layer(self, i: int, x: Value, is_last: bool) -> Value:
        """Return the hidden states after one layer; after the last, those of the wanted tokens alone."""
        pen, name = self.pen, f"llm.model.layers.{i}"
        normed = pen.rms_norm(x, f"{name}.input_layernorm", self.spec.norm_eps)
        x = self._wanted(x, 1) if is_last else x
        mixed = pen.join_heads(self._attend(i, normed, is_last), self.spec.width)
        x = ops.add(x, pen.linear(mixed, f"{name}.self_attn.o_proj")).output(0)
        normed = pen.rms_norm(x, f"{name}.post_attention_layernorm", self.spec.norm_eps)
        # Not joined as q, k and v are: the plugin folds what follows into a product, but not past a split.
        gate = ops.swish(pen.linear(normed, f"{name}.mlp.gate_proj"))
        both = ops.multiply(gate, pen.linear(normed, f"{name}.mlp.up_proj")).output(0)
        return ops.add(x, pen.linear(both, f"{name}.mlp.down_proj")).output(0)

    def _attend(self, i: int, normed: Value, is_last: bool) -> Value:
        """Return (1, A, L, S), or (1, A, R, S), the query heads of one kv head as heads of its own batch."""
        spec, pen, s = self.spec, self.pen, self.spec.head_size
        num_kv = spec.num_kv_heads
        heads = pen.linears(normed, *(f"llm.model.layers.{i}.self_attn.{key}_proj" for key in "qkv"))
        counts = (spec.num_heads, num_kv, num_kv)
        q, k, v = (pen.split_heads(head, count, s) for head, count in zip(heads, counts, strict=True))
        q, k = (_rotate(head, self.cos, self.sin, s) for head in (q, k))
        all_k, all_v = self._append(f"k_{i}", k), self._append(f"v_{i}", v)
        q, mask = (self._wanted(value, 2) if is_last else value for value in (q, self.mask))
        q = ops.reshape(ops.convert(q, self.attention), ints(num_kv, spec.num_heads // num_kv, -1, s), False)
        mixed = ops.scaled_dot_product_attention(q, all_k, all_v, mask)  # (K, Q, L, S)
        return ops.reshape(ops.convert(mixed, np.float32), ints(1, spec.num_heads, -1, s), False).output(0)

    def _append(self, name: str, new: Value) -> Value:
        """Return past and new rows, (K, 1, M, S), and declare the past as an input and the new ones as an output."""
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
    turned = ops.concat([ops.multiply(second, scalar(-1)), first], -1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin)).output(0)


def draw_head(spec: DecoderSpec, head: Weight, weights: Weights, store: WeightStore) -> ov.Model:
    """Draw `hidden` (1, R, D) to `logits` (1, R, V)."""
    pen = Pen(weights, store)
    hidden = parameter("hidden", [1, -1, spec.width])
    logits = pen.product(pen.rms_norm(hidden, "llm.model.norm", spec.norm_eps), head)
    return finish("head", {"logits": logits}, [hidden])


def parameter(name: str, shape: list[int], dtype: type = np.float32) -> Value:
    """Declare an input; -1 is a dimension that changes from call to call."""
    value = ops.parameter(shape, dtype).output(0)
    value.set_names({name})
    return value


def finish(name: str, outputs: Mapping[str, Value], inputs: list[Value]) -> ov.Model:
    """Return the model of what was drawn."""
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
