"""Many ways to ask each kind of question: templates, those that only suites use, and how people type.

``{0}``, ``{1}`` and ``{2}`` stand for what a question is about, as the options of `question_kinds.py` give it;
``{thing}`` for one of `THINGS`, ``{things}`` for its plural, ``{here}`` for one of `PLACES_OF_SIGHT` or nothing.
Templates have no final punctuation: `style` adds it, or leaves it out.
"""

from __future__ import annotations

import re

import numpy as np

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
TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {0}{here}",
        "What is the color of the {0}{here}",
        "Which color does the {0} have",
        "Which color is the {0}",
        "What color does the {0} have",
        "The {0} is what color",
        "What's the color of the {0}",
        "Tell me the color of the {0}",
        "Name the color of the {0}",
        "What color is that {0}",
        "In which color is the {0}",
        "In what color do you see the {0}",
        "Color of the {0}",
        "Can you tell me what color the {0} is",
        "Please tell me the color of the {0}",
        "What color has the {0}",
    ),
    "shape": (
        "What shape is the {0}{here}",
        "What is the shape of the {0}{here}",
        "Which shape does the {0} have",
        "Which shape is the {0}",
        "What shape does the {0} have",
        "The {0} has what shape",
        "What's the shape of the {0}",
        "Tell me the shape of the {0}",
        "Name the shape of the {0}",
        "What shape is that {0}",
        "What kind of shape is the {0}",
        "What is the {0}",
        "What form does the {0} have",
        "Shape of the {0}",
        "Can you tell me what shape the {0} is",
        "Please name the shape of the {0}",
    ),
    "count": (
        "How many {things} are there{here}",
        "How many {things} do you see{here}",
        "What is the number of {things}{here}",
        "How many {things} can you see{here}",
        "How many {things} are{here}",
        "Count the {things}{here}",
        "How many {things} are visible{here}",
        "How many {things} does the image show",
        "How many {things} does the picture contain",
        "What number of {things} is there",
        "What is the count of {things}",
        "Number of {things}",
        "Tell me how many {things} there are",
        "How many {things}",
        "How many are there",
        "Please count the {things}",
        "How many different {things} are there",
        "What is the total number of {things}",
    ),
    "count-color": (
        "How many {0} {things} are there{here}",
        "How many {0} {things} do you see{here}",
        "What is the number of {0} {things}{here}",
        "How many {0} {things} can you see{here}",
        "Count the {0} {things}{here}",
        "How many {0} {things} are visible",
        "How many {things} are {0}",
        "How many of the {things} are {0}",
        "How many {0} {things} does the image show",
        "Number of {0} {things}",
        "Tell me how many {0} {things} there are",
        "How many {0} ones are there",
        "What is the count of {0} {things}",
        "How many {things} have the color {0}",
        "How many {0} {things}",
    ),
    "count-shape": (
        "How many {0}s are there{here}",
        "How many {0}s do you see{here}",
        "What is the number of {0}s{here}",
        "How many {0}s can you see{here}",
        "Count the {0}s{here}",
        "How many {0}s are visible",
        "Number of {0}s",
        "How many {0}s",
        "Tell me how many {0}s there are",
        "How many {things} are {0}s",
    ),
    "exist": (
        "Is there {0}{here}",
        "Do you see {0}{here}",
        "Does the scene contain {0}",
        "Can you see {0}{here}",
        "Does the picture show {0}",
        "Does the image contain {0}",
        "Is {0} visible{here}",
        "Is {0} there",
        "Is {0} to be seen{here}",
        "Could you find {0}{here}",
        "Does the image have {0}",
        "Are you seeing {0}",
        "Is {0} in the picture",
        "Is there {0} anywhere{here}",
        "Tell me if there is {0}",
        "Do you notice {0}{here}",
        "Does {0} appear{here}",
        "Is there {0} or not",
    ),
    "any": (
        "Is there anything{here}",
        "Do you see anything{here}",
        "Is anything there",
        "Can you see any {things}{here}",
        "Are there any {things}{here}",
        "Do you see any {thing}{here}",
        "Is there any {thing}{here}",
        "Is anything visible{here}",
    ),
    "where": (
        "Where is the {0}{here}",
        "In which place is the {0}",
        "Where do you see the {0}",
        "Where can I find the {0}",
        "Where's the {0}",
        "What is the position of the {0}",
        "What is the location of the {0}{here}",
        "In which part of the picture is the {0}",
        "Where does the {0} lie",
        "Where in the image is the {0}",
        "At which place is the {0}",
        "Whereabouts is the {0}",
        "Tell me where the {0} is",
        "Position of the {0}",
        "Where is the {0} located",
        "Can you tell me where the {0} is",
    ),
    "motion": (
        "Which way is the {0} moving",
        "In which direction does the {0} move",
        "Where does the {0} move",
        "Which way does the {0} move",
        "In which direction is the {0} moving",
        "What direction does the {0} move in",
        "What direction is the {0} moving in",
        "Where is the {0} going",
        "Which way is the {0} going",
        "Which way does the {0} go",
        "Where is the {0} moving to",
        "How does the {0} move",
        "How is the {0} moving",
        "What is the direction of the {0}",
        "Direction of the {0}",
        "Tell me which way the {0} moves",
    ),
    "describe": (
        "Describe the scene",
        "What do you see",
        "What is there to see",
        "Describe the picture",
        "Describe the image",
        "Describe what you see",
        "What is in the picture",
        "What is in the image",
        "What can you see{here}",
        "What does the image show",
        "What does the picture show",
        "Tell me what you see",
        "What is there{here}",
        "List the {things}",
        "List all {things}{here}",
        "Which {things} are there{here}",
        "Give a description of the scene",
        "What is visible{here}",
        "Please describe the scene",
    ),
    "relation": (
        "Is the {0} {1} the {2}{here}",
        "Does the {0} lie {1} the {2}",
        "Do you see the {0} {1} the {2}",
        "Is the {0} placed {1} the {2}",
        "Is the {0} located {1} the {2}",
        "Does the {0} stand {1} the {2}",
        "Is the {0} situated {1} the {2}",
        "Can you see the {0} {1} the {2}",
        "Would you say the {0} is {1} the {2}",
        "Is it true that the {0} is {1} the {2}",
        "Tell me if the {0} is {1} the {2}",
        "Does the {0} appear {1} the {2}",
    ),
    "size": (
        "Which is larger, the {0} or the {1}",
        "Which is bigger, the {0} or the {1}",
        "Which one is larger, the {0} or the {1}",
        "Which one is bigger, the {0} or the {1}",
        "What is larger, the {0} or the {1}",
        "What is bigger, the {0} or the {1}",
        "Which of the two is larger, the {0} or the {1}",
        "Which {thing} is larger, the {0} or the {1}",
        "Which {thing} is bigger, the {0} or the {1}",
        "Of the {0} and the {1}, which is larger",
        "Of the {0} and the {1}, which is bigger",
        "Tell me which is larger, the {0} or the {1}",
        "Between the {0} and the {1}, which is larger",
    ),
    "order": (
        "Which appears first, the {0} or the {1}",
        "Which object appears first",
        "Which comes first, the {0} or the {1}",
        "What appears first, the {0} or the {1}",
        "Which one appears first, the {0} or the {1}",
        "Which was first, the {0} or the {1}",
        "Which {thing} appeared first",
        "What appeared first, the {0} or the {1}",
        "Which {thing} came first, the {0} or the {1}",
        "What is the first {thing} to appear",
        "Which is seen first, the {0} or the {1}",
        "Who appears first, the {0} or the {1}",
    ),
    "vanish": (
        "Which object vanishes",
        "What vanishes",
        "Which object disappears",
        "What disappears",
        "Which {thing} vanishes",
        "Which {thing} disappears",
        "Which {thing} vanished",
        "What vanished",
        "What disappeared",
        "Which {thing} went away",
        "What went away",
        "Which {thing} is gone",
        "What is gone at the end",
        "Does something vanish, and what",
        "Tell me what disappears",
    ),
}
"""Ways to ask that training draws from, by kind."""
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
