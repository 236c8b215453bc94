"""Every backend refuses a call that its cache or the model cannot take; the rules hold under `python -O` as well."""

import subprocess
import sys

import numpy as np
import pytest

from nvila_ros.errors import ShapeError
from nvila_ros.runtime.contract import Engine, Tree
from nvila_ros.runtime.onnxruntime.engine import OnnxRuntimeEngine
from nvila_ros.runtime.torch_engine import TorchEngine
from tests.runtime.test_engines import open_engine

each_engine = pytest.mark.parametrize("kind", [TorchEngine, OnnxRuntimeEngine])


@each_engine
def test_tokens_beyond_the_cache_are_refused(kind: type[Engine]) -> None:
    engine = open_engine(kind)
    cache = engine.new_cache(8)
    engine.forward(engine.embed(np.arange(5)), cache)

    with pytest.raises(ShapeError, match="the cache holds 8 tokens, 9 are needed"):
        engine.forward(engine.embed(np.arange(4)), cache)
    with pytest.raises(ShapeError, match="at least one token"):
        engine.forward(engine.embed(np.arange(0)), cache)
    assert cache.length == 5


@each_engine
def test_cuts_and_copies_of_tokens_that_are_not_held_are_refused(kind: type[Engine]) -> None:
    engine = open_engine(kind)
    cache, small = engine.new_cache(8), engine.new_cache(3)
    engine.forward(engine.embed(np.arange(5)), cache)

    for length in (6, -1):
        with pytest.raises(ShapeError, match=f"at most the 5 tokens that it holds, got {length}"):
            cache.truncate(length)
        with pytest.raises(ShapeError, match=f"at most 3 tokens can be copied, of 5 into 3 places, got {length}"):
            small.copy_prefix(cache, length)


@each_engine
@pytest.mark.parametrize(
    ("tree", "rule"),
    [
        (Tree(np.arange(2), np.tri(3, dtype=bool), np.array([0])), r"positions \(3,\) and a mask \(3, 3\), got \(2,\)"),
        (Tree(np.arange(3), np.tri(3, 4, dtype=bool), np.array([0])), r"got \(3,\) and \(3, 4\)"),
        (Tree(np.arange(3), np.ones((3, 3), bool), np.array([0])), "may not attend to a later one"),
        (Tree(np.array([0, 1, -1]), np.tri(3, dtype=bool), np.array([0])), r"positions must be in \[0, \d+\), got -1"),
        (Tree(np.array([0, 1, 10**6]), np.tri(3, dtype=bool), np.array([0])), "to 1000000; ask with a shorter prompt"),
        (Tree(np.arange(3), np.tri(3, dtype=bool), np.array([3])), r"wanted of tokens in \[0, 3\), got \[3\]"),
        (Tree(np.arange(3), np.tri(3, dtype=bool), np.array([-1])), r"wanted of tokens in \[0, 3\), got \[-1\]"),
        (Tree(np.arange(3), np.tri(3, dtype=bool), np.array([1, 1])), "wanted once"),
    ],
)
def test_trees_that_do_not_fit_are_refused(kind: type[Engine], tree: Tree, rule: str) -> None:
    engine = open_engine(kind)

    with pytest.raises(ShapeError, match=rule):
        engine.forward_tree(engine.embed(np.arange(3)), engine.new_cache(8), tree)


def test_rules_hold_without_assertions() -> None:
    code = (
        "from nvila_ros.errors import ShapeError\n"
        "from nvila_ros.models.spec import DecoderSpec\n"
        "from nvila_ros.runtime.append import AppendCache\n"
        "sizes = dict(width=32, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=16, vocab_size=9)\n"
        "spec = DecoderSpec(**sizes, rope_theta=1e4, is_tied=True, max_positions=8)\n"
        "try:\n"
        "    AppendCache(spec, 4).truncate(1)\n"
        "except ShapeError as error:\n"
        "    print(error)\n"
    )

    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True)

    assert "cut to at most the 0 tokens that it holds, got 1" in done.stdout
