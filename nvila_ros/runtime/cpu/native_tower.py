"""The vision tower on our own kernels, where the processor has a matrix unit: its layers are one call in C++.

Products are of eight-bit integers, attention is of bfloat16, all else is float32. OpenVINO turns a tile into patches
and runs the projector. Weights must have eight bits in every layer; inputs are rounded by the scale that came with a
weight, else each row by its largest number.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, M inner width, G visual tokens, D decoder width.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nvila_ros.models.quantized import Int8Weight, Weight, as_array
from nvila_ros.models.spec import ModelSpec, VisionSpec
from nvila_ros.runtime.cpu.native_decoder import UnknownFormError
from nvila_ros.runtime.cpu.native_library import MatrixView, Span, TowerSpec, check, libraries, span
from nvila_ros.runtime.openvino.models import OpenvinoVision
from nvila_ros.runtime.openvino.weights import WeightStore

LANES = 16  # what every width must be a multiple of
TILE_INPUTS = 64  # that are multiplied at once
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
OUTER, INNER = "mlp.fc1", "mlp.fc2"
NORMS = ("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias")
VECTORS = (*NORMS, *(f"{name}.bias" for name in MATRICES))
STEM = "vision_tower.vision_model.encoder.layers"


class NativeTower:
    """The layers of a tower in C++. One thread uses it at a time.

    Args:
        spec: shapes.
        weights: by `part.key`.
        threads: how many compute, the caller's among them; 0 takes every core. They sleep between calls.
        library: one with tiles, by default the fastest.

    Raises:
        UnknownFormError: there is no kernel for these shapes or weights.
    """

    def __init__(
        self, spec: VisionSpec, weights: Mapping[str, Weight], threads: int = 0, library: ctypes.CDLL | None = None
    ) -> None:
        _check_form(spec)
        self._library, self._spec = library or libraries()[0], spec
        self._inner = -(-spec.mlp_width // TILE_INPUTS) * TILE_INPUTS
        sizes = (spec.width, spec.num_live_layers, spec.num_heads, self._inner, spec.num_patches, spec.norm_eps)
        self._handle = ctypes.c_void_p()
        num_threads = threads or len(os.sched_getaffinity(0))
        self._check(self._library.nvila_tower_new(ctypes.byref(TowerSpec(*sizes)), num_threads, self._handle))
        # Not at the interpreter's exit, which ends its threads in any case.
        weakref.finalize(self, self._library.nvila_tower_delete, self._handle).atexit = False
        for layer in range(spec.num_live_layers):
            self._set_layer(layer, weights)

    def run(self, patches_PE: np.ndarray) -> np.ndarray:
        """Return what the last layer makes of patches, (P, E) float32.

        Raises:
            ShapeError: the patches have another shape.
        """
        feat_PE = np.array(patches_PE, np.float32, order="C")
        self._check(self._library.nvila_tower_run(self._handle, feat_PE.ctypes.data, feat_PE.size))
        return feat_PE

    def _set_layer(self, layer: int, weights: Mapping[str, Weight]) -> None:
        stem, extra = f"{STEM}.{layer}", self._inner - self._spec.mlp_width
        for slot, (name, weight) in enumerate(zip(MATRICES, _known(stem, weights), strict=True)):
            # Zeros fill the last tile of inputs: the inner numbers beyond the model's are those of GELU at zero.
            self._set_matrix(layer, slot, weight, (extra * (name == INNER), extra * (name == OUTER)))
        for slot, name in enumerate(VECTORS):
            vector = np.pad(as_array(weights, f"{stem}.{name}"), (0, extra * (name == f"{OUTER}.bias")))
            vector = np.ascontiguousarray(vector, np.float32)
            data, size = vector.ctypes.data, vector.size
            self._check(self._library.nvila_tower_set_vector(self._handle, layer, slot, data, size))

    def _set_matrix(self, layer: int, slot: int, weight: Int8Weight, extra: tuple[int, int]) -> None:
        values_KN = np.ascontiguousarray(np.pad(weight.values_KN, [(0, size) for size in extra]))
        scale_N = np.ascontiguousarray(np.pad(weight.scale_N, (0, extra[1])), np.float32)
        form = (*values_KN.shape, 1, 1, 8, 0, weight.input_scale or 0.0)
        view = MatrixView(span(values_KN), Span(scale_N.ctypes.data, scale_N.nbytes), values_KN.shape[1], 1, *form)
        self._check(self._library.nvila_tower_set_matrix(self._handle, layer, slot, ctypes.byref(view)))

    def _check(self, status: int) -> None:
        check(self._library, status)


class NativeVision:
    """The tower and the projector, the tower's layers in C++ and the rest on OpenVINO."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Weight], store: WeightStore, threads: int = 0) -> None:
        outside = replace(spec, vision=replace(spec.vision, num_live_layers=0))
        self._outside = OpenvinoVision(outside, weights, store, threads)
        self._tower = NativeTower(spec.vision, weights, threads)

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return np.stack([self._tower.run(patches_PE) for patches_PE in self._outside.vision(tile_NCHW)])

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return self._outside.project(feat_NPE)


def has_tower() -> bool:
    """Whether there is a library with tiles for this processor."""
    return bool(libraries()) and libraries()[0].nvila_isa() == b"amx"


def _check_form(spec: VisionSpec) -> None:
    head_size, rest = divmod(spec.width, spec.num_heads)
    if spec.width % LANES or rest or head_size % 2:
        raise UnknownFormError(f"the width must be a multiple of {LANES} and of an even head size, got {spec}")


def _known(stem: str, weights: Mapping[str, Weight]) -> list[Int8Weight]:
    """Return the matrices of a layer.

    Raises:
        UnknownFormError: there is no kernel for one of them.
    """
    known = [each for name in MATRICES if isinstance(each := weights[f"{stem}.{name}.weight"], Int8Weight)]
    if len(known) < len(MATRICES):
        raise UnknownFormError(f"a matrix of {stem} has no eight-bit weights")
    if len({each.input_scale for each in known[:3]}) > 1:
        raise UnknownFormError(f"q, k and v of {stem} round their input by different scales")
    return known
