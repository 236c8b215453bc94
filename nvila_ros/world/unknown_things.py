"""What the synthetic world does not have: nouns, states and questions that nvila-tiny cannot answer.

Whether there is such a thing is answered "no", how many with "0", and open questions with `UNKNOWN`. Suites ask about
other nouns than training.
"""

from __future__ import annotations

import numpy as np

_NOUNS = """
man woman child boy girl baby animal cat horse bird cow sheep pig fish mouse monkey tiger lion bear elephant truck
bus train motorcycle boat ship plane helicopter van taxi tractor wheel engine street road sidewalk bridge house
building tower wall roof room kitchen office garden park field forest river lake mountain hill beach sky cloud sun
moon rain snow fire smoke sofa bed desk shelf cupboard drawer carpet curtain mirror clock telephone computer
keyboard screen monitor printer radio camera television robot arm hand face head eye nose mouth hair leg foot finger
shirt coat hat shoe glove dress bag backpack suitcase basket bucket glass plate bowl fork knife spoon pan pot kettle
oven sink toilet bath towel soap apple fruit banana lemon tomato potato bread cake cheese egg meat pizza soup coffee
tea water milk juice wine pen pencil paper letter newspaper map ticket coin money wallet card toy doll puzzle drum
guitar piano violin hammer saw drill screw nail rope ladder pipe cable wire switch button plug battery charger tool
toolbox forklift pallet conveyor cart drone gate fence sign pole lamp candle flag grass leaf branch root seed stone
sand brick wood metal plastic helmet vest worker driver cyclist crowd teacher doctor police soldier player dancer
obstacle exit entrance stair elevator corridor hallway pillar column crane container barrel tank pump valve gauge
spill leak hole crack stain hexagon oval heart arrow cube ball cylinder cone pyramid rectangle pentagon diamond line
dot number word text logo barcode mask spider snake frog insect bee butterfly rabbit chicken duck goat camel penguin
"""
_SUITE_NOUNS = """
person pedestrian human dog car bicycle door window chair table cup bottle book phone box tree flower key kitten
puppy airplane umbrella scissors vase sandwich carrot skateboard kite bench couch fridge microwave toaster
toothbrush zebra giraffe donut laptop remote teddy tie handbag frisbee surfboard hydrant meter wrench trolley
scooter octagon apron oar
"""
_STATES = """
open closed locked on off empty full broken clean dirty wet dry hot cold red blue green white black big small moving
stopped free blocked safe dangerous ready busy alive happy sad old new
"""
_VERBS = """
walking running sitting standing sleeping eating drinking talking driving waiting
"""

UNKNOWN = "I do not know"
"""Answer to an open question about what is not of the world."""
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
"""Nouns that training asks about."""
SUITE_NOUNS: tuple[str, ...] = tuple(_SUITE_NOUNS.split())
"""Nouns that only suites ask about."""
STATES: tuple[str, ...] = tuple(_STATES.split())
VERBS: tuple[str, ...] = tuple(_VERBS.split())
UNKNOWN_COLORS: tuple[str, ...] = ("pink", "brown", "gray", "cyan", "golden", "silver", "beige", "magenta")
YES_NO: tuple[str, ...] = (
    "Is it raining",
    "Is it dark outside",
    "Is anybody there",
    "Is somebody there",
    "Are there people{here}",
    "Is anyone in the room",
    "Do you see people",
    "Is it safe to go on",
    "Is the light on",
    "Is the way blocked",
    "Has something fallen",
    "Is something on fire",
    "Is there an emergency",
)
YES_NO_OF_NOUN: tuple[str, ...] = (
    "Is the {noun} {state}",
    "Is this {a_noun}",
    "Is the {noun} {verb}",
    "Is a {noun} {verb}",
    "Is the {noun} {state} or not",
    "Do you see the {noun}",
    "Is the {noun} there",
    "Is anyone {verb}",
)
OPEN: tuple[str, ...] = (
    "What time is it",
    "What is your name",
    "Who are you",
    "What is the weather like",
    "What day is it",
    "Why is that so",
    "What is going on in the street",
    "What does the sign say",
    "Read the text",
    "What is written there",
    "What should I do",
    "How are you",
    "Where are we",
    "What is two plus two",
    "Who is the president",
    "What is the capital of France",
    "How old is it",
    "Which room is this",
    "What happens next",
)
OPEN_OF_NOUN: tuple[str, ...] = (
    "What color is the {noun}",
    "Where is the {noun}",
    "What is the {noun} doing",
    "Who is the {noun}",
    "What does the {noun} look like",
    "How big is the {noun}",
    "Which way is the {noun} moving",
    "What is on the {noun}",
    "What is behind the {noun}",
    "Why is the {noun} {state}",
    "How far away is the {noun}",
    "What shape is the {noun}",
    "How old is the {noun}",
    "What is next to the {noun}",
    "What is the {noun} {verb} for",
)


def fill(rng: np.random.Generator, template: str, noun: str) -> str:
    """Return a template with its noun, and a state and a verb drawn for it."""
    state, verb = STATES[int(rng.integers(len(STATES)))], VERBS[int(rng.integers(len(VERBS)))]
    article = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
    filled = template.replace("{noun}", noun).replace("{a_noun}", article)
    return filled.replace("{state}", state).replace("{verb}", verb).replace("{here}", "")
