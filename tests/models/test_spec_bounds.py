"""Configs that would cost memory or time are refused by the field that asks for it, and before they cost any."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import Wrap
from nvila_ros.models.spec_bounds import NUMBERS, SIZES
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.limits import check_prompt_room
from tests.golden_cases import CHECKPOINT

SPEC = VARIANTS["NVILA-8B"].spec
PARTS = {"vision": SPEC.vision, "projector": SPEC.projector, "decoder": SPEC.decoder, "": SPEC}
FIELDS = [
    (name, field.name)
    for name, part in PARTS.items()
    for field in dataclasses.fields(part)
    if field.name in SIZES or field.name in NUMBERS
]
LONG = {
    "hidden_act": ("llm/config.json", "x" * 10**6, r"hidden_act must be 'silu', got 'x{40,80}\.\.\.x+': no other"),
    "image_encoder": ("config.json", '{"a":' * 5000, "nested too deeply"),
    "video_encoder": ("config.json", {"end_tokens": "x" * 10**6}, "must have at most 256 characters"),
}


@pytest.mark.parametrize(("part", "field"), FIELDS)
@pytest.mark.parametrize("value", [0, -1, 10**18, 1e300, float("nan"), True, "8", None])
def test_no_size_is_without_bound(part: str, field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=rf"{field} must be a .*number from .* to .*, got"):
        dataclasses.replace(PARTS[part], **{field: value})


@pytest.mark.parametrize("key", LONG)
def test_long_and_deep_values_are_named_and_not_echoed(tmp_path: Path, key: str) -> None:
    file, value, rule = LONG[key]
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))

    with pytest.raises(CheckpointError, match=rule) as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 400


def test_derived_sizes_are_bounded() -> None:
    with pytest.raises(CheckpointError, match="patches of a tile must be at most 65536, got 262144"):
        dataclasses.replace(SPEC.vision, image_px=4096, patch_px=8)
    with pytest.raises(CheckpointError, match="channels of an attention head must be at most 1024, got 3584"):
        dataclasses.replace(SPEC.decoder, num_heads=1)
    with pytest.raises(CheckpointError, match="num_live_layers must be a whole number from 0 to 27, got 28"):
        dataclasses.replace(SPEC.vision, num_live_layers=28)
    with pytest.raises(CheckpointError, match="must have at most 256 characters"):
        Wrap(start="x" * 257)


def test_scales_in_a_long_text_are_not_split_before_they_are_counted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    config = json.loads((folder / "config.json").read_text())
    changes = {"dynamic_s2": True, "image_aspect_ratio": "dynamic_s2", "s2_scales": "112," * 1000}
    (folder / "config.json").write_text(json.dumps(config | changes))

    with pytest.raises(CheckpointError, match="number of s2_scales must be at most 16"):
        open_checkpoint(folder)


def test_inspection_of_a_huge_config_takes_little_memory(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    path = folder / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**7}))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2)\n"
        "from nvila_ros.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    )

    done = subprocess.run([sys.executable, "-c", code, "inspect", str(folder)], capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    assert "num_layers must be a whole number from 1 to 1024, got 10000000" in " ".join(done.stdout.split())


def test_limits_beyond_the_positions_of_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_prompt_tokens must be at most 32768, the positions of NVILA-8B, got 40"):
        check_prompt_room(SPEC, 40000)
