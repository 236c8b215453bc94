"""Questions about a scene, and their true answers.

In: a `Scene` of the synthetic world. Out: a `Question` with its text and exact answer, of one of the `KINDS`.
It is asked of a clip of the whole scene, or, where `t_s` is given, of the one frame taken then: motion needs
a clip, and in a clip only what stands has a place.

A question is asked only where its answer is beyond doubt: a colour or a shape names an object only if no
other has it, and a place is asked only away from the borders between the thirds of the frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.training.world import (
    COLORS,
    DIRECTIONS,
    EVAL_SEED_BASE,
    MAX_OBJECTS,
    SHAPES,
    Object,
    Scene,
    is_clear,
    sample_scene,
    scene_rng,
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {}?",
        "What is the color of the {}?",
        "Which color does the {} have?",
    ),
    "shape": (
        "What shape is the {}?",
        "What is the shape of the {}?",
        "Which shape does the {} have?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects do you see?",
        "What is the number of objects?",
    ),
    "exist": ("Is there {}?", "Do you see {}?", "Does the scene contain {}?"),
    "where": ("Where is the {}?", "In which place is the {}?", "Where do you see the {}?"),
    "motion": (
        "Which way is the {} moving?",
        "In which direction does the {} move?",
        "Where does the {} move?",
    ),
    "describe": ("Describe the scene.", "What do you see?", "What is there to see?"),
}
"""Ways to ask each kind of question, the canonical one first; the braces take what it is about."""
KINDS: tuple[str, ...] = tuple(PHRASINGS)
"""All kinds of question."""
EVAL_KINDS: tuple[str, ...] = KINDS[:-1]
"""Kinds that the evaluation suite scores by exact match."""
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Names of the nine ninths of a frame, row by row."""
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "count": tuple(str(k) for k in range(1, MAX_OBJECTS + 1)),
    "exist": ("yes", "no"),
    "where": PLACES,
    "motion": tuple(DIRECTIONS),
}
"""All answers of each kind with a closed set of them."""
EVAL_CLIP_FRAMES = 8
"""Frames of an evaluation clip."""
EVAL_CLIP_S = 2.0
"""Seconds from the first to the last frame of an evaluation clip."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its kind, its text as asked, and the true answer in lower case."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class EvalCase:
    """One case of the evaluation suite: the question and the times of the frames (s) it is asked about."""

    scene: Scene
    question: Question
    times_s: tuple[float, ...]


_Option = tuple[str, str]  # what fills the braces of the phrasing, and the answer
_Lister = Callable[[np.random.Generator, Scene, float | None], list[_Option]]


def place_of(x: float, y: float) -> str:
    """Name of the ninth of the frame that holds a point, in fractions of width and height."""
    column, row = (min(max(int(3 * v), 0), 2) for v in (x, y))
    return PLACES[3 * row + column]


def name_of(obj: Object) -> str:
    """The object's full name, as "red circle"."""
    return f"{obj.color} {obj.shape}"


def _with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _is_only_color(scene: Scene, color: str) -> bool:
    return [obj.color for obj in scene.objects].count(color) == 1


def _is_only_shape(scene: Scene, shape: str) -> bool:
    return [obj.shape for obj in scene.objects].count(shape) == 1


def _refer(rng: np.random.Generator, scene: Scene, obj: Object) -> str:
    """The object's full name, or its colour or shape alone where that is enough."""
    names = [name_of(obj)]
    if _is_only_color(scene, obj.color):
        names.append(f"{obj.color} object")
    if _is_only_shape(scene, obj.shape):
        names.append(obj.shape)
    return names[int(rng.integers(len(names)))]


