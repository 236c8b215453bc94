"""The embedded checkpoint: small, of the shapes it promises, and answered alike by every backend."""

import itertools
import json
from collections.abc import Iterator

import pytest

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import load_model
from nvila_ros.training.tiny import SPEC
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, EvalCase, eval_case, is_correct
from nvila_ros.world.rendering import render

NUM_CASES = 209  # 19 of each kind
LEAST_RIGHT = 0.94  # a smoke alarm on few cases; the model card has the figures


def cases() -> Iterator[tuple[str, EvalCase]]:
    for index, kind in itertools.product(range(10_000, 10_000 + NUM_CASES // len(EVAL_KINDS)), EVAL_KINDS):
        yield kind, eval_case(kind, index)


def film(case: EvalCase) -> list[Frame]:
    return [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]


@pytest.mark.slow
def test_backends_answer_alike_and_mostly_right() -> None:
    onnxruntime, torch = (load_model("nvila-tiny", backend=backend, threads=1) for backend in ("onnxruntime", "torch"))

    differing, num_right = [], 0
    for kind, case in cases():
        frames = film(case)
        query = Query(query_id=kind, question=case.question.text, num_frames=len(frames), max_tokens=16)
        got, want = onnxruntime.answer(query, frames), torch.answer(query, frames)
        if (got.text, got.counts) != (want.text, want.counts):
            differing.append((kind, case.question.text, got.text, want.text))
        num_right += is_correct(case.question, got.text)

    assert not differing
    assert num_right >= LEAST_RIGHT * NUM_CASES


def test_checkpoint_is_what_the_training_makes_and_fits_16_mb() -> None:
    path = find_checkpoint("nvila-tiny")

    assert open_checkpoint(path).spec == SPEC
    assert sum(file.stat().st_size for file in path.rglob("*")) < 16_000_000


def test_sizes_suit_the_engines() -> None:
    decoder = SPEC.decoder

    assert decoder.width % 128 == 0
    assert decoder.mlp_width % 128 == 0
    assert decoder.num_kv_heads * decoder.head_size >= 128
    assert decoder.vocab_size % 2 == 0


def test_media_tokens_lie_beyond_the_embedding_table() -> None:
    path = find_checkpoint("nvila-tiny") / "llm"
    ids = json.loads((path / "vocab.json").read_text()) | json.loads((path / "added_tokens.json").read_text())

    assert sorted(ids.values()) == list(range(SPEC.decoder.vocab_size))
    assert not {"<image>", "<vila/video>"} & ids.keys()
