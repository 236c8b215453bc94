"""A data set's questions are asked as they stand and scored by its answers; a run that broke off goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.answer_log import AnswerLog
from nvila_ros.tools.asking import ask_sample
from nvila_ros.tools.cli import main
from nvila_ros.tools.evaluate_data import ask_all, score_all
from nvila_ros.tools.records import open_sources
from nvila_ros.tools.suite_scores import ask_case
from nvila_ros.training.conversations.bad_samples import BadSamples, SampleError
from nvila_ros.training.conversations.samples import parse_record
from nvila_ros.types import Answer, FinishReason, Frame, Query
from nvila_ros.world.questions import EvalCase, eval_case
from nvila_ros.world.rendering import render


class Parrot:
    """Says the last word of the question, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Query, list[Frame]]] = []

    def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
        self.asked.append((query, list(frames)))
        return Answer(query=query, finish_reason=FinishReason.STOP, text=query.question.split()[-1])


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def picture(path: Path, value: int) -> Path:
    assert cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))
    return path


def ask(record: dict[str, Any], folder: Path, **options: Any) -> list[tuple[Query, list[Frame]]]:
    parrot = Parrot()
    ask_sample(
        parrot, parse_record(record, "set, record 1", folder, "set"), **{"num_frames": 8, "max_tokens": 9} | options
    )
    return parrot.asked


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


