"""An answer as a chat completion: whole, or as the chunks of a stream.

What OpenAI's form has no place for is in the field `nvila`: stamps, age, frames, probabilities, times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from nvila_ros.http.chat_request import ChatRequest
from nvila_ros.http.views import Json, answer_view
from nvila_ros.types import Answer, FinishReason, TokenLogprob

FINGERPRINT = "greedy"
"""Of how tokens are drawn: the same request gives the same answer, whatever its seed."""


class Completion:
    """Writes one answer in OpenAI's form.

    Args:
        chat: what was asked.
        model: returns the name of the model that answers; asked once it does, since a question may have waited for it.
    """

    def __init__(self, chat: ChatRequest, model: Callable[[], str]) -> None:
        self._chat, self._model = chat, model
        self._head = {
            "id": f"chatcmpl-{chat.query.query_id}",
            "created": int(time.time()),
            "system_fingerprint": FINGERPRINT,
        }
        self.has_begun = False

    def whole(self, answer: Answer, now_ns: int) -> Json:
        """Return the response to a request that is not streamed."""
        content = self._content(answer)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs(scored_logprobs(answer, content) or answer.logprobs),
            "finish_reason": finish_reason(answer),
        }
        return {
            **self._head,
            "object": "chat.completion",
            "model": answer.model or self._model(),
            "choices": [choice],
            "usage": usage(answer),
            "nvila": self._extra(answer, now_ns),
        }

    def piece(self, text: str, logprobs: Sequence[TokenLogprob]) -> Json:
        """Return a chunk with a piece of text."""
        return self._chunk({"content": text}, self._logprobs(logprobs))

    def end(self, answer: Answer, now_ns: int) -> list[Json]:
        """Return the last chunks: the text of an answer that is not streamed in pieces, the end, and the usage."""
        chunks = []
        if self.is_whole:
            content = self._content(answer)
            chunks.append(self._chunk({"content": content}, self._logprobs(scored_logprobs(answer, content))))
        last = self._chunk({}, None)
        last["choices"][0]["finish_reason"] = finish_reason(answer)
        last["nvila"] = self._extra(answer, now_ns)
        chunks.append(last)
        if self._chat.has_usage:
            chunks.append({**self._chunk({}, None), "choices": [], "usage": usage(answer)})
        return chunks

    @property
    def is_whole(self) -> bool:
        """Whether the answer comes at once at its end: of choices, whose text and probabilities belong together."""
        query = self._chat.query
        return self._chat.form.is_whole or query.answer_type in ("choices", "yes_no")

    def _content(self, answer: Answer) -> str:
        return self._chat.form.render(answer.text) if answer.text else ""

    def _chunk(self, delta: Json, logprobs: Json | None) -> Json:
        role = {} if self.has_begun else {"role": "assistant"}
        self.has_begun = True
        choice = {"index": 0, "delta": role | delta, "logprobs": logprobs, "finish_reason": None}
        head = {**self._head, "object": "chat.completion.chunk", "model": self._model(), "choices": [choice]}
        return head | ({"usage": None} if self._chat.has_usage else {})

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Json | None:
        top = self._chat.query.top_logprobs
        if top is None:
            return None
        return {"content": [_token(token, top) for token in tokens], "refusal": None}

    def _extra(self, answer: Answer, now_ns: int) -> Json:
        view = answer_view(answer, now_ns)
        return {**view, "ignored": list(self._chat.ignored)}


def scored_logprobs(answer: Answer, content: str) -> tuple[TokenLogprob, ...]:
    """Return the probabilities of choices as those of one token: what was chosen, and all that might have been.

    The chosen one is spelled as the content is; the others by their names. An answer that is no choice has none.
    """
    if answer.text not in answer.choices or not answer.probabilities:
        return ()
    by_name = dict(zip(answer.choices, answer.probabilities, strict=True))
    ranked = sorted(by_name.items(), key=lambda pair: -pair[1])
    top = tuple((name.encode(), _log(share)) for name, share in ranked)
    return (TokenLogprob(content.encode(), _log(by_name[answer.text]), top),)


def finish_reason(answer: Answer) -> str:
    """Return why an answer ended, in OpenAI's terms: one that was cut has reached a limit."""
    return "stop" if answer.finish_reason is FinishReason.STOP else "length"


def usage(answer: Answer) -> Json:
    """Return how many tokens went in and out."""
    counts = answer.counts
    return {
        "prompt_tokens": counts.num_prompt_tokens,
        "completion_tokens": counts.num_answer_tokens,
        "total_tokens": counts.num_prompt_tokens + counts.num_answer_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.num_reused_tokens},
    }


def _token(token: TokenLogprob, num_top: int) -> dict[str, Any]:
    return {**_written(token.token, token.logprob), "top_logprobs": [_written(*each) for each in token.top[:num_top]]}


def _written(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def _log(share: float) -> float:
    """Return a logarithm; that of nothing is a number of JSON, as OpenAI writes it."""
    return max(math.log(share), -9999.0) if share > 0 else -9999.0
