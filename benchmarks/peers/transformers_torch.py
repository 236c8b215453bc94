"""transformers on torch, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.peers.clock import seconds
from benchmarks.peers.job import PeerJob, Round, random_ids
from benchmarks.peers.weights import write_hf_folder

NEEDS = ("transformers", "torch")


def prepare(kind: str, job: PeerJob) -> None:
    """Write the Hugging Face folder."""
    if not (job.files("hf") / "config.json").exists():
        write_hf_folder(job.decoder_spec, job.files("hf"))


def load(kind: str, job: PeerJob) -> Round:
    """Return a round of prefill and decode; the kind is `float32` or `bfloat16`."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.files("hf"), dtype=getattr(torch, kind)).eval()
    rounds = iter(range(1 << 30))

    @torch.inference_mode()
    def run() -> Mapping[str, list[float]]:
        ids = torch.from_numpy(random_ids(job, next(rounds)))[None]
        cache = None

        def append(new: torch.Tensor) -> None:
            nonlocal cache
            cache = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

        prefill_s = seconds(lambda: append(ids))
        step_s = [seconds(lambda i=i: append(ids[:, i : i + 1])) for i in range(job.tokens)]
        return {"prefill": [prefill_s], "decode": step_s}

    return run