def test_images_of_a_turn_are_of_cameras_of_their_own_and_a_video_is_of_one(tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    for k in range(3):
        picture(tmp_path / f"{k}.png", k)
        picture(tmp_path / "film" / f"{k}.png", k)

    _, images = ask({"image": ["0.png", "1.png"], "question": "What?", "answer": "a"}, tmp_path)[0]
    query, video = ask({"video": "film", "question": "What?", "answer": "a"}, tmp_path, num_frames=2)[0]

    assert [int(frame.image[0, 0, 0]) for frame in images] == [0, 1]
    assert len({frame.camera for frame in images}) == 2
    assert [int(frame.image[0, 0, 0]) for frame in video] == [0, 2]
    assert len({frame.camera for frame in video}) == 1
    assert (query.question, query.max_tokens, query.conversation) == ("What?", 9, "")


def test_turns_are_one_conversation(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    conversations = said("<image>\nWhat?", "a", "And why?", "b")

    (first, shown), (second, not_shown) = ask({"image": "a.png", "conversations": conversations}, tmp_path)

    assert first.conversation == second.conversation != ""
    assert (first.is_follow_up, second.is_follow_up) == (False, True)
    assert (len(shown), len(not_shown)) == (1, 0)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "a.png", "video": "b.mp4", "conversations": said("<image><video>\nWhat?", "a")}, "media_order"),
        ({"image": "a.png", "conversations": said("<image>\n", "a")}, "empty_question"),
        ({"image": "none.png", "question": "What?", "answer": "a"}, "missing_media"),
    ],
)
def test_turn_that_no_query_can_show_is_refused(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    picture(tmp_path / "a.png", 1)

    with pytest.raises(SampleError) as caught:
        ask(record, tmp_path)

    assert caught.value.reason == reason


def test_scores_are_means_by_group(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.jsonl",
        {"question": "Say red", "answer": "red", "kind": "x"},
        {"question": "Say red", "answers": ["blue", "Red."], "kind": "x"},
        {"question": "Say 104", "answer": "100", "kind": "y"},
        {"conversations": said("Say a", "a", "Say b", "c"), "kind": "y"},
    )
    sources, log = open_sources([path], None, "kind"), AnswerLog(None, {})

    ask_all(Parrot(), sources, log, BadSamples(is_strict=True), num_frames=8, max_tokens=9)
    scores = score_all(sources, log, ["exact", "relaxed"])

    assert {group: (score.num_asked, score.means) for group, score in scores.items()} == {
        "x": (2, {"exact": 1.0, "relaxed": 1.0}),
        "y": (3, {"exact": pytest.approx(1 / 3), "relaxed": pytest.approx(2 / 3)}),
    }
    assert scores["y"].wrong == (("104", "100"), ("b", "c"))


def test_answers_that_are_known_are_not_asked_for_again(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", *({"question": f"Say {k}", "answer": str(k)} for k in range(5)))
    sources, parrot = open_sources([path], None, ""), Parrot()
    for limit in (2, 4, 0):
        with AnswerLog(tmp_path / "log", {}) as log:
            ask_all(parrot, sources, log, BadSamples(is_strict=True), num_frames=8, max_tokens=9, limit=limit)

    assert [query.question for query, _ in parrot.asked] == [f"Say {k}" for k in range(5)]


def test_bad_records_are_counted_or_end_the_run(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.jsonl",
        {"question": "a", "answer": "a"},
        {"image": "none.png", "question": "b", "answer": "b"},
        {},
    )
    sources, tally = open_sources([path], None, ""), BadSamples(is_strict=False)
    with AnswerLog(tmp_path / "log", {}) as log:
        ask_all(Parrot(), sources, log, tally, num_frames=8, max_tokens=9)

        assert dict(tally.counts) == {"missing_media": 1, "malformed": 1}
        assert list(log.lines) == [("set", 0)]
        with pytest.raises(SampleError, match="record 2: no image at"):
            ask_all(Parrot(), sources, log, BadSamples(is_strict=True), num_frames=8, max_tokens=9)


def world_cases() -> list[EvalCase]:
    return [eval_case(kind, index) for kind in ("color", "motion") for index in range(3)]


def test_model_is_scored_on_a_bag_and_images_as_on_the_scenes_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")
    from tests.video.bag_files import T0_NS, image, write_mcap

    messages, records = [], []
    for number, case in enumerate(world_cases()):
        at_ns = [T0_NS + round((10 * number + t) * 1e9) for t in case.times_s]
        messages += [
            image(render(case.scene, t, 640, 480), stamp_ns) for t, stamp_ns in zip(case.times_s, at_ns, strict=True)
        ]
        question, answer = case.question.text, case.question.answer
        records.append({"bag": "a/a.mcap", "stamps_ns": at_ns, "question": question, "answer": answer})
    write_mcap(tmp_path / "a", messages)
    path, out = write(tmp_path / "set.jsonl", *records), tmp_path / "out.jsonl"
    model = load_model("nvila-tiny")
    expected = [ask_case(model, case, str(number)).text for number, case in enumerate(world_cases())]

    code = main(["eval", "nvila-tiny", str(path), "--out", str(out), "--metric", "exact,anls", "--json"])

    told = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 0
    assert [line["turns"][0]["answer"] for line in lines[1:]] == expected
    assert told["asked"] == 6
    assert told["exact"] == np.mean(
        [case.question.answer == text for case, text in zip(world_cases(), expected, strict=True)]
    )
    assert told["groups"].keys() == {"set"}
    for option in (["--media", str(tmp_path / "a")], ["--by", "answer"]):  # answers of other media, or otherwise sorted
        assert main(["eval", "nvila-tiny", str(path), "--out", str(out), *option]) == 2
        assert "holds answers of another run" in capsys.readouterr().err


def test_choices_are_scored_and_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = eval_case("color", 0)
    bgr = cv2.cvtColor(render(case.scene, case.times_s[0], 640, 480), cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(tmp_path / "a.png"), bgr)
    others = ["seven", case.question.answer, "upwards"]
    record = {"image": "a.png", "question": case.question.text, "answer": case.question.answer, "choices": others}

    assert main(["eval", "nvila-tiny", str(write(tmp_path / "set.json", record)), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["exact"] == 1.0


@pytest.mark.parametrize(
    ("records", "options", "complaint"),
    [
        (
            [{"question": "a", "answer": "a"}],
            ["--metric", "bleu"],
            "--metric must be some of exact,contains,relaxed,anls",
        ),
        ([], [], "holds no sample"),
        ([{"question": "a"}], [], "record 1: a record must be an object"),
        ([{"question": "a"}], ["--skip-bad"], "no record could be asked about"),
        ([{"question": "a", "answer": "b", "choices": "a"}], [], "choices must be a list of texts"),
        (
            [{"question": "a", "answer": "a"}],
            ["--kinds", "color", "--suite", "tiny-world"],
            "--suite, --kinds goes without",
        ),
        ([{"question": "a", "answer": "a"}], ["--by", "kind"], "field 'kind' must name the sub-dataset"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], records: list[Any], options: list[str], complaint: str
) -> None:
    path = write(tmp_path / "set.jsonl", *records)

    assert main(["eval", "nvila-tiny", str(path), *options]) == 2

    assert complaint in capsys.readouterr().err


def test_option_of_data_needs_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nvila-tiny", "--metric", "anls", "--max-tokens", "3"]) == 2

    assert "--metric, --max-tokens goes with DATA" in capsys.readouterr().err
