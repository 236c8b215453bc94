"""Every form of every graph, with every kind of weight, on ONNX Runtime against torch told naively."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.export.forms import ORT, ORT_FUSED, TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.graph import GraphBuilder
from nvila_ros.export.parts import build_decoder, build_graphs, build_vision, write_parts
from nvila_ros.models.host import sums_int8_exactly
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.rotary import causal_mask, rotary_tables
from tests.export.random_models import Naive, find_peaks, make_spec, quantize, round_int4, round_int8, weights_of

IN_PLACE = GraphForm(decoder="in_place")
CAPACITY = 24
TENSORRT_10_1 = {
    *("Add", "Cast", "Concat", "Conv", "DequantizeLinear", "Div", "Erf", "Gather", "Identity", "LayerNormalization"),
    *("MatMul", "Mul", "Neg", "Pad", "QuantizeLinear", "ReduceMean", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt"),
    *("Tanh", "TopK", "Transpose", "Unsqueeze"),
}
"""Operators that the graphs need and that onnx-tensorrt's importer had in its release for TensorRT 10.1."""
# Of the error against the values, root mean square. An input that lies between two steps may be rounded either way, one
# step of 127 in one of some tens of inputs; float16 rounds many across, the more in older runtimes, which divide in it.
TOLERANCE = {("float32", False): 1e-5, ("float32", True): 5e-3, ("float16", False): 3e-3, ("float16", True): 8e-2}
FEW_ROWS = 2e-2  # of rounded inputs; in a chunk of a single token, one rounded the other way is up to a hundredth

