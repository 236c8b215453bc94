"""What lies in an exported folder: small graphs, one weights file, every byte once."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.export.forms import ORT, ORT_FUSED, TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.graph import WEIGHTS_FILE, pack
from nvila_ros.export.parts import export_parts, write_parts
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.models.spec import ModelSpec
from tests.export.random_models import make_spec, quantize
from tests.golden_cases import CHECKPOINT

KINDS = {"vision_tower": "int8", "mm_projector": "float", "llm": "int4"}
EMBEDDED = Path(__file__).parents[2] / "checkpoints" / "nvila-tiny"


def quantized(spec: ModelSpec) -> dict:
    model = Nvila(spec)
    peaks = dict.fromkeys([name for name, _ in model.named_modules()] + ["llm.lm_head"], 1.0)
    return quantize(model, KINDS, peaks)


def external(path: Path) -> dict[str, dict[str, str]]:
    """Where each weight of a graph lies, and of what type and shape it is."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {
        tensor.name: {
            **{entry.key: entry.value for entry in tensor.external_data},
            "type": onnx.TensorProto.DataType.Name(tensor.data_type),
            "size": str(np.prod(tensor.dims)),
        }
        for tensor in tensors
        if tensor.external_data
    }


@given(values=st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_four_bit_values_are_packed_two_a_byte_low_first(values: list[int]) -> None:
    packed = pack(np.array(values, np.int8).view(ml_dtypes.int4))

    nibbles = [n - 16 if n > 7 else n for byte in packed.tolist() for n in (byte & 15, byte >> 4)]
    assert nibbles == values + [0] * (len(values) % 2)


def test_forms_share_every_weight_that_is_the_same(tmp_path: Path) -> None:
    weights = quantized(make_spec("mlp_downsample", False, 2, 1, 3))

    paths = write_parts(make_spec("mlp_downsample", False, 2, 1, 3), weights, tmp_path, [ORT, TRT_BASE, TRT_KV])

    base, kv, ort = (external(tmp_path / form.file_of("decoder")) for form in (TRT_BASE, TRT_KV, ORT))
    assert base == kv
    shared = base.keys() & ort.keys()
    assert all(base[name] == ort[name] for name in shared)
    assert {name for name in base if base[name]["type"] == "INT4"} <= shared
    assert [path.name for path in paths] == [
        *("vision.onnx", "projector.onnx", "decoder.onnx"),
        *("vision.float16.onnx", "projector.float16.onnx", "decoder.float16.onnx"),
        *("decoder.float16.in_place.onnx", WEIGHTS_FILE),
    ]


def test_weights_take_the_bytes_of_their_type_and_start_on_cache_lines(tmp_path: Path) -> None:
    spec = make_spec("mlp_downsample", False, 2, 1, 3)
    weights = quantized(spec)

    write_parts(spec, weights, tmp_path, [TRT_BASE])

    bytes_by_type = {"INT4": 0.5, "INT8": 1, "FLOAT16": 2}
    told = [entry for part in ("vision", "projector", "decoder") for entry in external_of(tmp_path, part).values()]
    assert all(int(entry["length"]) == int(entry["size"]) * bytes_by_type[entry["type"]] for entry in told)
    assert all(int(entry["offset"]) % 64 == 0 for entry in told)
    by_type = {kind: sum(int(e["size"]) for e in told if e["type"] == kind) for kind in bytes_by_type}
    assert by_type["INT4"] == sum(w.values_KN.size for w in weights.values() if isinstance(w, Int4Weight))
    assert by_type["INT8"] == sum(w.values_KN.size for w in weights.values() if isinstance(w, Int8Weight))
    end = max(int(entry["offset"]) + int(entry["length"]) for entry in told)
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == end


def external_of(folder: Path, part: str) -> dict[str, dict[str, str]]:
    return external(folder / TRT_BASE.file_of(part))


def test_graphs_are_small_and_checked_by_onnx(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(EMBEDDED)

    paths = write_parts(checkpoint.spec, checkpoint.weights(), tmp_path, [ORT, TRT_BASE, TRT_KV])

    graphs = [path for path in paths if path.suffix == ".onnx"]
    assert len(graphs) == 7
    assert max(path.stat().st_size for path in graphs) < 300_000
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)


def test_failed_export_leaves_no_weights_file(tmp_path: Path) -> None:
    spec = make_spec("mlp_downsample", False, 2, 1, 3)
    weights = quantized(spec)
    key = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    weights[key] = Int8Weight(weights[key].values_KN, weights[key].scale_N, None)

    with pytest.raises(ConfigError, match=r"fc1.weight has no input scale"):
        write_parts(spec, weights, tmp_path, [TRT_BASE])
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_checkpoint_is_the_form_for_cpus(tmp_path: Path) -> None:
    paths = export_parts(open_checkpoint(CHECKPOINT), tmp_path)

    assert [path.name for path in paths] == [
        *("vision.onnx", "projector.onnx", "decoder.onnx", WEIGHTS_FILE, "manifest.json")
    ]
    assert {entry["type"] for entry in external(paths[2]).values()} == {"FLOAT"}


@pytest.mark.parametrize(
    ("form", "part", "name"),
    [
        (GraphForm(decoder="in_place"), "vision", "vision.onnx"),
        (GraphForm(decoder="in_place"), "decoder", "decoder.in_place.onnx"),
        (ORT_FUSED, "decoder", "decoder.overlap.fused.onnx"),
    ],
)
def test_file_names_leave_out_what_is_usual(form: GraphForm, part: str, name: str) -> None:
    assert form.file_of(part) == name


def test_folder_whose_name_is_no_utf8_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")

    with pytest.raises(ConfigError, match="must be UTF-8, and is not; rename it"):
        export_parts(open_checkpoint(CHECKPOINT), folder)
    assert not folder.exists()
