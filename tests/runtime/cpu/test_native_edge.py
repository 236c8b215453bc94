"""Nothing that Python passes to our kernels reaches beyond its arrays: what does not fit is an error with its rule."""

import contextlib
import ctypes
import os
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ShapeError
from nvila_ros.models.quantized import Weight
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.append import AppendCache, NewTokens
from nvila_ros.runtime.cpu.native_decoder import NativeDecoder
from nvila_ros.runtime.cpu.native_library import libraries
from nvila_ros.runtime.rotary import causal_mask
from tests.runtime.cpu.test_cpu_engine import HEAD
from tests.runtime.cpu.test_native_decoder import each_library, make, quantize, slow

NORM = "llm.model.norm.weight"
pytestmark = pytest.mark.skipif(not libraries(), reason="this processor has no kernels of ours")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, dict[str, Weight]]:
    spec, floats = make(tmp_path_factory.mktemp("ckpt"))
    return spec, quantize(floats, 32, {}, None)


@each_library
def test_weights_of_other_shapes_than_the_specs_are_refused(
    model: tuple[ModelSpec, dict[str, Weight]], library: ctypes.CDLL
) -> None:
    """A spec that says fewer or more of anything is an error, where it was a write out of bounds."""
    spec, weights = model
    width, vocab = spec.decoder.width, spec.decoder.vocab_size

    def refusal(weights: dict[str, Weight], **sizes: int) -> str:
        with pytest.raises(ShapeError) as error:
            NativeDecoder(replace(spec.decoder, **sizes), weights, weights[HEAD], 2, library)
        return str(error.value)

    assert refusal(weights, vocab_size=8) == f"the matrix of layer -1 slot 0 must be {width} x 8, got {width} x {vocab}"
    assert "of layer 0 slot 1 must be" in refusal(weights, num_kv_heads=1)
    assert "of layer 0 slot 4 must be" in refusal(weights, mlp_width=64)
    assert "threads must be in" in refusal_of_threads(spec.decoder, weights, library)
    short = {NORM: np.ones(width - 16, np.float32)}
    assert f"the vector must have {width} elements, got {width - 16}" in refusal(weights | short)
    scales = replace(weights[HEAD], scale_GN=weights[HEAD].scale_GN[:, :-1])
    assert "scales must have" in refusal(weights | {HEAD: scales})


def refusal_of_threads(spec: DecoderSpec, weights: dict[str, Weight], library: ctypes.CDLL) -> str:
    with pytest.raises(ShapeError) as error:
        NativeDecoder(spec, weights, weights[HEAD], -1, library)
    return str(error.value)


def tokens(spec: DecoderSpec, num_new: int, num_all: int, **changed: np.ndarray) -> NewTokens:
    angles = np.zeros((num_new, spec.head_size), np.float32)
    arrays = {
        "embeds_LD": np.ones((num_new, spec.width), np.float32),
        "cos_LS": np.cos(angles),
        "sin_LS": np.sin(angles),
        "mask_LM": causal_mask(num_new, num_all),
        "rows_R": np.array([num_new - 1]),
    }
    return NewTokens(**arrays | changed)


@each_library
def test_calls_that_do_not_fit_are_refused(model: tuple[ModelSpec, dict[str, Weight]], library: ctypes.CDLL) -> None:
    spec, weights = model
    decoder = NativeDecoder(spec.decoder, weights, weights[HEAD], 2, library)
    cache = AppendCache(spec.decoder, 8)
    cache.length = 3

    def refusal(cache: AppendCache, **changed: np.ndarray) -> str:
        with pytest.raises(ShapeError) as error:
            decoder.run(tokens(spec.decoder, 4, cache.length + 4, **changed), cache)
        return str(error.value)

    assert "embeds must be" in refusal(cache, embeds_LD=np.ones((4, 7), np.float32))
    assert "cos must be" in refusal(cache, cos_LS=np.ones((3, spec.decoder.head_size), np.float32))
    assert "mask must be (4, 7) for this call, got (4, 6)" in refusal(cache, mask_LM=np.zeros((4, 6), np.float32))
    assert "a wanted row must be in [0, 3], got 4" in refusal(cache, rows_R=np.array([4]))
    assert "got -1" in refusal(cache, rows_R=np.array([-1]))
    assert "has its logits once, got 2 twice" in refusal(cache, rows_R=np.array([2, 2]))
    cache.length = 5
    assert "a cache of 8 rows cannot take 4 behind 5" in refusal(cache)
    cache.length, cache.capacity = 5, 80
    assert "the cache must have 4 buffers" in refusal(cache)
    other = AppendCache(replace(spec.decoder, num_layers=1), 8)
    assert "the cache must have 4 buffers" in refusal(other)
    assert decoder.run(tokens(spec.decoder, 4, 4), AppendCache(spec.decoder, 4)).shape == (1, spec.decoder.vocab_size)


@each_library
@slow
@given(data=st.data())
def test_no_call_from_python_reaches_beyond_its_arrays(
    model: tuple[ModelSpec, dict[str, Weight]], library: ctypes.CDLL, data: st.DataObject
) -> None:
    """Whatever arrays and numbers are passed, there is an answer or an error."""
    spec, weights = model
    decoder = NativeDecoder(spec.decoder, weights, weights[HEAD], 2, library)
    cache = AppendCache(spec.decoder, data.draw(st.integers(1, 12)))
    number = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**63 - 1, -(2**63), 2**64]))
    cache.length, cache.capacity = data.draw(number), data.draw(number)
    shape = st.lists(st.integers(0, 200), min_size=1, max_size=3)
    new = tokens(spec.decoder, 4, 4)
    for name in data.draw(st.sets(st.sampled_from([field.name for field in fields(NewTokens)]))):
        new = replace(new, **{name: np.ones(data.draw(shape), data.draw(st.sampled_from([np.int64, np.float32])))})

    with contextlib.suppress(ShapeError):
        assert np.isfinite(decoder.run(new, cache)).all()


@each_library
def test_a_decoder_serves_one_thread_and_one_process(
    model: tuple[ModelSpec, dict[str, Weight]], library: ctypes.CDLL
) -> None:
    spec, weights = model
    decoder = NativeDecoder(spec.decoder, weights, weights[HEAD], 2, library)

    pid = os.fork()
    if not pid:  # the threads of the parent are not here: to wait for them would take for ever
        try:
            decoder.run(tokens(spec.decoder, 1, 1), AppendCache(spec.decoder, 1))
        except ShapeError as error:
            os._exit(0 if "do not survive a fork" in str(error) else 2)
        os._exit(1)

    assert os.waitpid(pid, 0)[1] == 0
    assert decoder.run(tokens(spec.decoder, 1, 1), AppendCache(spec.decoder, 1)).shape == (1, spec.decoder.vocab_size)
