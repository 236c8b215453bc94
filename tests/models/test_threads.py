"""Torch's threads: one for a small model, as before afterwards; and declaring a model loads no compiler."""

import os
import subprocess
import sys

import pytest
import torch

from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.threads import limit_threads, set_threads, useful_threads
from nvila_ros.models.variants import VARIANTS
from nvila_ros.training.tiny import SPEC


@pytest.fixture
def two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_model_gets_one_thread_and_a_large_one_all() -> None:
    assert useful_threads(SPEC) == 1
    assert useful_threads(VARIANTS["NVILA-Lite-2B"].spec) == 13  # 1536 x 8960 weights


@pytest.mark.parametrize(("spec", "want"), [(SPEC, 1), (VARIANTS["NVILA-8B"].spec, 2)])
def test_limit_holds_inside_alone_and_never_raises_the_count(spec: ModelSpec, want: int, two_threads: None) -> None:
    def fail() -> None:
        with limit_threads(spec):
            assert torch.get_num_threads() == want
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "want"), [(0, 1), (2, 2)])
def test_number_that_is_asked_for_is_taken(threads: int, want: int, two_threads: None) -> None:
    set_threads(SPEC, threads)

    assert torch.get_num_threads() == want


def test_declaring_a_model_loads_no_compiler() -> None:
    code = (
        "import sys, torch; from nvila_ros.models.nvila import Nvila; from nvila_ros.training.tiny import SPEC\n"
        "with torch.device('meta'): model = Nvila(SPEC)\n"
        "assert model.llm.model['embed_tokens'].weight.is_meta\n"
        "assert model.llm.model['embed_tokens'].weight.requires_grad\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
