"""The CPU engine beside what else could run the same model here: one run, the same shapes, all cores, batch 1.

Four parts, of which `--only` chooses:

- decoder: prefill and greedy decode of the language model, with head and attention, over random weights: ours,
  llama.cpp, onnxruntime-genai and openvino-genai;
- floats: the same of ours and of transformers in float;
- tower: one tile through the vision tower in eight bits, against float32 and against OpenVINO's own eight bits;
- answers: what quantization costs nvila-tiny in answers, as the engine itself gives them.

The others live in an environment of their own. Each runtime has a process of its own, loaded once; then they take turns
round by round, and whoever is not measured is stopped. Of a round the median step counts, of the rounds the median; the
table shows the worst as well. A ratio is that of one round, and of the rounds' ratios the median. Runtimes that are not
installed, or fail, are shown with the reason.
Prints tables and, last, one JSON line, in which `X_vs_Y` and `ratio` above 1 mean that ours is that many times as fast;
what was not measured is null.

    make bench-engines
    .venv/bin/python -m benchmarks.engines --layers 2 --tower-layers 2 --questions 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.peers.job import PeerJob
from benchmarks.peers.rounds import PeerResult, PeerSetup, run_rounds
from benchmarks.peers.weights import RandomWeights
from nvila_ros.models.variants import VARIANTS
from nvila_ros.tools.options import positive, print_json, whole, wide_console

PARTS = ("decoder", "floats", "tower", "answers")
GB = 1e9
OURS, MEMORY = "ours", "memory"
Q4_0, OPENVINO_INT8 = "llama.cpp Q4_0", "openvino int8"
DECODERS = (
    PeerSetup(OURS, "ours", "decoder", "int4 g128"),
    PeerSetup(Q4_0, "llamacpp", "Q4_0", "4 bits"),
    PeerSetup("llama.cpp Q4_K_M", "llamacpp", "Q4_K_M", "4 and 6 bits"),
    PeerSetup("onnxruntime-genai b32", "ort_genai", "32", "int4 g32"),
    PeerSetup("onnxruntime-genai b128", "ort_genai", "128", "int4 g128"),
    PeerSetup("openvino-genai", "ov_genai", "int4", "int4 g128, head 8"),
)
FLOATS = (
    PeerSetup(OURS, "ours", "decoder", "int4 g128"),
    PeerSetup("transformers fp32", "transformers_torch", "float32", "float32"),
    PeerSetup("transformers bf16", "transformers_torch", "bfloat16", "bfloat16"),
)
"""Apart from `DECODERS`, since all together would not fit a small machine."""
FLOAT_ROUNDS = 2  # at most: they take longest and are never near
TOWERS = (
    PeerSetup(OURS, "ours", "tower w8a8", "w8a8"),
    PeerSetup("ours by token", "ours", "tower w8a8 by token", "w8a8, activations by token"),
    PeerSetup("ours fp32 openvino", "ours", "tower fp32 openvino", "float32"),
    PeerSetup("ours fp32 onnxruntime", "ours", "tower fp32 onnxruntime", "float32"),
    PeerSetup(OPENVINO_INT8, "ov_tower", "int8", "int8, by NNCF"),
)
READER = PeerSetup(MEMORY, "memory", "read", "")


def main() -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args()
    job = PeerJob(
        variant=args.variant,
        layers=args.layers,
        tower_layers=args.tower_layers,
        prompt=args.prompt,
        tokens=args.tokens,
        threads=args.threads,
        head_bits=args.head_bits,
        folder=str(args.folder.resolve()),
        python=str(args.peers.absolute()),
    )
    begun = time.monotonic()

    def report(text: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {text}", file=sys.stderr, flush=True)

    groups: list[dict[str, PeerResult]] = []
    tower: dict[str, PeerResult] = {}
    answers: dict[str, Any] = {}
    print(f"{machine()}, {job.threads} threads, {args.rounds} rounds", flush=True)
    if "decoder" in args.only:
        groups.append(run_rounds((READER, *DECODERS), job, args.rounds, report))
    if "floats" in args.only:
        groups.append(run_rounds((READER, *FLOATS), job, min(args.rounds, FLOAT_ROUNDS), report))
    if groups:
        print_decoders(job, groups, args)
    if "tower" in args.only:
        tower = run_rounds(TOWERS, job, args.rounds, report)
        print_tower(job, tower, args)
    if "answers" in args.only:
        report("answers: nvila-tiny is calibrated, quantized and asked")
        answers = ask_tiny(args)
        print("answers of nvila-tiny:", ", ".join(f"{key} {value}" for key, value in answers.items()))
    print_json(as_dict(job, groups, tower, answers))
    return 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--variant", choices=VARIANTS, default="NVILA-Lite-2B")
    parser.add_argument("--layers", type=whole, default=0, help="of the language model (default: all)")
    parser.add_argument("--tower-layers", type=whole, default=0, help="of the vision tower (default: all)")
    parser.add_argument("--prompt", type=positive, default=512, help="tokens of the prefill")
    parser.add_argument("--tokens", type=positive, default=48, help="decode steps of a round")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4, help="of our map to the vocabulary")
    parser.add_argument("--questions", type=positive, default=167, help="to nvila-tiny, of each of eleven kinds")
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="keeps the runtimes' files")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        help="interpreter of the environment that holds the other runtimes (default: %(default)s)",
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args()


def ask_tiny(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `benchmarks.answers` says, in a process of its own; only the reason where it fails."""
    options = {"--questions": args.questions, "--head-bits": args.head_bits, "--threads": args.threads}
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "benchmarks.answers", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"fault": (done.stderr.strip() or "said nothing").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def as_dict(
    job: PeerJob,
    groups: Sequence[Mapping[str, PeerResult]],
    tower: Mapping[str, PeerResult],
    answers: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON line."""
    decode, prefill = (all_ratios(groups, step) for step in ("decode", "prefill"))
    towers = ratios(tower, "tile")
    floats = [ratio for name, ratio in towers.items() if "fp32" in name]
    read_s = read_bytes_s(groups)
    return {
        "decode_ratio": rounded(min(decode.values(), default=None)),
        "prefill_ratio": rounded(min(prefill.values(), default=None)),
        "decode_vs_llamacpp": rounded(decode.get(Q4_0)),
        "prefill_vs_llamacpp": rounded(prefill.get(Q4_0)),
        "tower_vs_fp32": rounded(min(floats, default=None)),
        "tower_vs_openvino": rounded(towers.get(OPENVINO_INT8)),
        "roofline": rounded(roofline(groups[0], job) if groups else None),
        "accuracy_fp32": answers.get("accuracy_fp32"),
        "accuracy_quant": answers.get("accuracy_quant"),
        "equal_answers": answers.get("equal_answers"),
        "asked": answers.get("asked"),
        "read_gb_s": rounded(read_s and read_s / GB),
        "decode_vs": {name: rounded(ratio) for name, ratio in decode.items()},
        "prefill_vs": {name: rounded(ratio) for name, ratio in prefill.items()},
        "layers": job.decoder_spec.decoder.num_layers,
        "head_bits": job.head_bits,
        "threads": job.threads,
    }


def ratios(results: Mapping[str, PeerResult], step: str) -> dict[str, float]:
    """Return how many times as fast ours is at a step as each other runtime: round by round, and of those the median.

    Best against best would compare a good minute of the machine's with another's bad one.
    """
    ours = results[OURS].steps.get(step, []) if OURS in results else []
    found = {}
    for name, each in results.items():
        pairs = list(zip(each.steps.get(step, []), ours, strict=False))
        if name != OURS and pairs:
            found[name] = median(median(theirs) / median(mine) for theirs, mine in pairs)
    return found


def all_ratios(groups: Sequence[Mapping[str, PeerResult]], step: str) -> dict[str, float]:
    """Return the ratios of all groups, each against ours in the same rounds."""
    return {name: ratio for results in groups for name, ratio in ratios(results, step).items()}


def read_bytes_s(groups: Sequence[Mapping[str, PeerResult]]) -> float | None:
    """Return how fast memory was read in a typical round, or None."""
    rounds = [min(read) for results in groups for read in results[MEMORY].steps.get("read", [])]
    return GB / median(rounds) if rounds else None


def roofline(results: Mapping[str, PeerResult], job: PeerJob) -> float | None:
    """Return the share of memory's speed that our step reads at, each round by itself and of the rounds the median.

    A machine that shares its host's memory reads at half the speed from one minute to the next.
    """
    steps, reads = results[OURS].steps.get("decode", []), results[MEMORY].steps.get("read", [])
    shares = [step_bytes(job) / median(step) * min(read) / GB for step, read in zip(steps, reads, strict=False)]
    return median(shares) if shares else None


def step_bytes(job: PeerJob) -> float:
    """Return what a decode step of ours must read, amid the answer."""
    spec = job.decoder_spec
    return RandomWeights(spec, job.head_bits).bytes_per_step(spec.decoder, job.prompt + job.tokens // 2)


def rounded(number: float | None) -> float | None:
    """Return it with three decimals."""
    return None if number is None else round(number, 3)


def print_decoders(job: PeerJob, groups: Sequence[Mapping[str, PeerResult]], args: argparse.Namespace) -> None:
    """Print how fast the language model was on each runtime, and how fast memory."""
    title = f"{job.variant}, {job.decoder_spec.decoder.num_layers} layers, prompt {job.prompt}, {job.tokens} tokens"
    heads = ("runtime", "weights", "prefill\ntokens/s", "worst", "decode\ntokens/s", "worst", "ours is", "memory\nGB")
    print_table(title, heads, [row for results in groups for row in decoder_rows(results, job)], args)
    if read_s := read_bytes_s(groups):
        print(f"memory is read at {read_s / GB:.1f} GB/s; a step of ours reads {step_bytes(job) / GB:.3f} GB")


def print_tower(job: PeerJob, tower: Mapping[str, PeerResult], args: argparse.Namespace) -> None:
    """Print how fast the tower was on each runtime."""
    title = f"vision tower, {job.tower_spec.vision.num_live_layers} layers, one tile"
    print_table(title, ("runtime", "weights", "ms", "worst", "ours is", "memory\nGB"), tower_rows(tower), args)


def decoder_rows(results: Mapping[str, PeerResult], job: PeerJob) -> list[Sequence[str]]:
    """Return a row for each runtime."""
    rows: list[Sequence[str]] = []
    decode, prefill = ratios(results, "decode"), ratios(results, "prefill")
    for name, each in results.items():
        if name == MEMORY:
            continue
        holds = f"{each.entry.holds}, head {job.head_bits}" if name == OURS else each.entry.holds
        prefill_s, step_s = each.typical("prefill"), each.typical("decode")
        if not prefill_s or not step_s:
            rows.append((name, holds, f"skipped: {each.fault}"))
            continue
        speeds = (job.prompt / prefill_s, job.prompt / each.worst("prefill"), 1 / step_s, 1 / each.worst("decode"))
        ratio = f"{prefill[name]:.2f}x, {decode[name]:.2f}x" if name in decode else ""
        rows.append((name, holds, *(f"{speed:.1f}" for speed in speeds), ratio, f"{each.rss_bytes / GB:.1f}"))
    return rows


def tower_rows(results: Mapping[str, PeerResult]) -> list[Sequence[str]]:
    """Return a row for each runtime."""
    rows: list[Sequence[str]] = []
    times = ratios(results, "tile")
    for name, each in results.items():
        if (tile_s := each.typical("tile")) is None:
            rows.append((name, each.entry.holds, f"skipped: {each.fault}"))
            continue
        ratio = f"{times[name]:.2f}x" if name in times else ""
        ms = (f"{1e3 * tile_s:,.0f}", f"{1e3 * each.worst('tile'):,.0f}")
        rows.append((name, each.entry.holds, *ms, ratio, f"{each.rss_bytes / GB:.1f}"))
    return rows


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], args: argparse.Namespace) -> None:
    """Print a table, on a terminal or as Markdown."""
    if args.markdown:
        lines = [[head.replace("\n", " ") for head in heads], ["---"] * len(heads)]
        lines += [[*row, *[""] * (len(heads) - len(row))] for row in rows]
        print(f"\n**{title}**\n", *(f"| {' | '.join(line)} |" for line in lines), "", sep="\n")
        return
    table = Table(*heads, box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)


def machine() -> str:
    """Return the processor's name as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
