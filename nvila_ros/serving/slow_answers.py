"""Where the time of a slow answer went, and what would shorten it."""

from __future__ import annotations

from nvila_ros.types import Answer

SLOW_S = 5.0
"""Of the model's own work, from which an answer is called slow."""


def explain(answer: Answer) -> str:
    """Return a sentence about a slow answer; empty for a fast one, and for time that it spent in the queue."""
    timings = answer.timings
    seconds = {"vision": timings.vision_s, "prefill": timings.prefill_s, "decode": timings.decode_s}
    total_s = sum(seconds.values())
    if total_s < SLOW_S:
        return ""
    stage = max(seconds, key=lambda name: seconds[name])
    what = _DESCRIPTIONS[stage].format(counts=answer.counts)
    remedies = [_fewer_tokens(answer) if stage != "decode" else "a smaller max_tokens"]
    if answer.precision == "fp32":
        remedies.append("a build (nvila build), or backend cpu with precision w8")
    return f"{what} took {seconds[stage]:.1f} of {total_s:.1f} s; shorter with {', or '.join(remedies)}"


def _fewer_tokens(answer: Answer) -> str:
    """Return what shrinks the picture: fewer tiles of a single frame, or fewer frames of a clip."""
    return "max_tiles 1: one tile a frame" if len(answer.frames) == 1 else "a smaller num_frames"


_DESCRIPTIONS = {
    "vision": "encoding {counts.num_frames_encoded} frames",
    "prefill": "reading {counts.num_prompt_tokens} tokens, {counts.num_visual_tokens} of them visual,",
    "decode": "writing {counts.num_answer_tokens} tokens",
}
