"""openvino-genai in INT4, from a model that optimum-intel exports of a Hugging Face folder.

`optimum-cli export openvino --weight-format int4 --sym --group-size 128 --ratio 1.0`: four bits in every layer, eight
in embeddings and head, which is that tool's default.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping

import numpy as np

from benchmarks.peers.job import PeerJob, Round, random_ids
from benchmarks.peers.weights import write_hf_folder

NEEDS = ("openvino_genai", "optimum.intel", "nncf", "transformers", "torch")


def prepare(kind: str, job: PeerJob) -> None:
    """Export the model."""
    source, target = job.files("hf"), job.files("openvino-genai")
    if target.exists():
        return
    if not (source / "config.json").exists():
        write_hf_folder(job.decoder_spec, source)
    unfinished = target.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    from optimum.commands.optimum_cli import main

    what = [
        "--task",
        "text-generation-with-past",
        "--weight-format",
        "int4",
        "--sym",
        "--group-size",
        "128",
        "--ratio",
        "1.0",
    ]
    sys.argv = ["optimum-cli", "export", "openvino", "-m", str(source), *what, str(unfinished)]
    main()
    unfinished.rename(target)


def load(kind: str, job: PeerJob) -> Round:
    """Return a round of prefill and decode, as the pipeline's own clock has it."""
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(str(job.files("openvino-genai")), "CPU", INFERENCE_NUM_THREADS=job.threads)
    config = genai.GenerationConfig(max_new_tokens=job.tokens + 1, ignore_eos=True, do_sample=False)
    config.apply_chat_template = False
    rounds = iter(range(1 << 30))

    def run() -> Mapping[str, list[float]]:
        ids = random_ids(job, next(rounds))[None]
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        step_s = [duration / 1e6 for duration in metrics.raw_metrics.m_durations]
        return {"prefill": [metrics.get_ttft().mean / 1e3], "decode": step_s}

    return run