kinds = st.sampled_from(["float", "int8", "int8_by_token"])
specs = st.builds(
    make_spec,
    projector=st.sampled_from(["mlp_downsample", "mlp_downsample_3x3_fix"]),
    is_tied=st.booleans(),
    kv_heads=st.sampled_from([1, 2]),
    rows=st.sampled_from([1, 3]),
    grid=st.sampled_from([3, 4]),
    is_vila15=st.booleans(),
)


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Exact: with the default the inputs of four-bit maps are rounded to eight bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if (
        not sums_int8_exactly()
    ):  # else pairs of Q and DQ become products that saturate; the GPU's compiler has none of them
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_append(
    session: onnxruntime.InferenceSession, spec: DecoderSpec, dtype: str, chunks: list[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Return what the graph gives for each chunk of embeddings."""
    cos, sin = (table.astype(dtype) for table in rotary_tables(spec, CAPACITY))
    names = [output.name for output in session.get_outputs()]
    caches = [name.removeprefix("new_") for name in names if name.startswith("new_")]
    past = {name: np.zeros((0, spec.num_kv_heads, spec.head_size), dtype) for name in caches}
    given, start = [], 0
    for chunk in chunks:
        end = start + len(chunk)
        mask = np.maximum(causal_mask(len(chunk), end), np.float32(-6e4)).astype(dtype)
        feed = {"embeds": chunk.astype(dtype), "cos": cos[start:end], "sin": sin[start:end], "mask": mask}
        feed |= {"rows": np.arange(len(chunk))[::-1]} | {f"past_{name}": rows for name, rows in past.items()}
        given.append(dict(zip(names, session.run(names, feed), strict=True)))
        past = {name: np.concatenate([rows, given[-1][f"new_{name}"]]) for name, rows in past.items()}
        start = end
    return given


def run_overlap(
    session: onnxruntime.InferenceSession, spec: DecoderSpec, dtype: str, chunks: list[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Return what the graph gives for each chunk of embeddings; every cache is full of NaN until its rows are given."""
    cos, sin = (np.ascontiguousarray(table[:, : spec.head_size // 2]) for table in rotary_tables(spec, CAPACITY))
    caches = [output.name.removeprefix("new_") for output in session.get_outputs() if output.name != "logits"]
    buffers = {name: np.full((CAPACITY, spec.num_kv_heads, spec.head_size), np.nan, dtype) for name in caches}
    given, start = [], 0
    for chunk in chunks:
        end, logits_LV = start + len(chunk), np.empty((len(chunk), spec.vocab_size), dtype)
        feed = {
            "embeds": chunk[None],
            "cos": cos[start:end],
            "sin": sin[start:end],
            "mask": causal_mask(len(chunk), end),
        }
        feed |= {"rows": np.arange(len(chunk))[::-1].copy()} | {f"all_{k}": rows[:end] for k, rows in buffers.items()}
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, logits_LV.dtype, logits_LV.shape, logits_LV.ctypes.data)
        for name, rows in buffers.items():
            shape = (1, len(chunk), spec.num_kv_heads * spec.head_size)
            binding.bind_output(f"new_{name}", "cpu", 0, rows.dtype, shape, rows[start:end].ctypes.data)
        session.run_with_iobinding(binding)
        given.append({"logits": logits_LV})
        start = end
    return given


def run_in_place(
    session: onnxruntime.InferenceSession, spec: DecoderSpec, dtype: str, chunks: list[np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Return what the graph gives for each chunk of embeddings; rows beyond the last token hold rubbish."""
    cos, sin = (table[None, :, : spec.head_size // 2].astype(dtype) for table in rotary_tables(spec, CAPACITY))
    names = [output.name for output in session.get_outputs()]
    caches = [name.removeprefix("present_") for name in names if name.startswith("present_")]
    shape = (1, spec.num_kv_heads, CAPACITY, spec.head_size)
    cache = {name: np.full(shape, 7, dtype) for name in caches}
    given, start = [], 0
    for chunk in chunks:
        end = start + len(chunk)
        mask = np.arange(CAPACITY) <= np.arange(start, end)[:, None]
        feed = {"embeds": chunk.astype(dtype), "cos": cos[:, start:end], "sin": sin[:, start:end], "mask": mask}
        feed |= {"rows": np.arange(len(chunk))[::-1], "start": np.array([start], np.int64)}
        feed |= {f"past_{name}": rows for name, rows in cache.items()}
        given.append(dict(zip(names, session.run(names, feed), strict=True)))
        cache = {name: given[-1][f"present_{name}"] for name in cache}
        start = end
    return given


RUN = {"append": run_append, "in_place": run_in_place, "overlap": run_overlap}


def assert_close(name: str, got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape, f"{name}: {got.shape} against {want.shape}"
    error = np.sqrt(np.mean((got.astype(np.float32) - want) ** 2) / np.mean(want**2))
    assert error <= tolerance, f"{name}: {error:.1e} of the values, allowed {tolerance:.0e}"


@pytest.mark.parametrize("form", [ORT, TRT_BASE], ids=["ort", "trt_base"])
@settings(max_examples=12)
@given(spec=specs, vision=kinds, projector=kinds, seed=st.integers(0, 99))
def test_vision_and_projector_match_torch(
    tmp_path_factory: pytest.TempPathFactory, form: GraphForm, spec: ModelSpec, vision: str, projector: str, seed: int
) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if form != ORT:
        vision, projector = vision.removesuffix("_by_token"), projector.removesuffix("_by_token")
    model = Nvila(spec).eval().requires_grad_(False)
    tile_NCHW = rng.uniform(-1, 1, (2, 3, spec.vision.image_px, spec.vision.image_px)).astype(np.float32)
    feat_NPE = model.vision(torch.from_numpy(tile_NCHW)).numpy()
    peaks = find_peaks(model, tile_NCHW, feat_NPE, np.ones((1, spec.decoder.width), np.float32))
    kind_by_part = {"vision_tower": vision, "mm_projector": projector, "llm": "float"}
    weights = quantize(model, kind_by_part, peaks)
    Naive(model, weights)
    folder = tmp_path_factory.mktemp("parts")

    write_parts(spec, weights, folder, [form])

    (got,) = open_graph(folder / form.file_of("vision")).run(None, {"tile": tile_NCHW.astype(form.dtype)})
    want = model.vision(torch.from_numpy(tile_NCHW)).numpy()
    assert_close("features", got, want, TOLERANCE[form.dtype, "int8" in vision])
    (got,) = open_graph(folder / form.file_of("projector")).run(None, {"feat": feat_NPE.astype(form.dtype)})
    want = model.project(torch.from_numpy(feat_NPE)).numpy()
    assert_close("visual tokens", got, want, TOLERANCE[form.dtype, "int8" in projector])


def reads_a_cache_in_place() -> bool:
    """Whether the installed ONNX Runtime reads graphs of that form's opset."""
    pen = GraphBuilder("probe", IN_PLACE)
    pen.output(pen.input("x", (1,)), "y", (1,))
    try:
        onnxruntime.InferenceSession(pen.finish({}).SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # its errors have no common base
        return False
    return True


needs_opset_24 = pytest.mark.skipif(not reads_a_cache_in_place(), reason="this onnxruntime reads no graphs of opset 24")


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(ORT, id="ort"),
        pytest.param(ORT_FUSED, id="ort_fused"),
        pytest.param(TRT_BASE, id="trt_base"),
        pytest.param(IN_PLACE, id="in_place", marks=needs_opset_24),
        pytest.param(TRT_KV, id="trt_kv", marks=needs_opset_24),
    ],
)
@settings(max_examples=12)
@given(
    spec=specs,
    kind=st.sampled_from(["float", "int4", "int8", "int8_by_token"]),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_decoder_matches_torch_over_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    form: GraphForm,
    spec: ModelSpec,
    kind: str,
    lengths: list[int],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    if form not in (ORT, ORT_FUSED):
        kind = kind.removesuffix("_by_token")
    model = Nvila(spec).eval().requires_grad_(False)
    embeds_LD = np.random.default_rng(seed).standard_normal((sum(lengths), spec.decoder.width)).astype(np.float32)
    tile_NCHW = np.zeros((1, 3, spec.vision.image_px, spec.vision.image_px), np.float32)
    feat_NPE = np.zeros((1, spec.vision.num_patches, spec.vision.width), np.float32)
    peaks = find_peaks(model, tile_NCHW, feat_NPE, embeds_LD)
    weights = quantize(model, {"vision_tower": "float", "mm_projector": "float", "llm": kind}, peaks)
    want_LV = Naive(model, weights).logits(embeds_LD)
    folder = tmp_path_factory.mktemp("parts")

    write_parts(spec, weights, folder, [form])
    graph = folder / form.file_of("decoder")
    session = open_graph(graph)
    ends = np.cumsum(lengths)
    results = RUN[form.decoder](session, spec.decoder, form.dtype, np.split(embeds_LD, ends[:-1]))

    is_fused = form == ORT_FUSED and kind in ("int4", "int8_by_token")
    is_rounded = is_fused or "int8" in kind
    tolerance = max(TOLERANCE[form.dtype, is_rounded], FEW_ROWS if is_rounded else 0)
    kinds_of_maps = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    assert ("MatMulNBits" in kinds_of_maps) == is_fused
    for result, want_RV in zip(results, np.split(want_LV, ends[:-1]), strict=True):
        assert_close("logits", result["logits"], want_RV[::-1], tolerance)
        if form.dtype == "float16":
            best = np.sort(result["logits"])[:, ::-1][:, :64]
            assert np.array_equal(result["top_logits"], best)
            assert np.array_equal(np.take_along_axis(result["logits"], result["top_ids"], axis=1), best)


def test_graphs_for_any_tensorrt_have_only_operators_of_its_oldest_importer() -> None:
    spec = make_spec("mlp_downsample_3x3_fix", False, 2, 3, 4)
    weights = quantize_all(spec, "int8") | {"llm.lm_head.weight": round_int4(np.ones((90, 96), np.float32))}

    graphs = [pen.finish(AnyOffset()).graph for pen in build_graphs(spec, weights, TRT_BASE).values()]

    assert {node.op_type for graph in graphs for node in graph.node} <= TENSORRT_10_1


def test_maps_of_one_input_share_its_rounding() -> None:
    spec = make_spec("mlp_downsample", True, 2, 1, 3)
    weights = quantize_all(spec, "int8")

    graph = build_vision(spec.vision, weights, TRT_BASE).finish(AnyOffset()).graph

    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") == 4 * spec.vision.num_live_layers  # q with k and v, out, fc1, fc2
    readers = {name: node.op_type for node in graph.node for name in node.input}
    made = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {readers[node.output[0]] for node in made} == {"MatMul"}


def test_rounding_by_token_is_refused_for_tensorrt() -> None:
    spec = make_spec("mlp_downsample", True, 2, 1, 3)

    with pytest.raises(ConfigError, match=r"q_proj.weight has no input scale.*calibrate"):
        build_vision(spec.vision, quantize_all(spec, "int8_by_token"), TRT_BASE)


def test_scale_that_float16_loses_is_refused() -> None:
    spec = make_spec("mlp_downsample", True, 2, 1, 3)
    weights = weights_of(Nvila(spec))
    key = "llm.model.layers.1.mlp.up_proj.weight"
    weights[key] = round_int8(np.full((48, 32), 1e-4, np.float32), 1.0)
    weights[key].scale_N[3] = 1e-9

    build_decoder(spec.decoder, weights, ORT)
    with pytest.raises(ConfigError, match=r"scales of llm.model.layers.1.mlp.up_proj.weight must be positive float16"):
        build_decoder(spec.decoder, weights, TRT_KV)


def test_form_of_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown dtype of a graph 'bfloat16'; known are"):
        GraphForm(dtype="bfloat16")


def test_overlap_in_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"computed in float32, not in float16"):
        GraphForm(dtype="float16", decoder="overlap")


def quantize_all(spec: ModelSpec, kind: str) -> dict:
    model = Nvila(spec)
    peaks = dict.fromkeys([name for name, _ in model.named_modules()] + ["llm.lm_head"], 1.0)
    return quantize(model, dict.fromkeys(("vision_tower", "mm_projector", "llm"), kind), peaks)


class AnyOffset(dict):
    """Offsets for a graph whose weights no one reads."""

    def __missing__(self, name: str) -> int:
        return 0
