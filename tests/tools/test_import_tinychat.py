"""`nvila import-tinychat`: nvila-tiny, packed as llm-awq packs, comes back as a build that means what was packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch")

from nvila_ros.errors import CheckpointError
from nvila_ros.models.build import open_build
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.loading import find_checkpoint, load_engine
from nvila_ros.tools.cli import main
from tests.quantization.packing import pack_linear

pytestmark = pytest.mark.slow  # quantizes

try:
    TINY = open_checkpoint(find_checkpoint("nvila-tiny"))
except CheckpointError as missing:
    pytest.skip(str(missing), allow_module_level=True)

Tensors = dict[str, np.ndarray]
Q_PROJ = "model.layers.0.self_attn.q_proj"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def packed() -> tuple[Tensors, Tensors]:
    """The tensors of nvila-tiny's packed language model, and what its linear maps stand for, inputs first.

    Norms differ from the checkpoint's, as they do where AWQ has folded scales into them.
    """
    tensors, meant = {}, {}
    for key, weight in TINY.weights("llm").items():
        name = key.removeprefix("llm.")
        if ".layers." in key and weight.ndim == 2:
            meant[key], parts = pack_linear(np.ascontiguousarray(weight.T))
            tensors |= {f"{name.removesuffix('weight')}{kind}": part for kind, part in parts.items()}
        else:
            tensors[name] = (weight * 1.25 if "layernorm" in name else weight).astype(np.float16)
    return tensors, meant


def write(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "packed.safetensors")
    return folder


def run(folder: Path, out: Path) -> int:
    return main(["import-tinychat", str(folder), "--checkpoint", "nvila-tiny", "--out", str(out)])


def test_import_means_what_was_packed(
    packed: tuple[Tensors, Tensors], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, meant = packed
    out = tmp_path / "imported"

    assert run(write(tmp_path / "packed", {f"llm.{key}": tensor for key, tensor in tensors.items()}), out) == 0

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    build = open_build(out)
    weights, floats = build.weights(), TINY.weights()
    assert (build.precision, set(weights)) == ("fp16+w4a16", set(floats))
    for key, wanted_KN in meant.items():
        weight = weights[key]
        assert isinstance(weight, Int4Weight)
        bound_KN = np.repeat(weight.scale_GN, 128, axis=0) / 2 + 2e-3  # scaled zeros are rounded to half
        assert (np.abs(weight.dequantize() - wanted_KN) <= bound_KN).all(), key
        kind = ".".join(key.split(".")[-3:-1])
        loss = np.square(weight.dequantize() - wanted_KN).sum() / np.square(wanted_KN).sum()
        assert loss <= told["loss"][kind]["worst"] * 1.05
    for key in set(floats) - set(meant):
        source = tensors[key.removeprefix("llm.")] if ".layers." in key and key.startswith("llm.") else floats[key]
        assert np.allclose(weights[key], source, rtol=1e-3, atol=1e-6), key
    assert len(told["loss"]) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imported", "packed"]


@dataclass(frozen=True)
class Given:
    """Weights as an engine takes them."""

    tensors: Tensors
    spec: ModelSpec = TINY.spec

    def weights(self) -> Tensors:
        return self.tensors


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_import_computes_what_was_packed(packed: tuple[Tensors, Tensors], tmp_path: Path, backend: str) -> None:
    tensors, meant = packed
    assert run(write(tmp_path / "packed", tensors), tmp_path / "imported") == 0
    floats = {
        f"llm.{key}": tensor.astype(np.float32) for key, tensor in tensors.items() if f"llm.{key}" in TINY.tensors
    }
    wanted = Given({**TINY.weights(), **floats, **{key: weight_KN.T.copy() for key, weight_KN in meant.items()}})

    logits, wanted_logits = (
        engine.forward(engine.embed(np.arange(100, 124)), engine.new_cache(24))
        for engine in (load_engine(open_build(tmp_path / "imported"), backend), load_engine(wanted, "torch"))
    )

    # Norms that were folded away, or maps in another order, leave nothing of this.
    assert np.corrcoef(logits, wanted_logits)[0, 1] > 0.98


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {key: np.ascontiguousarray(change(tensors[key]))}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (without(f"{Q_PROJ}.scales"), f"must hold 1 more tensors, first {Q_PROJ}.scales"),
        (without(NORM), f"first {NORM}; AWQ changes norms"),
        (without(f"{Q_PROJ}.qweight"), "no decoder that TinyChat packed"),
        (changed(f"{Q_PROJ}.qweight", lambda words: words[:-1]), f"{Q_PROJ}.qweight must be ("),
        (changed(f"{Q_PROJ}.qweight", lambda words: words.astype(np.int32)), "must be of I16"),
        (changed(f"{Q_PROJ}.scales", lambda table: table[:, :-4]), f"{Q_PROJ}.scales must be ("),
        (changed(f"{Q_PROJ}.scales", lambda table: table * np.nan), "must be finite"),
        (lambda tensors: tensors | {"model.layers.9.mlp.up_proj.qweight": np.zeros(1)}, "does not have"),
    ],
)
def test_what_does_not_suit_is_refused_and_leaves_nothing(
    packed: tuple[Tensors, Tensors],
    broken: Callable[[Tensors], Tensors],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write(tmp_path / "packed", broken(packed[0]))

    assert run(folder, tmp_path / "imported") == 2

    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_pickles_are_refused_by_name_with_how_to_convert_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "NVILA-w4-g128-awq-v2.pt").write_bytes(b"pickle")

    assert run(tmp_path, tmp_path / "imported") == 2

    err = capsys.readouterr().err
    assert "found ['NVILA-w4-g128-awq-v2.pt']" in err
    assert "weights_only=True" in err


def test_the_conversion_that_is_told_works(packed: tuple[Tensors, Tensors], tmp_path: Path) -> None:
    import re
    import subprocess
    import sys

    import torch

    from nvila_ros.quantization.tinychat import _CONVERT

    torch.save({key: torch.from_numpy(tensor) for key, tensor in packed[0].items()}, tmp_path / "a.pt")
    code = re.search(r'-c "(.*?)"', _CONVERT)[1]
    argv = [str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]
    subprocess.run([sys.executable, "-c", code, *argv], check=True)

    back = load_file(tmp_path / "a.safetensors")
    assert {key: tensor.tobytes() for key, tensor in back.items()} == {
        key: tensor.tobytes() for key, tensor in packed[0].items()
    }


def test_a_folder_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
