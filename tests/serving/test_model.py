"""What Python programs use: load, ask, stream; and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nvila_ros
from nvila_ros import FinishReason, Frame, Model, NvilaError, load, read_clip
from nvila_ros.errors import CheckpointError, FrameError, QueryError, UnansweredError
from nvila_ros.request import ModelInfo
from nvila_ros.serving.pipeline import load_model
from nvila_ros.types import Answer, OnPiece, Piece, Query, ShouldStop

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "clip.mp4"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with load("nvila-tiny", threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return read_clip(CLIP, num_frames=8)


def test_public_names_are_these() -> None:
    assert nvila_ros.__all__ == [
        "Answer",
        "FinishReason",
        "Frame",
        "Model",
        "NvilaError",
        "PieceStream",
        "load",
        "read_clip",
    ]
    assert all(getattr(nvila_ros, name).__name__ == name for name in nvila_ros.__all__)
    assert set(nvila_ros.__all__) <= set(dir(nvila_ros))
    with pytest.raises(AttributeError, match="its names are"):
        nvila_ros.lode  # noqa: B018


def test_client_s_public_names_are_these() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from nvila_ros import client

    assert client.__all__ == [
        "Answer",
        "AnswerStream",
        "ClientFuture",
        "EndReason",
        "EventStream",
        "FinishReason",
        "ModelState",
        "NvilaClient",
        "Phase",
        "QueryFields",
        "StandingEvent",
        "StandingQuery",
        "Status",
        "stamp_to_ns",
    ]
    assert all(hasattr(client, name) for name in client.__all__)


def test_import_is_cheap() -> None:
    heavy = ("numpy", "cv2", "torch", "rclpy", "onnxruntime")
    code = f"import sys, nvila_ros; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_answer_is_that_of_the_pipeline(model: Model, frames: list[Frame]) -> None:
    question = "Where does the square move?"

    answer = model.ask(question, frames)

    direct = load_model("nvila-tiny", threads=1).answer(Query(query_id="q", question=question, num_frames=8), frames)
    assert answer.text == direct.text == "right"
    assert answer.frames == direct.frames
    assert repr(model) == "<Model nvila-tiny onnxruntime fp32>"


def test_stream_joins_to_the_answer(model: Model, frames: list[Frame]) -> None:
    stream = model.stream("Describe the scene.", frames)

    pieces = list(stream)

    assert len(pieces) > 5
    assert "".join(pieces) == stream.answer.result().text == model.ask("Describe the scene.", frames).text
    assert list(stream) == []


def test_choices_have_probabilities(model: Model, frames: list[Frame]) -> None:
    answer = model.ask("Is there a star?", frames, choices=["yes", "no"])

    assert (answer.text, answer.choices) == ("no", ("yes", "no"))
    assert sum(answer.probabilities) == pytest.approx(1)
    assert answer.probabilities[1] > 0.9


def test_questions_that_are_asked_at_once_get_the_same_answers(model: Model, frames: list[Frame]) -> None:
    questions = ["Where does the square move?", "How many objects are there?", "Describe the scene."]

    at_once = model.ask_all(questions, frames)

    assert [answer.text for answer in at_once] == [model.ask(question, frames).text for question in questions]
    assert [answer.query.question for answer in at_once] == questions
    assert model.ask_all([], frames) == []


def test_one_bad_question_among_several_is_refused(model: Model, frames: list[Frame]) -> None:
    with pytest.raises(QueryError, match="must fit"):
        model.ask_all(["Is there a star?", "zq" * 2000], frames)
    with pytest.raises(QueryError, match="asked one by one"):
        model.ask_all(["Is there a star?"], frames, conversation="clip")


def test_answer_type_follows_from_the_other_fields(model: Model, frames: list[Frame]) -> None:
    assert model.ask("How many objects are there?", frames, minimum=1, maximum=4).text == "3"
    assert model.ask("How many?", frames, json_schema={"type": "boolean"}).text in ("true", "false")
    assert model.ask("Is there a star?", frames, answer_type="yes_no").choices == ("yes", "no")


def test_conversation_goes_on_without_frames(model: Model, frames: list[Frame]) -> None:
    first = model.ask("Where does the square move?", frames, conversation="clip")

    second = model.ask("Which way is the triangle moving?", conversation="clip")

    assert second.frames == first.frames


@pytest.mark.parametrize("kind", ["array", "pil", "list", "batch"])
def test_images_of_every_kind_are_taken(model: Model, frames: list[Frame], kind: str) -> None:
    image = frames[-1].image
    shown = {
        "array": image,
        "pil": Image.fromarray(image),
        "list": [image],
        "batch": image[None],
    }[kind]

    assert model.ask("What color is the square?", shown).text == "yellow"


def test_image_may_be_written_to_while_it_is_asked_about(model: Model, frames: list[Frame]) -> None:
    image = frames[-1].image.copy()
    stream = model.stream("What color is the square?", image)
    image[:] = 0

    assert "".join(stream) == "yellow"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("clip.mp4", "read_clip\\('clip.mp4'\\)"),
        (["a.png"], "read_clip\\('a.png'\\)"),
        (np.zeros((4, 4), np.uint8), "got \\(4, 4\\) of uint8"),
        (np.zeros((4, 4, 4), np.uint8), "convert\\('RGB'\\)"),
        (np.zeros((4, 4, 3)), "of float64"),
        ([Frame(image=np.zeros((4, 4, 3), np.uint8), stamp_ns=-k) for k in range(2)], "oldest first"),
    ],
    ids=["path", "paths", "grey", "rgba", "float", "order"],
)
def test_what_is_no_frame_is_refused(model: Model, shown: object, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        model.ask("What?", shown)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "fields", "text"),
    [
        ("", {}, "question must not be empty"),
        ("What?", {"choice": ["a"]}, "did you mean one of \\['choices'\\]"),
        ("What?", {"choices": "yes,no"}, "write \\['yes,no'\\]"),
        ("What?", {"num_frames": 2}, "unknown field 'num_frames'"),
        ("What?", {"max_tokens": 0}, "max_tokens must lie in"),
        ("zq" * 2000, {}, "must fit"),
    ],
    ids=["empty", "unknown", "text", "frames", "range", "long"],
)
def test_question_that_breaks_a_rule_is_refused(
    model: Model, frames: list[Frame], question: str, fields: dict[str, object], text: str
) -> None:
    with pytest.raises(QueryError, match=text):
        model.ask(question, frames, **fields)


def test_unknown_model_names_those_there_are() -> None:
    with pytest.raises(CheckpointError, match="nvila-tiny"):
        load("nvila-tyni")


def test_missing_clip_is_refused() -> None:
    with pytest.raises(NvilaError, match=r"no file or folder at 'gone\.mp4'"):
        read_clip("gone.mp4")


def test_threads_of_a_program_share_a_model(model: Model, frames: list[Frame]) -> None:
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda _: model.ask("Where does the square move?", frames).text, range(8)))

    assert texts == ["right"] * 8


class Endless:
    """Says words until it should stop; strict about its thread."""

    info = ModelInfo("endless", "none", "none")

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def answer(self, query: Query, frames: list[Frame], *, on_piece: OnPiece, should_stop: ShouldStop) -> Answer:
        self.threads.add(threading.current_thread().name)
        index = 0
        while query.question != "fail" and (reason := should_stop()) is None:
            on_piece(Piece(query_id=query.query_id, index=index, text="word ", is_final=False))
            index += 1
        if query.question == "fail":
            return Answer(query=query, finish_reason=FinishReason.FAILED, error="llguidance is not installed")
        return Answer(query=query, finish_reason=reason, text="word " * index)


@pytest.fixture
def endless() -> Iterator[Model]:
    with Model(Endless(), ThreadPoolExecutor(1, thread_name_prefix="one")) as model:  # type: ignore[arg-type]
        yield model


def test_stream_that_is_left_stops_the_model(endless: Model) -> None:
    with endless.stream("go on") as stream:
        first = next(stream)

    answer = stream.answer.result(10)

    assert answer.finish_reason is FinishReason.CANCELED
    assert "".join([first, *stream]) == answer.text


def test_stream_that_is_let_go_stops_the_model(endless: Model) -> None:
    for _ in endless.stream("go on"):
        break
    answer = endless.stream("go on").answer  # its stream is gone at once

    assert answer.result(10).finish_reason is FinishReason.CANCELED


def test_question_that_the_model_fails_raises(endless: Model) -> None:
    with pytest.raises(UnansweredError, match="FAILED: llguidance is not installed") as raised:
        endless.ask("fail")
    with pytest.raises(UnansweredError):
        list(endless.stream("fail"))

    assert raised.value.answer.finish_reason is FinishReason.FAILED


def test_client_without_ros_says_what_to_install() -> None:
    code = "import sys; sys.modules['rclpy'] = None\nimport nvila_ros.client"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert "nvila_ros.client needs rclpy: source a ROS 2 workspace" in done.stderr
