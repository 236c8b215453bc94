"""OpenAI's own client against the door, over the real model."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("openai")

import openai
from pydantic import BaseModel, Field

from nvila_ros.serving.model import load
from tests.http.serving import Served, picture, scene

QUESTION = "What do you see?"


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class HasStar(BaseModel):
    answer: Literal["yes", "no"]


class NamedColor(BaseModel):
    """Its schema refers to that of the enumeration."""

    color: Color


class HowMany(BaseModel):
    count: int = Field(ge=0, le=9)


class Described(BaseModel):
    count: int
    is_moving: bool


@pytest.fixture(scope="module")
def client(tiny: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="not-needed", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected() -> str:
    """What the model says about the scene, asked in this process."""
    with load("nvila-tiny") as model:
        return model.ask(QUESTION, scene()).text


def messages(image: np.ndarray, question: str = QUESTION) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": question}, picture(image)]}]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nvila-tiny", "live"]
    assert client.models.retrieve("nvila-tiny").owned_by == "nvila_ros"


def test_an_answer_is_that_of_the_model_in_process(client: openai.OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(model="nvila-tiny", messages=messages(scene()))

    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, expected: str) -> None:
    stream = client.chat.completions.create(
        model="nvila-tiny", messages=messages(scene()), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected
    assert len(texts) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_live_frames_are_named_with_their_stamps(client: openai.OpenAI, tiny: Served, expected: str) -> None:
    content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "nvila:camera/front"}}]
    answer = client.chat.completions.create(model="any", messages=[{"role": "user", "content": content}])

    nvila = answer.model_extra["nvila"]
    assert answer.choices[0].message.content == expected
    assert nvila["frames"] == [{"camera": "front", "stamp_ns": nvila["stamp_ns"]}]
    assert nvila["age_s"] > 0


def test_choices_have_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="nvila-tiny",
        messages=messages(scene(), "Is there a star?"),
        logprobs=True,
        top_logprobs=2,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )

    nvila = answer.model_extra["nvila"]
    assert sum(nvila["probabilities"]) == pytest.approx(1.0)
    assert answer.choices[0].message.content == nvila["choices"][int(np.argmax(nvila["probabilities"]))]
    (token,) = answer.choices[0].logprobs.content
    assert np.exp([top.logprob for top in token.top_logprobs]).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [HasStar, NamedColor, HowMany, Described])
@pytest.mark.parametrize("is_stream", [False, True])
def test_answers_are_parsed_as_the_classes_that_were_asked_for(
    client: openai.OpenAI, kind: type[BaseModel], is_stream: bool
) -> None:
    asked = {"model": "nvila-tiny", "messages": messages(scene()), "response_format": kind, "max_tokens": 60}
    if is_stream:
        with client.chat.completions.stream(**asked) as stream:
            answer = stream.get_final_completion()
    else:
        answer = client.chat.completions.parse(**asked)

    assert isinstance(answer.choices[0].message.parsed, kind)


def test_an_enumeration_by_reference_has_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="nvila-tiny", messages=messages(scene(), "What is the color of it?"), response_format=NamedColor
    )

    nvila = answer.model_extra["nvila"]
    assert nvila["choices"] == ["red", "green"]
    assert sum(nvila["probabilities"]) == pytest.approx(1.0)
    assert answer.choices[0].message.parsed.color.value == nvila["choices"][int(np.argmax(nvila["probabilities"]))]
