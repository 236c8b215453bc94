"""What the CPU engine answers with quantized weights, against fp32: the same held-out questions to both.

The scheme is the one that `engines.py` times: W8A8 in the tower, with one scale for all of an input or one for each
token, W4A16 with AWQ and clipping in the decoder, a head in four or eight bits. Unlike `quantize.py`, which simulates
what an engine computes, this asks the engine itself. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.answers --questions 167
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch
from rich.console import Console

from benchmarks.quantize import SCHEMES, SchemeResult, as_table, ask, load, quantize
from nvila_ros.builds.weights import world_samples
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import calibrate
from nvila_ros.quantization.options import ACTIVATIONS, DecoderOptions, TowerOptions
from nvila_ros.runtime.cpu.engine import load_quantized
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.options import positive, print_json
from nvila_ros.world.questions import EVAL_CLIP_FRAMES


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder, or name of an embedded one")
    parser.add_argument("--questions", type=positive, default=50, metavar="N", help="per kind (default: 50)")
    parser.add_argument("--samples", type=positive, default=64, metavar="N", help="to calibrate on (default: 64)")
    parser.add_argument("--activations", choices=ACTIVATIONS, default="per_tensor", help="their scales in the tower")
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--threads", type=positive, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    calibration = calibrate(checkpoint, tokenizer, itertools.islice(world_samples(EVAL_CLIP_FRAMES), args.samples))
    timed = (TowerOptions(activations=args.activations), DecoderOptions(is_head_int4=args.head_bits == 4))
    fp32_weights, weights = quantize(checkpoint, calibration, [SCHEMES["fp32"], timed])
    engine = load_quantized(checkpoint.spec, weights, args.threads)
    fp32 = SchemeResult("fp32", load(checkpoint, tokenizer, fp32_weights))
    quantized = SchemeResult("engine", VisionLanguageModel(engine, tokenizer, backend="cpu"))
    ask([fp32, quantized], args.questions)
    Console(highlight=False, width=100).print(as_table([fp32, quantized]))
    print_json(
        {
            "model": checkpoint.spec.name,
            "asked": sum(map(len, fp32.answers.values())),
            "activations": args.activations,
            "head_bits": args.head_bits,
            "accuracy_fp32": round(fp32.accuracy(), 4),
            "accuracy_quant": round(quantized.accuracy(), 4),
            "equal_answers": round(quantized.equal_answers(fp32), 4),
        }
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
