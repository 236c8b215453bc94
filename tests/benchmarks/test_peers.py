"""The side-by-side benchmark: processes take turns, faults are told, ratios are those of the same rounds."""

from __future__ import annotations

import math
import sys
import time
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines import GB, MEMORY, OPENVINO_INT8, OURS, Q4_0, as_dict, decoder_rows
from benchmarks.peers.job import PeerJob, random_ids
from benchmarks.peers.llamacpp import write_gguf
from benchmarks.peers.rounds import PeerResult, PeerSetup, Runtime, find_missing, run_rounds
from benchmarks.peers.weights import EMBEDDING, HEAD, RandomWeights, write_hf_folder
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.models.spec import ModelSpec, ProjectorSpec
from nvila_ros.models.variants import VARIANTS

pytestmark = pytest.mark.slow  # starts a process for each runtime

READ = PeerSetup(MEMORY, "memory", "read", "")


def job(folder: Path, **changed: object) -> PeerJob:
    fields = {"variant": "NVILA-Lite-2B", "layers": 1, "tower_layers": 1, "prompt": 8, "tokens": 4}
    return PeerJob(**fields | {"threads": 1, "head_bits": 4, "folder": str(folder)} | changed)


def small_spec() -> ModelSpec:
    spec = VARIANTS["NVILA-Lite-2B"].spec
    tiny = {"width": 256, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 384, "vocab_size": 640}
    projector = ProjectorSpec(kind="mlp_downsample", in_width=spec.vision.width, out_width=tiny["width"])
    return replace(spec, projector=projector, decoder=replace(spec.decoder, **tiny))


def results(name: str, **seconds: list[list[float]]) -> PeerResult:
    return PeerResult(PeerSetup(name, "", "", ""), steps=seconds)


def is_stopped(runtime: Runtime) -> bool:
    """Whether the kernel holds its process, or does so within two seconds."""
    assert runtime._process is not None
    stat = Path(f"/proc/{runtime._process.pid}/stat")
    for _ in range(200):
        if stat.read_text().rsplit(")", 1)[1].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def test_a_runtime_is_stopped_whenever_it_is_not_measured(tmp_path: Path) -> None:
    runtime = Runtime(READ, job(tmp_path), tmp_path / "log")
    try:
        runtime.start()
        assert is_stopped(runtime)
        runtime.run_round()
        assert is_stopped(runtime)
    finally:
        runtime.stop()

    assert len(runtime.result.steps["read"]) == 1  # the one while it started is not counted


def test_the_others_are_sought_and_run_in_their_own_environment(tmp_path: Path) -> None:
    """An interpreter that has nothing but what Python ships, and one that is not there."""
    venv.create(tmp_path / "peers", with_pip=False)
    python = str(tmp_path / "peers" / "bin" / "python")
    bare, absent = job(tmp_path, python=python), job(tmp_path, python=str(tmp_path / "none"))
    peer = PeerSetup("tower", "ov_tower", "int8", "")

    faults = [run_rounds((peer,), each, 1, lambda text: None)["tower"].fault for each in (bare, absent)]

    assert faults[0].startswith("openvino and nncf and transformers and torch not installed")
    assert f"{absent.python} does not run" in faults[1]
    assert find_missing(sys.executable, ("json", "no_such", "no_such.part")) == ["no_such", "no_such.part"]
    assert not run_rounds((READ,), absent, 1, lambda text: None)[MEMORY].fault  # ours


def test_one_that_fails_leaves_the_others_in_the_race(tmp_path: Path) -> None:
    unknown = PeerSetup("unknown", "ours", "decoder", "")

    told = run_rounds((unknown, READ), job(tmp_path, variant="NVILA-None"), 2, lambda text: None)

    assert "NVILA-None" in told["unknown"].fault
    assert told["unknown"].steps == {}
    assert len(told[MEMORY].steps["read"]) == 2
    assert not told[MEMORY].fault


