"""Weights that were searched on a GPU are those of the CPU, but for values that lie between two steps.

pytest -m gpu -s
"""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.models.build import open_build
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.tools import build

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
EQUAL = 0.995
"""Share of a part's values. A search may prefer another of two scales that are as good."""


def test_both_devices_make_the_same_weights(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    for device in ("cpu", "cuda"):
        words = ["nvila-tiny.cpu", "--quantize-on", device, "--out", str(tmp_path / device)]
        assert build.run(parser.parse_args(words)) == 0

    cpu, cuda = (open_build(tmp_path / device).weights() for device in ("cpu", "cuda"))

    same = total = 0
    for key, want in cpu.items():
        if isinstance(want, Int4Weight | Int8Weight):
            same += int((want.values_KN == cuda[key].values_KN).sum())
            total += want.values_KN.size
        else:
            np.testing.assert_allclose(np.asarray(cuda[key]), np.asarray(want), rtol=2e-2, atol=1e-3)
    print(f"\n{same / total:.4f} of {total} values are equal")
    assert same / total >= EQUAL
