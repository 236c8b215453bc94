"""What a server has answered so far: text, tokens, counts and the end, of chunks that may lack any field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvila_ros.types import Counts, FinishReason, TokenLogprob

END_BY_NAME = {"stop": FinishReason.STOP, "eos": FinishReason.STOP, "length": FinishReason.LENGTH}
_COUNTS = tuple(each.name for each in dataclasses.fields(Counts))


@dataclass(slots=True)
class RemoteReply:
    """The response to one request.

    Attributes:
        content: so far.
        tokens: with the likeliest others in the place of each, where the server reports them.
        end: why it ended; empty before.
        model: that answers, as the server names it.
        precision: of its weights, where it says so.
        counts: fields of `types.Counts` that it reports.
        scored: names of choices and their probabilities, where it gives those whole.
        text: of the answer, where that is not the content.
        stamps: of the frames that it showed its model, in order; None where it does not say.
    """

    content: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: str = ""
    model: str = ""
    precision: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    scored: tuple[tuple[str, float], ...] = ()
    text: str | None = None
    stamps: tuple[tuple[str, int], ...] | None = None

    def take(self, chunk: Mapping[str, Any]) -> tuple[str, list[TokenLogprob]]:
        """Take a chunk of a stream, or a whole response; returns the text and the tokens that it adds."""
        self.model = str(chunk.get("model") or self.model)[:256]
        self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return "", []
        self.end = str(choice.get("finish_reason") or self.end)
        delta = choice.get("delta") or choice.get("message")
        content = delta.get("content") if isinstance(delta, dict) else None
        text = content if isinstance(content, str) else ""
        tokens = _read_tokens(choice.get("logprobs"))
        self.content += text
        self.tokens += tokens
        return text, tokens

    def take_extra(self, extra: Mapping[str, Any]) -> None:
        """Take the field `nvila` of another node's answer."""
        counts = extra.get("counts")
        if isinstance(counts, dict):
            self.counts |= {name: int(counts[name]) for name in _COUNTS if name in counts}
        names, shares = extra.get("choices"), extra.get("probabilities")
        if isinstance(names, list) and isinstance(shares, list):
            self.scored = tuple((str(name), float(share)) for name, share in zip(names, shares, strict=False))
        self.text = extra["text"] if isinstance(extra.get("text"), str) else None
        self.precision = str(extra.get("precision") or "")[:64]
        self.model = str(extra.get("model") or self.model)[:256]
        frames = extra.get("frames")
        if frames and isinstance(frames, list):
            self.stamps = tuple((str(each.get("camera")), int(each.get("stamp_ns") or 0)) for each in frames)

    def _take_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        details = usage.get("prompt_tokens_details")
        found = {
            "num_prompt_tokens": usage.get("prompt_tokens"),
            "num_answer_tokens": usage.get("completion_tokens"),
            "num_reused_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
        }
        self.counts |= {name: count for name, count in found.items() if isinstance(count, int) and count >= 0}


def _read_tokens(logprobs: Any) -> list[TokenLogprob]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [_read_token(token) for token in content or () if isinstance(token, dict)]


def _read_token(given: Mapping[str, Any]) -> TokenLogprob:
    tops = given.get("top_logprobs")
    top = tuple((_token_bytes(each), _number(each)) for each in tops or () if isinstance(each, dict))
    return TokenLogprob(_token_bytes(given), _number(given), top)


def _token_bytes(given: Mapping[str, Any]) -> bytes:
    spelled = given.get("bytes")
    if isinstance(spelled, list) and spelled and all(type(byte) is int and 0 <= byte < 256 for byte in spelled):
        return bytes(spelled)
    return str(given.get("token", "")).encode(errors="replace")


def _number(given: Mapping[str, Any]) -> float:
    value = given.get("logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return -9999.0
    return float(value)
