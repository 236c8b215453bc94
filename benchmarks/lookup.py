"""Would prompt lookup make answers faster? The speed-up it could give at most, from real answers and measured calls.

Prompt lookup drafts the next tokens by finding the last ones earlier in prompt or answer, and checks all of a draft in
one call. It pays if a call of several tokens costs
less than the calls it spares. Here nvila-tiny's greedy answers are told as drafts would have, call by call; what calls
of one and of several tokens cost is measured on the same decoder and on one of NVILA-Lite-2B's shapes. Prints a table
and, last, one JSON line.

    .venv/bin/python -m benchmarks.lookup --layers 28
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.peers.job import Job
from benchmarks.peers.weights import RandomWeights
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.cpu.engine import load_quantized
from nvila_ros.runtime.loading import find_checkpoint, load_engine, open_model
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.options import positive, print_json
from nvila_ros.tools.suites import HEIGHT, WIDTH
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import eval_case
from nvila_ros.world.rendering import render

DRAFTS = (1, 2, 3, 5)
MATCHED = (2, 1)  # tokens that must be found again, longer ones first
QUESTION = "What do you see?"
ROUNDS = 15
CONTEXT = 256


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=positive, default=100)
    parser.add_argument("--layers", type=positive, default=28, help="of the larger decoder (default: %(default)s)")
    args = parser.parse_args()
    checkpoint = open_model(find_checkpoint("nvila-tiny"))
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    tiny = load_engine(checkpoint, "cpu")
    texts = answers(VisionLanguageModel(tiny, tokenizer, backend="cpu"), tokenizer, args.answers)
    job = Job("NVILA-Lite-2B", args.layers, 1, 0, 0, 0, 4, "")
    large = load_quantized(job.decoder_spec, RandomWeights(job.decoder_spec))
    costs = {"nvila-tiny": call_costs(tiny), "2B, random": call_costs(large)}
    table = Table("draft", "tokens a call", *(f"{name}: cost of a call, speed-up" for name in costs))
    told: dict[str, dict[str, float]] = {}
    for draft in DRAFTS:
        tokens_per_call = statistics.mean(len(ids) / num_calls(prompt, ids, draft) for prompt, ids in texts)
        ups = {name: tokens_per_call / (cost[draft + 1] / cost[1]) for name, cost in costs.items()}
        cells = [f"{cost[draft + 1] / cost[1]:.2f}, {ups[name]:.2f}" for name, cost in costs.items()]
        table.add_row(str(draft), f"{tokens_per_call:.2f}", *cells)
        told[str(draft)] = {"tokens_per_call": round(tokens_per_call, 2)} | {n: round(up, 2) for n, up in ups.items()}
    Console().print(table)
    print_json({"benchmark": "lookup", "answers": len(texts), "drafts": told})
    return 0


def answers(model: VisionLanguageModel, tokenizer: ChatTokenizer, count: int) -> list[tuple[list[int], list[int]]]:
    """Return the question's and the answer's ids of descriptions, the longest answers that nvila-tiny gives."""
    texts = []
    for index in range(count):
        case = eval_case("count", index)
        frame = Frame(image=render(case.scene, case.times_s[0], WIDTH, HEIGHT), stamp_ns=index)
        answer = model.answer(Query(query_id=str(index), question=QUESTION, max_tokens=64), [frame])
        texts.append((tokenizer.encode(QUESTION), tokenizer.encode(answer.text)))
    return texts


def num_calls(prompt: Sequence[int], ids: Sequence[int], draft: int) -> int:
    """Return the calls that it takes to tell an answer with drafts of so many tokens."""
    done = calls = 0
    while done < len(ids):
        told = [*prompt, *ids[:done]]
        guess = look_up(told, draft)
        right = 0
        while right < len(guess) and done + right < len(ids) and guess[right] == ids[done + right]:
            right += 1
        done += right + 1  # the call also gives the token behind those that were right
        calls += 1
    return calls


def look_up(told: Sequence[int], draft: int) -> list[int]:
    """Return what followed the last tokens where they came before, most recently."""
    for size in MATCHED:
        tail = list(told[-size:])
        for start in range(len(told) - size - 1, -1, -1):
            if list(told[start : start + size]) == tail:
                return list(told[start + size : start + size + draft])
    return []


def call_costs(engine: Engine) -> dict[int, float]:
    """Return the seconds of calls of one token and of each draft with the token before it, medians in turns."""
    cache = engine.new_cache(CONTEXT + 16)
    ids = np.random.default_rng(0).integers(0, 200, CONTEXT)
    engine.forward(engine.embed(ids), cache)
    seconds: dict[int, list[float]] = {1: [], **{draft + 1: [] for draft in DRAFTS}}
    for _ in range(ROUNDS):
        for size, told in seconds.items():
            start = time.perf_counter()
            engine.forward(engine.embed(ids[:size]), cache)
            told.append(time.perf_counter() - start)
            cache.truncate(CONTEXT)
    return {size: statistics.median(told) for size, told in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
