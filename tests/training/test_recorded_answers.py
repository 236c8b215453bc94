"""Answers that were recorded beside a camera are samples about the very frames that they were about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")

from nvila_ros.tools.cli import main
from nvila_ros.training.conversations.bad_samples import DataError, SampleError
from nvila_ros.training.conversations.bags import BagMedium
from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.conversations.recorded import RecordedAnswers
from nvila_ros.types import Answer, FinishReason, FrameRef, Query
from nvila_ros.world.questions import eval_case
from nvila_ros.world.rendering import render
from tests.video.bag_files import ANSWER_TYPE, T0_NS, TYPES, answer, film, image, write_mcap

HALF_S = 500_000_000


def test_answers_are_samples_about_their_frames(tmp_path: Path) -> None:
    stamps_ns = [T0_NS + HALF_S, T0_NS + 3 * HALF_S]
    path = write_mcap(
        tmp_path / "a", [*film(), answer("What?", " red ", stamps_ns), answer("How many?", "2", [T0_NS + 4 * HALF_S])]
    )

    source = RecordedAnswers(path)
    first, second = source.read(0), source.read(1)

    assert len(source) == 2
    assert (first.turns[0].answer, second.turns[0].answer) == ("red", "2")
    assert first.turns[0].parts == (BagMedium(path, "/camera", stamps_ns=tuple(stamps_ns)), "What?")
    assert [int(frame[0, 0, 0]) for frame in first.turns[0].parts[0].read(8)] == [10, 30]
    assert second.turns[0].parts[0].kind == "image"
    assert (first.group, RecordedAnswers(path, "model").read(0).group) == ("a", "nvila-tiny")


def test_records_are_those_of_a_file_beside_the_bag(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", [*film(), answer("Is it?", "yes", [T0_NS], choices=["yes", "no"])])
    source = RecordedAnswers(path)

    record = json.loads(source.line(0))
    (path.parent / "set.jsonl").write_bytes(source.line(0))

    assert record["choices"] == ["yes", "no"]
    assert RecordFile(path.parent / "set.jsonl", path.parent).read(0).turns == source.read(0).turns


def test_only_answers_that_were_spoken_to_their_end_count(tmp_path: Path) -> None:
    unfinished = [answer("a", "cut", [T0_NS], finish_reason=int(reason)) for reason in FinishReason if reason != 1]
    others = [answer("b", "", [T0_NS]), answer("c", "text alone", [])]
    path = write_mcap(tmp_path / "a", [*film(), *unfinished, *others, answer("d", "x", [T0_NS])])

    source = RecordedAnswers(path)

    assert [source.read(k).turns[0].parts[-1] for k in range(len(source))] == ["d"]


def test_topic_is_the_one_that_has_all_of_the_frames(tmp_path: Path) -> None:
    rear = [
        image(each.message.data.reshape(24, 32, 3), T0_NS + 7 + k, topic="/a_rear") for k, each in enumerate(film(3))
    ]
    path = write_mcap(tmp_path / "a", [*film(), *rear, answer("a", "x", [T0_NS]), answer("b", "x", [T0_NS, T0_NS + 7])])
    source = RecordedAnswers(path)

    assert source.read(0).turns[0].parts[0].topic == "/camera"
    with pytest.raises(
        SampleError, match=r"the 2 frames of an answer must all be on one image topic .* /a_rear, /camera"
    ):
        source.read(1)


def test_digest_is_of_what_was_said(tmp_path: Path) -> None:
    paths = [write_mcap(tmp_path / name, [*film(), answer("a", said, [T0_NS])]) for name, said in ("ax", "bx", "cy")]
    first, same, other = (RecordedAnswers(path).digest() for path in paths)

    assert first == same != other


def test_bag_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no answer of the node"):
        RecordedAnswers(write_mcap(tmp_path / "a", film()))
    with pytest.raises(DataError, match="no bag at"):
        RecordedAnswers(tmp_path / "none.mcap")


def test_model_is_held_against_what_was_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = eval_case("color", 0)
    shown = image(render(case.scene, case.times_s[0], 640, 480), T0_NS)
    said = [answer(case.question.text, text, [T0_NS]) for text in (case.question.answer, "transparent")]
    path = write_mcap(tmp_path / "a", [shown, *said])

    assert main(["eval", "nvila-tiny", str(path), "--by", "model", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["asked"], told["exact"]) == (2, 0.5)
    assert told["groups"].keys() == {"nvila-tiny"}


@pytest.mark.ros
def test_messages_of_ros_itself_are_read(tmp_path: Path) -> None:
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import StoragePlugin, Writer
    from sensor_msgs.msg import Image

    from nvila_ros.ros.messages import answer_message, stamp_from_ns

    shown = film(2)
    query = Query(query_id="q", question="What?", choices=("red", "blue"))
    refs = tuple(FrameRef(stamp_ns=T0_NS + k * HALF_S, camera="front") for k in range(2))
    told = Answer(
        query=query,
        finish_reason=FinishReason.STOP,
        text="red",
        frames=refs,
        choices=query.choices,
        probabilities=(0.9, 0.1),
    )
    with Writer(tmp_path / "a", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        camera = writer.add_connection("/camera", "sensor_msgs/msg/Image", typestore=TYPES)
        answers = writer.add_connection("/nvila_ros/answer", ANSWER_TYPE, typestore=TYPES)
        for k, each in enumerate(shown):
            message = Image(height=24, width=32, encoding="rgb8", step=96)
            message.header.stamp = stamp_from_ns(refs[k].stamp_ns)
            message.data.frombytes(each.message.data.tobytes())
            writer.write(camera, each.logged_ns, serialize_message(message))
        writer.write(answers, T0_NS + 5 * HALF_S, serialize_message(answer_message(told, T0_NS + 5 * HALF_S)))

    turn = RecordedAnswers(tmp_path / "a").read(0).turns[0]

    assert turn.answer == "red"
    assert [int(frame[0, 0, 0]) for frame in turn.parts[0].read(8)] == [0, 10]
