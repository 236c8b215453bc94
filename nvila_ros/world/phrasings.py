"""Many ways to ask each kind of question, and how people type them.

In: a kind, and a `numpy.random.Generator`. Out: a template of `question_templates.py`, or of those that only suites
use, in which what a question is about is left open; and a filled one as somebody might type it.
"""

from __future__ import annotations

import re

import numpy as np

from nvila_ros.world.question_templates import TEMPLATES

THINGS: tuple[tuple[str, str], ...] = (
    ("object", "objects"),
    ("object", "objects"),
    ("thing", "things"),
    ("shape", "shapes"),
    ("item", "items"),
    ("figure", "figures"),
)
PLACES_OF_SIGHT: tuple[str, ...] = (
    "",
    "",
    "",
    " in the picture",
    " in the image",
    " in the scene",
    " in this picture",
    " in this image",
    " in view",
    " here",
    " in the frame",
)
SUITE_TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": ("Of what color is the {0}", "Say which color the {0} is", "What color would you say the {0} is"),
    "shape": ("What sort of shape is the {0}", "Say what shape the {0} has", "What shape do you see the {0} having"),
    "count": ("How many {things} appear in the picture", "Can you count the {things}", "Say how many {things} you see"),
    "count-color": ("How many {0} {things} appear", "Can you count the {0} {things}", "Say how many {things} are {0}"),
    "exist": ("Does this picture contain {0}", "Can {0} be seen", "Do we see {0} in the picture"),
    "where": ("In what place is the {0}", "Where would I find the {0}", "Say where the {0} is"),
    "relation": ("Is the {0} seen {1} the {2}", "Say if the {0} is {1} the {2}", "Do we see the {0} {1} the {2}"),
    "size": ("Which {thing} is the larger one, the {0} or the {1}", "Say which is bigger, the {0} or the {1}"),
    "describe": ("Say what you see", "Describe this picture", "What does this image show"),
}
"""Ways to ask that only suites draw from."""
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "left of", "to the left of", "on the left of"),
    "right of": ("right of", "right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "higher than"),
    "below": ("below", "below", "under", "beneath", "lower than"),
}
OPENINGS: tuple[str, ...] = (
    "Please tell me, ",
    "Tell me, ",
    "So, ",
    "And ",
    "Hey, ",
    "Okay, ",
    "Robot, ",
    "Now ",
    "I would like to know, ",
    "I want to know: ",
    "Can you say ",
    "Quick question: ",
    "Look closely: ",
    "Well, ",
    "In this picture, ",
    "In the image, ",
    "Looking at the scene, ",
)
"""What may stand before a question."""
CLOSINGS: tuple[str, ...] = (
    " please",
    ", please",
    " now",
    " right now",
    " at the moment",
    ", would you say",
    " in this view",
)
"""What may stand behind a question."""
_REQUEST_WORDS = "Tell Name Count Describe List Give Please Say Read Number Color Shape Position Direction"
_REQUESTS = frozenset(_REQUEST_WORDS.split())
_BRITISH = re.compile("color", re.IGNORECASE)


def draw_template(rng: np.random.Generator, kind: str, *, is_suite: bool = False) -> str:
    """Draw a way to ask, its ``{thing}``, ``{things}`` and ``{here}`` filled in; what it is about is left open."""
    templates = (SUITE_TEMPLATES if is_suite else TEMPLATES)[kind]
    template = templates[int(rng.integers(len(templates)))]
    one, many = THINGS[int(rng.integers(len(THINGS)))]
    here = PLACES_OF_SIGHT[int(rng.integers(len(PLACES_OF_SIGHT)))]
    return template.replace("{things}", many).replace("{thing}", one).replace("{here}", here)


def style(rng: np.random.Generator, text: str, *, is_question: bool = True) -> str:
    """Write a question as somebody might type it: words around it, case, spelling, punctuation and spaces vary.

    Args:
        rng: source of all randomness.
        text: without final punctuation, in American spelling.
        is_question: whether a question mark is right at its end, or a period.
    """
    case, spelling, mark, space, opening, closing = rng.random(6).tolist()
    if opening < 0.2:
        text = OPENINGS[int(opening * 5 * len(OPENINGS))] + text[0].lower() + text[1:]
    if closing < 0.1:
        text += CLOSINGS[int(closing * 10 * len(CLOSINGS))]
    if spelling < 0.35:
        text = _BRITISH.sub(lambda found: found[0][:4] + ("U" if found[0].isupper() else "u") + found[0][4:], text)
    if case < 0.3:
        text = text.lower()
    elif case < 0.36:
        text = text.upper()
    end = "?" if is_question else "."
    if mark < 0.25:
        end = ""
    elif mark < 0.33:
        end = " " + end
    elif mark < 0.36:
        end = end + end
    before, behind = ("", "")
    if space < 0.06:
        before, behind = ((" ", ""), ("", " "), (" ", " "))[int(space * 50) % 3]
    return before + text + end + behind


def is_question(template: str) -> bool:
    """Whether a question mark is right at the end, and not a period."""
    return template.split(" ")[0] not in _REQUESTS
