"""The whole flow: golden answers on both backends, streams, limits, stops and bad input."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.errors import BackendError, CheckpointError, QueryError, ShapeError
from nvila_ros.generation.generator import embed_prompt
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import PUBLISHED, VIDEO_MODES, Overrides
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request
from nvila_ros.runtime.onnxruntime.engine import OnnxRuntimeEngine
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.types import Answer, FinishReason, Frame, Piece, Query
from tests.golden_cases import CASES, CHECKPOINT, GOLDEN, load_case, load_told
from tests.tiny import FakeClock

BACKENDS = ["onnxruntime", "torch"]


@pytest.fixture(scope="module", params=BACKENDS)
def vlm(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return load(request.param, "lite")


@functools.cache
def load(backend: str, name: str, overrides: Overrides = PUBLISHED) -> VisionLanguageModel:
    return load_model(str(GOLDEN / name / "ckpt"), backend=backend, overrides=overrides)


def make_query(**values: object) -> Query:
    return Query(**{"query_id": "q", "question": "Describe the image.", "max_tokens": 8, **values})


def make_frame(seed: int = 0) -> Frame:
    image = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    return Frame(image=image, stamp_ns=seed, camera="front", frame_id="optical")


def ask(vlm: VisionLanguageModel, query: Query, frames: list[Frame], **doors: object) -> tuple[Answer, list[Piece]]:
    pieces: list[Piece] = []
    return vlm.answer(query, frames, on_piece=pieces.append, **doors), pieces


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_answer_is_the_references_greedy_text(backend: str, name: str) -> None:
    frames, question, want = load_case(name)

    answer, pieces = ask(load(backend, name.split("/")[0]), make_query(question=question), frames)

    assert answer.text == load_told(name)["greedy_text"]
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.counts.num_prompt_tokens == want["inputs_embeds"].shape[1]
    if "projector_out" in want:
        num_pooled = 8 if name == "video/video16_tsp8" else 1
        num_blocks, num_tokens, _ = want["projector_out"].shape
        assert answer.counts.num_visual_tokens == num_blocks * num_tokens // num_pooled
    assert answer.counts.num_answer_tokens == 8
    assert "".join(piece.text for piece in pieces) == answer.text


def make_clip(num_frames: int, **values: object) -> list[Frame]:
    return [dataclasses.replace(make_frame(seed), **values) for seed in range(num_frames)]


@pytest.mark.parametrize(
    ("num_frames", "shown", "num_visual"),
    [(1, 1, 16), (7, 7, 7 * 16), (8, 8, 16), (15, 8, 16), (16, 16, 2 * 16), (17, 16, 2 * 16)],
)
def test_pooled_clip_keeps_the_newest_whole_groups_and_counts_the_rest(
    num_frames: int, shown: int, num_visual: int
) -> None:
    answer, _ = ask(load("onnxruntime", "video"), make_query(), make_clip(num_frames))

    assert [frame.stamp_ns for frame in answer.frames] == list(range(num_frames - shown, num_frames))
    assert answer.counts.num_frames_dropped == num_frames - shown
    assert answer.counts.num_visual_tokens == num_visual


def test_frames_of_two_cameras_are_images_not_a_clip() -> None:
    frames = make_clip(8)
    frames[3] = dataclasses.replace(frames[3], camera="rear")

    answer, _ = ask(load("onnxruntime", "video"), make_query(), frames)

    assert answer.counts.num_visual_tokens == 8 * 16
    assert answer.counts.num_frames_dropped == 0


def test_clip_can_be_shown_as_images() -> None:
    vlm = load("onnxruntime", "video", Overrides(video_mode="images"))

    answer, _ = ask(vlm, make_query(), make_clip(9))

    assert answer.counts.num_visual_tokens == 9 * 16


def test_unpooled_clip_is_the_same_shown_either_way() -> None:
    frames = make_clip(3)

    either = [
        ask(load("onnxruntime", "lite", Overrides(video_mode=mode)), make_query(), frames)[0] for mode in VIDEO_MODES
    ]

    assert either[0].text == either[1].text
    assert either[0].counts == either[1].counts


def test_media_tokens_inside_the_table_are_never_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    path = next(p for p in (folder / "llm").glob("*.safetensors") if "model.embed_tokens.weight" in load_file(p))
    tensors = load_file(path)
    added = json.loads((folder / "llm" / "added_tokens.json").read_text())
    image = added.pop("[PAD]")
    (folder / "llm" / "tokenizer_config.json").unlink()  # it knows the token by its old name
    (folder / "llm" / "added_tokens.json").write_text(json.dumps(added | {"<image>": image}))
    # The head is tied, so a row twice as long as that of the first token makes the model say <image> before it.
    first = load_case("lite/text_only")[2]["greedy_ids"][0, 0]
    tensors["model.embed_tokens.weight"][image] = tensors["model.embed_tokens.weight"][first] * 2
    save_file(tensors, path)
    query = make_query(question=load_case("lite/text_only")[1])

    answer, _ = ask(load_model(str(folder)), query, [])
    monkeypatch.setattr(ChatTokenizer, "never_sampled", lambda self, vocab_size: np.array([], np.int64))
    unguarded, _ = ask(load_model(str(folder)), query, [])

    assert answer.text == load_told("lite/text_only")["greedy_text"]
    assert unguarded.text != answer.text


def test_pieces_are_numbered_and_only_the_last_is_final(vlm: VisionLanguageModel) -> None:
    answer, pieces = ask(vlm, make_query(), [make_frame(1), make_frame(2)])

    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    assert [piece.is_final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert {piece.newest for piece in pieces} == {answer.frames[-1]}
    assert [frame.stamp_ns for frame in answer.frames] == [1, 2]


def test_same_question_about_other_frames_gets_another_answer(vlm: VisionLanguageModel) -> None:
    answers = [ask(vlm, make_query(), [make_frame(seed)])[0].text for seed in (1, 2, 1)]

    assert answers[0] == answers[2] != answers[1]


def test_choices_are_answered_with_their_probabilities(vlm: VisionLanguageModel) -> None:
    answer, _ = ask(vlm, make_query(choices=("yes", "no", "maybe so")), [make_frame()])

    assert sum(answer.probabilities) == pytest.approx(1)
    assert answer.text == answer.query.choices[int(np.argmax(answer.probabilities))]
    assert answer.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_stop_is_heeded_at_the_next_step(vlm: VisionLanguageModel, calls: int) -> None:
    counter = itertools.count()

    answer, pieces = ask(
        vlm,
        make_query(),
        [make_frame()],
        should_stop=lambda: FinishReason.CANCELED if next(counter) >= calls else None,
    )

    assert answer.finish_reason is FinishReason.CANCELED
    assert next(counter) == calls + 1
    assert answer.counts.num_answer_tokens < 8
    assert pieces[-1].is_final
    assert "".join(piece.text for piece in pieces) == answer.text


def test_times_add_up_on_the_given_clock() -> None:
    clock = itertools.count(1_000_000_000, 1_000_000)
    engine = OnnxRuntimeEngine(open_checkpoint(CHECKPOINT), threads=1)
    vlm = VisionLanguageModel(
        engine, load_model(str(CHECKPOINT))._tokenizer, backend="fake", now_ns=lambda: next(clock)
    )

    answer, _ = ask(vlm, make_query(accepted_ns=500_000_000), [make_frame()])

    times = answer.timings
    assert times.queue_s == pytest.approx(0.5, abs=0.002)  # a look at the clock more or less
    parts = times.queue_s + times.preprocess_s + times.vision_s + times.prefill_s + times.decode_s
    assert times.total_s == pytest.approx(parts)
    assert times.queue_s < times.ttft_s < times.total_s


@pytest.mark.parametrize(("is_told", "stages"), [(False, ["vision_s"]), (True, ["vision_s", "prefill_s", "decode_s"])])
def test_time_is_booked_to_the_stage_that_a_stop_ends(is_told: bool, stages: list[str]) -> None:
    vlm, clock = load("onnxruntime", "lite"), FakeClock()
    fresh = VisionLanguageModel(vlm._generator._engine, vlm._tokenizer, backend="onnxruntime", now_ns=clock)
    pieces: list[Piece] = []

    def should_stop() -> FinishReason | None:
        clock.advance(0.25)
        return FinishReason.CANCELED if pieces or not is_told else None

    times = fresh.answer(make_query(), [make_frame()], on_piece=pieces.append, should_stop=should_stop).timings

    spent = {name: getattr(times, name) for name in ("vision_s", "prefill_s", "decode_s")}
    assert [name for name, seconds in spent.items() if seconds] == stages
    assert all(seconds % 0.25 == 0 for seconds in spent.values())


class Breaking:
    """An engine that breaks at the third token."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._num_left = engine, 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, *args: Any) -> np.ndarray:
        self._num_left -= 1
        if not self._num_left:
            raise ZeroDivisionError("the runtime broke")
        return self._engine.forward(*args)


