"""lmms-eval finds our model by its entry point and asks it as it asks any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("lmms_eval", reason="the harness itself; comes with nvila_ros[lmms], which brings much along")

from lmms_eval.api.instance import Instance, unwrap_generation_output
from lmms_eval.models.registry_v2 import ModelRegistryV2
from PIL import Image

from nvila_ros.errors import ConfigError, FrameError, QueryError
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.lmms_eval_model import NvilaRos, frames_of
from nvila_ros.tools.lmms_eval_plugin import MODEL_NAME, manifest
from nvila_ros.tools.suite_scores import ask_case
from nvila_ros.world.questions import EvalCase, eval_case
from nvila_ros.world.rendering import render

GREEDY = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


@pytest.fixture(scope="module")
def model() -> NvilaRos:
    found = NvilaRos.create_from_arg_string(
        "checkpoint=nvila-tiny,backend=onnxruntime", {"batch_size": "1", "device": None}
    )
    found.task_dict = {"task": {"test": []}}
    return found


def pictures(case: EvalCase) -> list[np.ndarray]:
    return [render(case.scene, t, 640, 480) for t in case.times_s]


def media(case: EvalCase, folder: Path) -> list[Any]:
    """Return what a task would show: a picture, or the path of a video without loss."""
    images = pictures(case)
    if len(images) == 1:
        return [Image.fromarray(images[0])]
    path = folder / f"{case.scene.seed}.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 4, (640, 480))
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return [str(path)]


def request(model: NvilaRos, kind: str, context: str, second: Any, visuals: Any) -> Instance:
    docs = model.task_dict["task"]["test"]
    docs.append({"visuals": visuals})
    return Instance(
        request_type=kind,
        arguments=(context, second, lambda doc: doc["visuals"], len(docs) - 1, "task", "test"),
        idx=0,
        metadata={"task": "task", "doc_id": len(docs) - 1, "repeats": 1},
    )


def ask(model: NvilaRos, context: str, visuals: Any, **settings: Any) -> str:
    told, _ = unwrap_generation_output(
        model.generate_until([request(model, "generate_until", context, GREEDY | settings, visuals)])[0]
    )
    assert isinstance(told, str)
    return told


def rank(model: NvilaRos, context: str, visuals: Any, choices: Sequence[str]) -> list[tuple[float, bool]]:
    first = request(model, "loglikelihood", context, f" {choices[0]}", visuals)
    others = [
        Instance("loglikelihood", (context, f" {choice}", *first.args[2:]), 0, first.metadata) for choice in choices[1:]
    ]
    return [unwrap_generation_output(each)[0] for each in model.loglikelihood([first, *others])]


def test_harness_finds_the_class() -> None:
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())

    assert registry.get_model_class(MODEL_NAME) is NvilaRos


@pytest.mark.parametrize("kind", ["color", "count", "motion"])
def test_answers_are_those_of_the_node(model: NvilaRos, tmp_path: Path, kind: str) -> None:
    vlm = load_model("nvila-tiny", backend="onnxruntime")
    for index in range(3):
        case = eval_case(kind, index)

        assert ask(model, case.question.text, media(case, tmp_path)) == ask_case(vlm, case, "q").text


def test_token_counts_are_told(model: NvilaRos, tmp_path: Path) -> None:
    case = eval_case("color", 0)
    asked = request(model, "generate_until", case.question.text, dict(GREEDY), media(case, tmp_path))

    _, counts = unwrap_generation_output(model.generate_until([asked])[0])

    assert counts.input_tokens > 20
    assert 0 < counts.output_tokens <= 16


def test_answer_ends_where_it_is_told_to(model: NvilaRos, tmp_path: Path) -> None:
    case = eval_case("color", 0)
    question, shown = "Describe the scene.", media(case, tmp_path)
    whole = ask(model, question, shown, max_new_tokens=40)
    word = whole.split()[2]

    assert len(whole.split()) > 3
    assert ask(model, question, shown, max_new_tokens=40, until=[word, "\n\n"]) == whole.partition(word)[0]
    assert ask(model, question, shown, max_new_tokens=40, until=word) == whole.partition(word)[0]
    assert whole.startswith(ask(model, question, shown, max_new_tokens=2))
    assert len(ask(model, question, shown, max_new_tokens=2)) < len(whole)


def test_more_tokens_than_the_prompt_leaves_are_as_many_as_it_leaves(model: NvilaRos, tmp_path: Path) -> None:
    case = eval_case("color", 0)
    shown = media(case, tmp_path)

    assert ask(model, case.question.text, shown, max_new_tokens=1 << 20) == ask(model, case.question.text, shown)


def test_tags_of_images_are_no_text(model: NvilaRos, tmp_path: Path) -> None:
    case = eval_case("color", 0)
    shown = media(case, tmp_path)

    assert ask(model, f"<image>\n{case.question.text}", shown) == ask(model, case.question.text, shown)


def test_true_choice_costs_least_and_decoded_one_is_greedy(model: NvilaRos, tmp_path: Path) -> None:
    for kind in ("color", "motion"):
        case = eval_case(kind, 1)
        shown = media(case, tmp_path)
        said = ask(model, case.question.text, shown)

        told = rank(model, case.question.text, shown, ["zebra", said, "seven"])

        assert int(np.argmin([loss for loss, _ in told])) == 1
        assert [is_greedy for _, is_greedy in told] == [False, True, False]


def test_continuation_may_be_asked_of_the_document_or_without_one(model: NvilaRos, tmp_path: Path) -> None:
    case = eval_case("color", 0)
    shown = media(case, tmp_path)
    by_text = rank(model, case.question.text, shown, ["blue"])
    asked = request(model, "loglikelihood", case.question.text, lambda doc: "blue", shown)
    bare = Instance("loglikelihood", ("", "blue"), 0, asked.metadata)

    assert list(model.loglikelihood([asked])) == by_text
    assert model.loglikelihood([bare])[0][0] > 0


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7, "do_sample": None}, {"num_beams": 3}])
def test_task_that_samples_is_refused(model: NvilaRos, settings: dict[str, Any]) -> None:
    settings = GREEDY | settings
    if settings["do_sample"] is None:
        del settings["do_sample"]

    with pytest.raises(ConfigError, match=r"answers are decoded greedily.*--gen_kwargs temperature=0"):
        model.generate_until([request(model, "generate_until", "What?", settings, [])])


def test_setting_without_effect_is_told_once(model: NvilaRos, caplog: pytest.LogCaptureFixture) -> None:
    ask(model, "What?", None, image_aspect_ratio="pad", top_p=1.0)
    ask(model, "What?", None, image_aspect_ratio="pad")

    assert [record.getMessage() for record in caplog.records] == [
        "generation_kwargs image_aspect_ratio='pad' has no effect on nvila_ros"
    ]


def test_question_without_text_is_refused(model: NvilaRos) -> None:
    with pytest.raises(QueryError, match="a question must hold text"):
        ask(model, "<image>", None)


def test_several_rounds_are_refused(model: NvilaRos) -> None:
    with pytest.raises(NotImplementedError, match="generate_until_multi_round"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize("extra", [{"batch_size": 4}, {"device": "cuda:0"}, {"max_batch_size": 8}])
def test_what_the_backend_decides_is_left_to_it(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="leave these alone"):
        NvilaRos.create_from_arg_string("checkpoint=nvila-tiny", extra)


def test_media_become_frames(tmp_path: Path) -> None:
    film = media(eval_case("motion", 0), tmp_path)[0]
    Image.new("L", (9, 7), 5).save(tmp_path / "gray.png")

    images = frames_of([[Image.new("RGBA", (8, 6))], str(tmp_path / "gray.png"), {"url": Image.new("RGB", (5, 4))}], 8)
    whole, part = frames_of([film], 4), frames_of({"path": film, "video_start": 0.5, "video_end": 1.0}, 4)

    assert [frame.image.shape for frame in images] == [(6, 8, 3), (7, 9, 3), (4, 5, 3)]
    assert len({frame.camera for frame in images}) == 3
    assert (len(whole), len(part)) == (4, 3)
    assert len({frame.camera for frame in whole}) == 1
    assert frames_of(None, 8) == []


def test_medium_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    film = media(eval_case("motion", 0), tmp_path)[0]

    with pytest.raises(FrameError, match="got NoneType"):
        frames_of([{"array": np.zeros(9), "sampling_rate": 16000}], 8)
    with pytest.raises(FrameError, match="a video must be alone"):
        frames_of([film, Image.new("RGB", (8, 6))], 8)
    with pytest.raises(FrameError, match="no file or folder"):
        frames_of([str(tmp_path / "none.mp4")], 8)
