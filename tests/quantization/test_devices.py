"""Where layers are searched: every tensor of a search lies on the layer's device, and which device that is.

What ends on the host is held against the CPU on a real GPU (tests/gpu/test_quantization.py).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nvila_ros.errors import ConfigError
from nvila_ros.quantization.devices import choose_device

ROOT = Path(__file__).parents[2]


def test_every_tensor_of_a_search_lies_on_its_layers_device() -> None:
    command = [sys.executable, "-m", "tests.quantization.searched_on_a_device"]  # torch would keep the device for good
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_without_a_gpu_layers_are_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto", 1 << 30) == choose_device("cpu", 1 << 30) == "cpu"
    with pytest.raises(ConfigError, match=r"--quantize-on must be .* got cuda: .* 1\.07 GB, and torch sees .* free"):
        choose_device("cuda", 1 << 30)


def test_a_gpu_that_holds_a_layer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 << 30, 8 << 30))

    assert choose_device("auto", 5 << 30) == choose_device("cuda", 5 << 30) == "cuda"
    assert choose_device("auto", 7 << 30) == "cpu"
    with pytest.raises(ConfigError, match=r"7\.52 GB"):
        choose_device("cuda", 7 << 30)
