"""llama.cpp through llama-cpp-python, on GGUF files: Q4_0 in every matrix, and the mix that is named Q4_K_M.

The Q4_0 file holds four bits in the head too, as `llama-quantize --pure` makes it: it reads the fewest bytes a token.
Q4_K_M is llama.cpp's own choice of types, made by its own tool from that file.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.peers.clock import seconds
from benchmarks.peers.job import PeerJob, Round, random_ids
from benchmarks.peers.weights import NOISE_STD, noise, start_of
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec

NEEDS = ("llama_cpp", "gguf")


def prepare(kind: str, job: PeerJob) -> None:
    """Write the file of a kind, `Q4_0` or `Q4_K_M`."""
    plain, mixed = _path("Q4_0", job), _path("Q4_K_M", job)
    if not plain.exists():
        plain.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(job.decoder_spec, unfinished := plain.with_suffix(".part"))
        unfinished.rename(plain)
    if kind == "Q4_K_M" and not mixed.exists():
        requantize(plain, unfinished := mixed.with_suffix(".part"), job.threads)
        unfinished.rename(mixed)


def load(kind: str, job: PeerJob) -> Round:
    """Return a round of prefill and decode."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    path = str(_path(kind, job)).encode()
    model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = job.prompt + job.tokens
    params.n_threads = params.n_threads_batch = job.threads
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, f"llama.cpp cannot load {path!r}"
    rounds = iter(range(1 << 30))

    def append(ids: np.ndarray) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids.tolist())
        status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids)))
        assert status == 0, f"llama_decode failed with {status}"

    def run(kept: object = quiet) -> Mapping[str, list[float]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        ids = random_ids(job, next(rounds))
        prefill_s = seconds(lambda: append(ids))
        return {
            "prefill": [prefill_s],
            "decode": [seconds(lambda i=i: append(ids[i : i + 1])) for i in range(job.tokens)],
        }

    return run


def write_gguf(spec: ModelSpec, path: Path) -> None:
    """Write the decoder with every matrix in Q4_0, the tied head among them, and no vocabulary."""
    import gguf

    @functools.cache
    def blocks(num_in: int) -> np.ndarray:
        values = noise().astype(np.float32) * np.float32(num_in**-0.5 / NOISE_STD)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)

    decoder = spec.decoder
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(decoder.max_positions)
    writer.add_embedding_length(decoder.width)
    writer.add_block_count(decoder.num_layers)
    writer.add_feed_forward_length(decoder.mlp_width)
    writer.add_head_count(decoder.num_heads)
    writer.add_head_count_kv(decoder.num_kv_heads)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    writer.add_rope_freq_base(decoder.rope_theta)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, decoder.num_layers)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_0]
    for key, shape in expected_shapes(spec).items():
        if not key.startswith("llm."):
            continue
        name = names.get_name(key.removeprefix("llm."), try_suffixes=(".weight", ".bias"))
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        row_bytes = shape[1] // block_size * block_bytes
        begun = np.roll(blocks(shape[1]), -start_of(key) // block_size * block_bytes)
        packed = np.resize(begun, (shape[0], row_bytes))
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def requantize(source: Path, target: Path, threads: int) -> None:
    """Let llama.cpp write its Q4_K_M of a file."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread, params.allow_requantize = threads, True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize failed with {status}"


def _path(kind: str, job: PeerJob) -> Path:
    return job.files("llamacpp") / f"{kind}.gguf"
