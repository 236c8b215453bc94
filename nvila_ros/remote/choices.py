"""Probabilities of choices, from the likeliest tokens that a server reports along the one that it wrote.

At each token the likeliest others are known too. One that goes on towards choices gives them its share; what leads to
none is left out, and the rest adds up to 1. Up to where the choices part this is exact. Beyond it, choices that a path
not taken would still have led to share evenly; one whose token is not among those reported gets nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from nvila_ros.types import TokenLogprob

_END = re.compile(rb"[^\w]*\Z", re.ASCII)


def spelling_shares(written: Sequence[str], tokens: Sequence[TokenLogprob], num_skipped: int = 0) -> np.ndarray | None:
    """Return the probability of each spelling, (S,) float64; None where the tokens lead to none of them.

    Args:
        written: what the server may write, as it would write it.
        tokens: that it wrote, with the likeliest others in the place of each.
        num_skipped: bytes of text before the choice begins.
    """
    texts = [text.encode() for text in written]
    shares, left, open_ = np.zeros(len(texts)), 1.0, list(range(len(texts)))
    said, skipped = b"", 0
    for token in tokens:
        cut = min(num_skipped - skipped, len(token.token))
        skipped += cut
        if cut == len(token.token) or not (said + token.token[cut:]).strip():
            continue  # before the choice, or blank
        paths = _paths(texts, open_, said, token, cut)
        chosen = paths.pop(token.token, None)
        total = math.fsum(share for share, _ in paths.values()) + (chosen[0] if chosen else 0.0)
        if chosen is None or not total > 0:
            break
        for share, places in paths.values():
            shares[places] += left * share / total / len(places)
        left *= chosen[0] / total
        said, open_ = said + token.token[cut:], chosen[1]
        if len(open_) == 1:
            break
    if not said:
        return None
    exact = [place for place in open_ if texts[place] == said.strip()] or open_
    shares[exact] += left / len(exact)
    return shares


def _paths(
    texts: Sequence[bytes], open_: Sequence[int], said: bytes, token: TokenLogprob, cut: int
) -> dict[bytes, tuple[float, list[int]]]:
    """Return the tokens that may stand in a place and lead to spellings: their probabilities and those spellings."""
    paths: dict[bytes, tuple[float, list[int]]] = {}
    for other, logprob in ((token.token, token.logprob), *token.top):
        if other in paths or other[:cut] != token.token[:cut]:
            continue
        text = (said + other[cut:]).lstrip()
        places = [place for place in open_ if _leads(text, texts[place])] if text else []
        if places:
            paths[other] = math.exp(min(logprob, 0.0)), places
    return paths


def _leads(text: bytes, spelling: bytes) -> bool:
    """Whether what was said so far may become a spelling, or is one with nothing but signs behind it."""
    return spelling.startswith(text) or (text.startswith(spelling) and bool(_END.match(text, len(spelling))))
