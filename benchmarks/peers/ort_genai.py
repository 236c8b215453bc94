"""onnxruntime-genai in INT4, from a model that its own builder writes of a Hugging Face folder.

The builder's defaults for a CPU but for the size of a block: accuracy level 4, that is activations in eight bits.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Mapping

from benchmarks.peers.clock import seconds
from benchmarks.peers.job import PeerJob, Round, random_ids
from benchmarks.peers.weights import write_hf_folder

NEEDS = ("onnxruntime_genai", "onnx_ir", "transformers", "torch")


def prepare(kind: str, job: PeerJob) -> None:
    """Build the model of a kind, which is the size of a block: `32` or `128`."""
    source, target = job.files("hf"), job.files(f"genai-{kind}")
    if target.exists():
        return
    if not (source / "config.json").exists():  # written last
        write_hf_folder(job.decoder_spec, source)
    unfinished = target.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = [f"block_size={kind}", "accuracy_level=4", "prune_lm_head=true", "hf_token=false"]
    arguments = [
        "-i",
        str(source),
        "-o",
        str(unfinished),
        "-p",
        "int4",
        "-e",
        "cpu",
        "-c",
        str(target.with_suffix(".cache")),
    ]
    sys.argv = ["builder", *arguments, "--extra_options", *options]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    unfinished.rename(target)


def load(kind: str, job: PeerJob) -> Round:
    """Return a round of prefill and decode."""
    import onnxruntime_genai as og

    og.disable_telemetry_events()
    config = og.Config(str(job.files(f"genai-{kind}")))
    session = {"intra_op_num_threads": job.threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    rounds = iter(range(1 << 30))

    def run() -> Mapping[str, list[float]]:
        params = og.GeneratorParams(model)
        length = job.prompt + job.tokens + 1
        params.set_search_options(min_length=length, max_length=length, do_sample=False)
        generator = og.Generator(model, params)
        ids = random_ids(job, next(rounds)).astype("int32")
        # The first token is chosen from the prefill's logits; each of the others runs the model.
        prefill_s = seconds(lambda: (generator.append_tokens(ids), generator.generate_next_token()))
        return {"prefill": [prefill_s], "decode": [seconds(generator.generate_next_token) for _ in range(job.tokens)]}

    return run
