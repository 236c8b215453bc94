"""The golden cases as tests want them: frames, question and the reference's tensors."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from nvila_ros.types import Frame

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "lite" / "ckpt"
CASES = ("small_single_tile", "video8", "text_only")


def load_case(name: str) -> tuple[list[Frame], str, dict[str, np.ndarray]]:
    """Return frames, question and tensors by stage."""
    tensors = load_file(GOLDEN / "lite" / f"{name}.fp32.safetensors")
    *media, question = json.loads((GOLDEN / "lite" / f"{name}.fp32.json").read_text())["question"]
    paths = [path for entry in media for path in _files(GOLDEN / entry)]
    frames = [Frame(image=read_image(path), stamp_ns=i) for i, path in enumerate(paths)]
    return frames, question, tensors


def read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


def assert_near(name: str, got: np.ndarray, want: np.ndarray, atol: float) -> None:
    """Compare and, where they differ, name the stage and both errors."""
    assert got.shape == want.shape, f"{name}: {got.shape} against {want.shape}"
    error = np.abs(got.astype(np.float64) - want)
    assert error.max() <= atol, f"{name}: max error {error.max():.2e}, mean {error.mean():.2e}, allowed {atol:.0e}"


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.png")) if path.is_dir() else [path]
