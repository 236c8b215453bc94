"""Places are told at the words that name one thing, and nowhere else."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.paths import share_path
from nvila_ros.prompt.chat import MediaTokens
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.chats import encode_branches
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.world.named_places import NUM_BINS, name_places
from nvila_ros.world.questions import Question, ask, name_of
from nvila_ros.world.scene import (
    COLORS,
    Object,
    Scene,
    scene_rng,
)
from nvila_ros.world.scene_sampler import sample_scene


def obj(color: str, shape: str, x: float, y: float) -> Object:
    return Object(shape, color, COLORS[color], 0.1, x, y, 0.0, 0.0, 0.0)


def scene_of(*objects: Object) -> Scene:
    base = sample_scene(scene_rng(0), aspect=1.0, duration_s=0.0, is_moving=None)
    return replace(base, objects=objects)


SCENE = scene_of(obj("red", "circle", 0.1, 0.9), obj("blue", "circle", 0.5, 0.3), obj("red", "star", 0.99, 0.0))


def test_every_name_of_one_thing_is_placed_where_it_ends() -> None:
    text = "Is the red circle left of the star?"

    places = name_places(SCENE, text, 0.0)

    assert [text[: place.end] for place in places] == ["Is the red circle", "Is the red circle left of the star"]
    assert [(place.column, place.row) for place in places] == [(1, 12), (13, 0)]


def test_a_name_that_two_things_bear_and_other_words_have_no_place() -> None:
    for text in (
        "What color is the circle?",
        "Is there a red star?",
        "Where is the red object?",
        "Describe the scene.",
    ):
        assert name_places(SCENE, text, 0.0) == ()


@given(seed=st.integers(0, 2**31 - 1), t_s=st.floats(0, 2))
def test_places_of_a_relation_agree_with_its_answer(seed: int, t_s: float) -> None:
    scene = sample_scene(scene_rng(seed), aspect=4 / 3, duration_s=2.0, is_moving=True)
    question = ask(scene_rng(seed), scene, "relation", t_s=t_s)
    if question is None:
        return

    first, second = name_places(scene, question.text, t_s)

    over = {"left of": second.column - first.column, "right of": first.column - second.column}
    over |= {"above": second.row - first.row, "below": first.row - second.row}
    (gap,) = [value for words, value in over.items() if f" {words} the " in question.text]
    assert abs(gap) >= 1  # a margin of 0.12 is more than a bin
    assert NUM_BINS > 1 / 0.12
    assert question.answer == ("yes" if gap > 0 else "no")


def test_the_label_stands_at_the_last_token_of_the_name() -> None:
    tokenizer = ChatTokenizer.from_folder(share_path("checkpoints", "nvila-tiny", "llm"))
    text = f"Is the {name_of(SCENE.objects[0])} above the {name_of(SCENE.objects[1])}?"
    turns = [Question("count", "How many objects are there?", "3"), Question("relation", text, "no")]

    chat = encode_branches(
        tokenizer, MediaTokens((4, "\n")), turns, [name_places(SCENE, turn.text, 0.0) for turn in turns]
    )

    labelled = [k for k, column in enumerate(chat.columns) if column != IGNORE]
    assert [chat.rows[k] for k in labelled] == [12, 4]
    start = chat.owners.index(2)
    for k, place in zip(labelled, name_places(SCENE, text, 0.0), strict=True):
        assert tokenizer.encode(text[: place.end]) == chat.ids[start : k + 1]