def test_ratios_are_of_the_same_round_and_of_those_the_median(tmp_path: Path) -> None:
    first = {
        OURS: results(OURS, prefill=[[2.0], [1.0]], decode=[[0.1, 0.2, 0.3], [0.4]]),
        Q4_0: results(Q4_0, prefill=[[3.0], [3.0]], decode=[[0.3], [1.0]]),
        "other": results("other", prefill=[[0.5], [0.75]], decode=[[0.8], [1.6]]),
        "absent": results("absent"),
        MEMORY: results(MEMORY, read=[[0.1], [0.05]]),
    }
    second = {
        OURS: results(OURS, prefill=[[9.0]], decode=[[0.9]]),
        "slow": results("slow", prefill=[[18.0]], decode=[[9.0]]),
    }
    second[MEMORY] = results(MEMORY, read=[[0.2]])
    tower = {
        OURS: results(OURS, tile=[[1.0]]),
        "a fp32": results("a fp32", tile=[[3.0]]),
        "b fp32": results("b fp32", tile=[[2.0]]),
        OPENVINO_INT8: results(OPENVINO_INT8, tile=[[0.5]]),
    }
    weights = RandomWeights(job(tmp_path).decoder_spec)

    told = as_dict(job(tmp_path), [first, second], tower, {"accuracy_fp32": 0.9})

    assert told["decode_vs"] == {Q4_0: 2.0, "other": 4.0, "slow": 10.0}
    assert told["prefill_vs"] == {Q4_0: 2.25, "other": 0.5, "slow": 2.0}
    assert (told["decode_ratio"], told["prefill_ratio"]) == (2.0, 0.5)
    assert (told["decode_vs_llamacpp"], told["prefill_vs_llamacpp"]) == (2.0, 2.25)
    assert (told["tower_vs_fp32"], told["tower_vs_openvino"]) == (2.0, 0.5)
    step_bytes = weights.bytes_per_step(job(tmp_path).decoder_spec.decoder, 8 + 4 // 2)
    assert told["roofline"] == round(step_bytes / GB * (0.1 / 0.2 + 0.05 / 0.4) / 2, 3)  # round by round
    assert told["accuracy_fp32"] == 0.9
    assert told["equal_answers"] is None


def test_nothing_measured_is_null_and_no_division(tmp_path: Path) -> None:
    absent = {name: results(name) for name in (OURS, Q4_0, MEMORY)}

    told = as_dict(job(tmp_path), [absent], {}, {})

    assert {told[key] for key in list(told)[:11]} == {None}


def test_a_runtime_that_is_missing_is_shown_with_the_reason(tmp_path: Path) -> None:
    row = decoder_rows({Q4_0: PeerResult(PeerSetup(Q4_0, "", "", "4 bits"), fault="gguf not installed")}, job(tmp_path))

    assert row == [(Q4_0, "4 bits", "skipped: gguf not installed")]


@pytest.mark.parametrize("head_bits", [4, 8])
def test_a_step_reads_what_the_quantized_weights_weigh(head_bits: int) -> None:
    spec = small_spec()
    weights = RandomWeights(spec, head_bits)
    total = 0
    for key in weights:
        weight = weights[key]
        if key.startswith("llm.") and isinstance(weight, Int4Weight):
            total += weight.values_KN.size // 2 + weight.scale_GN.astype(np.float16).nbytes
        elif key.startswith("llm.") and isinstance(weight, Int8Weight):
            total += weight.values_KN.nbytes + weight.scale_N.nbytes
    decoder = spec.decoder
    cache = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_size * 10 * 2

    assert isinstance(weights[HEAD], Int4Weight if head_bits == 4 else Int8Weight)
    assert weights.bytes_per_step(decoder, 10) == total + cache


def test_quantized_weights_are_as_large_as_the_float_ones() -> None:
    spec = small_spec()
    whole, quantized = RandomWeights(spec, is_float=True), RandomWeights(spec)
    key = "llm.model.layers.1.mlp.down_proj.weight"

    ratio = quantized[key].dequantize().std() / whole[key].std()  # type: ignore[union-attr]

    assert math.isclose(ratio, 1, rel_tol=0.02)


def test_transformers_reads_the_weights_that_ours_are_made_of(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    spec = small_spec()
    write_hf_folder(spec, tmp_path)

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)

    state = model.state_dict()
    for key, array in RandomWeights(spec, is_float=True).items():
        if key.startswith("llm."):
            theirs = state[key.removeprefix("llm.")].float().numpy()
            np.testing.assert_allclose(theirs, array, rtol=2**-8, atol=1e-9, err_msg=key)


def test_prompts_differ_from_round_to_round_and_agree_between_runtimes(tmp_path: Path) -> None:
    prompts = [random_ids(job(tmp_path, prompt=64), i) for i in range(3)]

    assert len({tuple(ids) for ids in prompts}) == 3
    np.testing.assert_array_equal(prompts[1], random_ids(job(tmp_path, prompt=64), 1))


def test_no_two_matrices_are_equal() -> None:
    weights = RandomWeights(small_spec(), is_float=True)
    matrices = [weights[key] for key in weights if ".layers." in key and key.endswith("_proj.weight")]

    assert len(matrices) > 10
    assert len({array.tobytes() for array in matrices}) == len(matrices)  # type: ignore[union-attr]


def test_llama_cpp_reads_the_weights_that_ours_are_made_of(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    spec = small_spec()
    write_gguf(spec, tmp_path / "random.gguf")

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "random.gguf").tensors}
    weights = RandomWeights(spec, is_float=True)
    for name, key in (("token_embd", EMBEDDING), ("blk.1.ffn_down", "llm.model.layers.1.mlp.down_proj.weight")):
        tensor = tensors[f"{name}.weight"]
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        step = np.abs(weights[key]).max() / 8  # type: ignore[arg-type]
        np.testing.assert_allclose(theirs, weights[key], atol=1.01 * step, err_msg=key)