def _list_color(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    return [(obj.shape, obj.color) for obj in scene.objects if _is_only_shape(scene, obj.shape)]


def _list_shape(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    only = [obj for obj in scene.objects if _is_only_color(scene, obj.color)]
    return [(f"{obj.color} object", obj.shape) for obj in only]


def _list_count(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    return [("", str(len(scene.objects)))]


def _list_exist(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    """As many things that are there as things that are not."""
    options = [(_with_article(name_of(obj)), "yes") for obj in scene.objects]
    absent = {_absent_name(rng, scene) for _ in scene.objects}
    while len(absent) < len(scene.objects):
        absent.add(_absent_name(rng, scene))
    return options + [(_with_article(name), "no") for name in sorted(absent)]


def _absent_name(rng: np.random.Generator, scene: Scene) -> str:
    """Name of a thing that is not there; every other one shares its colour or its shape with one that is."""
    is_hard, keeps_color, kept, first, second = rng.random(5).tolist()
    shared = scene.objects[int(kept * len(scene.objects))]
    if is_hard < 0.5 and keeps_color < 0.5:
        colors = [shared.color]
        shapes = [shape for shape in SHAPES if not _has(scene, shared.color, shape)]
    elif is_hard < 0.5:
        colors = [color for color in COLORS if not _has(scene, color, shared.shape)]
        shapes = [shared.shape]
    else:
        colors = [color for color in COLORS if all(obj.color != color for obj in scene.objects)]
        shapes = [shape for shape in SHAPES if all(obj.shape != shape for obj in scene.objects)]
    return f"{colors[int(first * len(colors))]} {shapes[int(second * len(shapes))]}"


def _has(scene: Scene, color: str, shape: str) -> bool:
    return any(obj.color == color and obj.shape == shape for obj in scene.objects)


def _list_where(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    """Objects well inside a ninth of the frame; in a clip only those that stand."""
    options = []
    for obj in scene.objects:
        x, y = obj.position(t_s or 0.0)
        if (t_s is not None or obj.direction == "still") and is_clear(x) and is_clear(y):
            options.append((_refer(rng, scene, obj), place_of(x, y)))
    return options


def _list_motion(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    if t_s is not None or scene.duration_s <= 0:
        return []
    return [(_refer(rng, scene, obj), obj.direction) for obj in scene.objects]


def _list_describe(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[_Option]:
    """The one description: motions if anything moves in the clip, else places if all are beyond doubt."""
    tells_motion = t_s is None and scene.is_moving
    centres = [obj.position(t_s or 0.0) for obj in scene.objects]
    if not tells_motion and not all(is_clear(v) for centre in centres for v in centre):
        return []
    told = []
    for (x, y), obj in sorted(zip(centres, scene.objects, strict=True), key=lambda pair: pair[0]):
        predicate = _motion_phrase(obj.direction) if tells_motion else f"at the {place_of(x, y)}"
        told.append(f"{_with_article(name_of(obj))} {predicate}")
    return [("", ", ".join(told) + ".")]


def _motion_phrase(direction: str) -> str:
    return "standing still" if direction == "still" else f"moving {direction}"


_LISTERS: dict[str, _Lister] = {
    "color": _list_color,
    "shape": _list_shape,
    "count": _list_count,
    "exist": _list_exist,
    "where": _list_where,
    "motion": _list_motion,
    "describe": _list_describe,
}


def _phrase(rng: np.random.Generator, kind: str, option: _Option) -> Question:
    subject, answer = option
    phrasings = PHRASINGS[kind]
    return Question(kind, phrasings[int(rng.integers(len(phrasings)))].format(subject), answer)


def ask(
    rng: np.random.Generator, scene: Scene, kind: str, *, t_s: float | None = None, answer: str | None = None
) -> Question | None:
    """Ask one question of a kind.

    Args:
        rng: chooses what to ask about and how.
        scene: what is asked about.
        kind: one of `KINDS`.
        t_s: time of the single frame shown; None for a clip of the whole scene.
        answer: only questions with this true answer.

    Returns:
        The question, or None where no such question is well defined.
    """
    options = _LISTERS[kind](rng, scene, t_s)
    if answer is not None:
        options = [option for option in options if option[1] == answer]
    if not options:
        return None
    return _phrase(rng, kind, options[int(rng.integers(len(options)))])


def conversation(
    rng: np.random.Generator,
    scene: Scene,
    num_turns: int,
    kinds: Sequence[str] = KINDS,
    *,
    t_s: float | None = None,
) -> list[Question]:
    """Up to num_turns distinct questions about one scene: rounds over the kinds, each round in a new order.

    Fewer come back where the scene has no more to ask; t_s is as in `ask`.
    """
    pools: dict[str, list[_Option]] = {}
    for kind in kinds:
        options = _LISTERS[kind](rng, scene, t_s)
        pools[kind] = [options[k] for k in rng.permutation(len(options)).tolist()]
    questions: list[Question] = []
    while len(questions) < num_turns and any(pools.values()):
        open_kinds = [kind for kind in kinds if pools[kind]]
        for k in rng.permutation(len(open_kinds)).tolist():
            kind = open_kinds[k]
            questions.append(_phrase(rng, kind, pools[kind].pop()))
    return questions[:num_turns]


def all_texts() -> Iterator[str]:
    """Every phrasing with everything it can be about, and every answer or part of one; for the tokenizer."""
    pairs = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    color_only = [f"{color} object" for color in COLORS]
    subjects: dict[str, list[str]] = {
        "color": list(SHAPES),
        "shape": color_only,
        "count": [""],
        "exist": [_with_article(pair) for pair in pairs],
        "where": [*pairs, *color_only, *SHAPES],
        "motion": [*pairs, *color_only, *SHAPES],
        "describe": [""],
    }
    for kind, phrasings in PHRASINGS.items():
        yield from (phrasing.format(subject) for phrasing in phrasings for subject in subjects[kind])
        yield from ANSWERS.get(kind, ())
    predicates = [f"at the {place}" for place in PLACES] + [_motion_phrase(d) for d in DIRECTIONS]
    yield from (f"{_with_article(pair)} {predicate}" for pair in pairs for predicate in predicates)
    yield ", ".join(f"{_with_article(pair)} at the center" for pair in pairs[:MAX_OBJECTS]) + "."


def is_correct(question: Question, answer_text: str) -> bool:
    """Whether an answer is exactly the true one, up to case, outer spaces and one final period."""
    return _normal(answer_text) == _normal(question.answer)


def _normal(text: str) -> str:
    return text.strip().lower().removesuffix(".")


def eval_case(kind: str, index: int, *, aspect: float = 4 / 3) -> EvalCase:
    """Case number index of a kind: always the same, from seeds never trained on, answers balanced.

    Motion is asked of `EVAL_CLIP_FRAMES` frames over `EVAL_CLIP_S`; the other kinds of one frame, half of
    them taken amid a moving scene.
    """
    # Kinds take turns on the seeds, so no two cases of the suite share a scene.
    rng = scene_rng(EVAL_SEED_BASE + index * len(KINDS) + KINDS.index(kind))
    answers = ANSWERS.get(kind)
    answer = answers[int(rng.integers(len(answers)))] if answers else None
    is_clip = kind == "motion"
    while True:
        is_moving = is_clip or bool(rng.random() < 0.5)
        scene = sample_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, is_moving=is_moving)
        t_s = float(rng.random()) * EVAL_CLIP_S
        question = ask(rng, scene, kind, t_s=None if is_clip else t_s, answer=answer)
        if question is not None:
            times_s = tuple(np.linspace(0, EVAL_CLIP_S, EVAL_CLIP_FRAMES).tolist()) if is_clip else (t_s,)
            return EvalCase(scene, question, times_s)
