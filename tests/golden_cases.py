"""The golden cases as tests want them: frames, question and the reference's tensors."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from nvila_ros.types import Frame

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "lite" / "ckpt"


def _names(pattern: str) -> tuple[str, ...]:
    return tuple(
        str(path.relative_to(GOLDEN)).removesuffix(".fp32.json") for path in sorted(GOLDEN.glob(f"{pattern}.fp32.json"))
    )


ALL_CASES = _names("*/*")
"""Every case of NVILA, as `checkpoint/case`."""
VILA15_CASES = _names("vila15/*/*")
"""Every case of VILA 1.5, as `vila15/checkpoint/case`."""
CASES = tuple(case for case in ALL_CASES if not case.endswith("text_first"))
"""Those that a query can ask: media first, then the question."""


def load_case(name: str) -> tuple[list[Frame], str, dict[str, np.ndarray]]:
    """Return frames, question and tensors by stage."""
    told, tensors = load_told(name), load_file(GOLDEN / f"{name}.fp32.safetensors")
    *media, question = told["question"]
    clips = [shape[0] for shape in told["media"].get("video", [])]
    paths = [path for entry in media for path in _files(GOLDEN / entry, clips)]
    frames = [Frame(image=read_image(path), stamp_ns=i) for i, path in enumerate(paths)]
    # Two images are not a clip: they come from two cameras.
    if len(media) > 1:
        frames = [Frame(image=f.image, stamp_ns=f.stamp_ns, camera=f"camera{f.stamp_ns}") for f in frames]
    return frames, question, tensors


def load_told(name: str) -> dict:
    """Return a case's JSON."""
    return json.loads((GOLDEN / f"{name}.fp32.json").read_text())


def read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


def assert_near(name: str, got: np.ndarray, want: np.ndarray, atol: float) -> None:
    """Compare and, where they differ, name the stage and both errors."""
    assert got.shape == want.shape, f"{name}: {got.shape} against {want.shape}"
    error = np.abs(got.astype(np.float64) - want)
    assert error.max() <= atol, f"{name}: max error {error.max():.2e}, mean {error.mean():.2e}, allowed {atol:.0e}"


def _files(path: Path, clips: list[int]) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.png"))
    return [files[i] for i in np.round(np.linspace(0, len(files) - 1, clips[0])).astype(int)]
