"""Kernels as TensorRT-RTX 1.7.1 described them for SM 8.6, and what is read from them.

The recorded lines: q, k and v of the tower in int8; its attention; a four-bit GEMM; one of the projector in float16; a
four-bit weight with a scale for each output, unpacked ahead of its GEMM; attention of one token over an appended cache,
of a prompt over a cache in place, and of one token over it.
"""

from dataclasses import fields
from pathlib import Path

import pytest

from nvila_ros.runtime.tensorrt_lint import Findings, find, read_kernels

LINES = (Path(__file__).parent / "tensorrt_kernels.txt").read_text().splitlines()
NONE = dict.fromkeys((field.name for field in fields(Findings)), 0)
KV_HEADS, HEAD_SIZE = 2, 64


@pytest.mark.parametrize(
    ("line", "profile", "found"),
    [
        (0, 0, {"int8_gemms": 1}),
        (1, 0, {"attentions": 1}),
        (2, 0, {"int4_gemms": 1}),
        (3, 0, {"float_gemms": 1}),
        (4, 0, {"unpacked_int4": 1}),
        (5, 1, {"attentions": 1, "copied_kv": 2}),
        (6, 0, {"attentions": 1, "copied_kv": 2, "expanded_kv": 2}),
        (7, 1, {"attentions": 1}),
    ],
)
def test_kernel_is_counted_as_what_it_is(line: int, profile: int, found: dict[str, int]) -> None:
    kernels = read_kernels([LINES[line]])
    heads = (KV_HEADS, HEAD_SIZE) if line > 4 else ()  # the tower has no cache to look for

    assert find(kernels, profile, *heads) == Findings(**(NONE | found))
    assert find(kernels, 1 - profile, *heads) == Findings(**NONE)


def test_kernel_tells_what_it_reads_and_which_nodes_it_is() -> None:
    (kernel,) = read_kernels([LINES[0]])

    assert [(tensor.shape, tensor.dtype) for tensor in kernel.inputs] == [((-1, 128), "Int8")]
    assert [tensor.shape for tensor in kernel.matrices] == [(128, 384)]
    assert {"MatMul_8", "MatMul_12", "MatMul_16"} <= set(kernel.layers)


def test_profile_is_no_part_of_a_name() -> None:
    (kernel,) = read_kernels([LINES[7]])

    assert [tensor.name for tensor in kernel.inputs[:2]] == ["present_k_0", "present_v_0"]


def test_other_lines_are_passed_over() -> None:
    assert read_kernels(["", "Engine Layer Information:", "Name: Kernel, without more"]) == []