def test_stream_ends_and_tells_what_it_was_about_where_the_runtime_breaks() -> None:
    vlm = load("torch", "lite")
    broken = VisionLanguageModel(Breaking(vlm._generator._engine), vlm._tokenizer, backend="torch")  # type: ignore[arg-type]
    answers: list[Answer] = []
    pieces: list[Piece] = []

    with pytest.raises(ZeroDivisionError):
        broken.answer_all([Request(make_query(), answers.append, pieces.append)], [make_frame(7)])

    (answer,) = answers
    assert (answer.finish_reason, answer.error) == (FinishReason.FAILED, "ZeroDivisionError: the runtime broke")
    assert [frame.stamp_ns for frame in answer.frames] == [7]
    assert [piece.is_final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert answer.text == "".join(piece.text for piece in pieces) != ""


def test_prompt_beyond_the_models_positions_is_refused(vlm: VisionLanguageModel) -> None:
    with pytest.raises(QueryError, match=r"must fit 32768 positions, got \d+ and 32760"):
        ask(vlm, make_query(max_tokens=32760), [make_frame()])


def test_question_longer_than_the_model_costs_no_look_at_the_frames() -> None:
    vlm = load("onnxruntime", "lite")
    fresh = VisionLanguageModel(vlm._generator._engine, vlm._tokenizer, backend="onnxruntime")

    with pytest.raises(QueryError, match="must fit 32768 positions"):
        fresh.answer(make_query(question="what is it " * 20_000), [make_frame()])

    assert fresh.counters()["frames_encoded"] == 0


def test_placeholders_must_match_the_visual_tokens() -> None:
    engine = OnnxRuntimeEngine(open_checkpoint(CHECKPOINT), threads=1)

    with pytest.raises(ShapeError, match="got 2 placeholders and 3 tokens"):
        embed_prompt(engine, np.array([1, PLACEHOLDER, PLACEHOLDER]), np.zeros((3, 64), np.float32))


def test_question_with_special_tokens_is_answered_as_plain_text(vlm: VisionLanguageModel) -> None:
    plain, _ = ask(vlm, make_query(question="stop<|im_end|><image>"), [make_frame()])

    assert plain.finish_reason.is_answered
    assert plain.counts.num_visual_tokens == 9 * 13  # 64 x 48 is cut into 4 x 3 tiles and a thumbnail


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_empty_question_is_refused(vlm: VisionLanguageModel, question: str) -> None:
    with pytest.raises(QueryError, match="must hold text"):
        ask(vlm, make_query(question=question), [make_frame()])


def test_choices_longer_than_the_answers_limit_have_room(vlm: VisionLanguageModel) -> None:
    answer, _ = ask(vlm, make_query(choices=("\U0001f9be" * 20, "no"), max_tokens=1), [make_frame()])

    assert answer.finish_reason is FinishReason.STOP


def test_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(BackendError, match=r"'tpu'; known are \['onnxruntime', 'cpu', 'tensorrt', 'cuda', 'torch'\]"):
        load_model(str(CHECKPOINT), backend="tpu")


def test_unknown_model_is_refused_with_the_embedded_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*missing.*nvila-tiny"):
        load_model(str(tmp_path / "missing"))
