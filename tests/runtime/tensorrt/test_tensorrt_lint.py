"""Kernels as TensorRT-RTX 1.7.1 described them for SM 8.6, and what is read from them.

The recorded lines: q, k and v of the tower in int8; its attention; a four-bit GEMM; one of the projector in float16; a
four-bit weight with a scale for each output, unpacked ahead of its GEMM; attention of one token over an appended cache,
of a prompt over a cache in place, and of one token over it.
"""

from dataclasses import fields
from pathlib import Path

import pytest

from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.runtime.tensorrt.lint import Findings, find, find_kernel_faults, read_kernels
from tests.export.random_models import make_spec

LINES = (Path(__file__).parent / "tensorrt_kernels.txt").read_text().splitlines()
TOWER = ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight.values",)
DECODER = ("llm.model.layers.0.mlp.up_proj.weight.values",)
NONE = dict.fromkeys((field.name for field in fields(Findings)), 0)
KV_HEADS, HEAD_SIZE = 2, 64
SPEC = make_spec("mlp_downsample", True, KV_HEADS, 2, 4, HEAD_SIZE)  # two layers each


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


def judge(part: str, *lines: int, form: GraphForm = TRT_KV, tensors: tuple[str, ...] = ()) -> list[str]:
    return find_kernel_faults(part, SPEC, tensors, [LINES[line] for line in lines], form)


def test_plan_is_told_in_words_what_it_is_not() -> None:
    assert judge("vision", 0, 1, 1, tensors=TOWER) == []
    assert judge("vision", 0, 3, 1, tensors=TOWER) == [
        "attention is fused in 1 of 2 layers",
        "1 products are not quantized, 0 intended",
    ]
    assert judge("vision", 3, 1, 1) == []  # a tower in half precision
    assert judge("projector", 3) == []
    assert judge("vision") == [
        "none of the builder's 0 lines describes a kernel in a known format; kernels were not checked"
    ]


def test_decoder_is_judged_by_profile_and_form() -> None:
    found = judge("decoder", 4, 6, 3, 5, tensors=DECODER)

    assert found == [
        "prefill: attention is fused in 1 of 2 layers",
        "prefill: 1 four-bit weights are unpacked to memory before they are multiplied",
        "decode: attention is fused in 1 of 2 layers",
        "decode: 2 keys and values are read from a copy of the cache",
    ]
    # What is appended is read from where it was put together, which is no finding there.
    appended = judge("decoder", 3, 6, 5, form=TRT_BASE, tensors=DECODER)
    assert "prefill: 2 keys and values are repeated for each query head" in appended
    assert not any("copy" in text for text in appended)
    assert "prefill: 1 products are not quantized, 0 intended" in judge(
        "decoder", 3, tensors=(*DECODER, "llm.lm_head.weight.values")
    )


def test_other_lines_are_passed_over() -> None:
    assert read_kernels(["", "Engine Layer Information:", "Name: Kernel, without more"]) == []
