"""The `ros2` commands of README and docs, and what their options mean with the defaults that `ros2` has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]

QOS = {
    "--qos-reliability": ("reliable", "best_effort", "system_default"),
    "--qos-durability": ("transient_local", "volatile", "system_default"),
}
"""Options of `ros2 topic echo` that name a policy, with the policies."""

VALUED = {
    "topic echo": {*QOS, "--field"},
    "bag record": {"-s", "-o"},
}
"""Options that take a value, by command."""

FLAGS = {
    "topic echo": {"--once", "--full-length", "--no-arr", "--flow-style"},
    "launch": {"--show-args"},
    "service list": {"-t"},
    "pkg prefix": {"--share"},
    "action send_goal": {"--feedback"},
}
"""Options that take none."""

NUM_WORDS = {
    "topic echo": (1, 2),
    "topic hz": (1, 1),
    "topic pub": (2, 3),
    "interface show": (1, 1),
    "service call": (2, 3),
    "service list": (0, 0),
    "action send_goal": (3, 3),
    "param describe": (2, 99),
    "param set": (3, 3),
    "param get": (2, 2),
    "launch": (2, 99),
    "run": (2, 99),
    "pkg prefix": (1, 1),
    "bag record": (1, 99),
    "lifecycle get": (1, 1),
    "lifecycle set": (2, 2),
    "node list": (0, 0),
}
"""How many words a command takes beside its options: fewest and most."""


@dataclass
class Command:
    """One `ros2` command as it is documented.

    Attributes:
        source: the document.
        text: as written there.
        name: such as `topic echo`.
        words: what is no option.
        options: by name; flags have the value "".
    """

    source: str
    text: str
    name: str
    words: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)

    def qos(self) -> tuple[str, str] | None:
        """Return reliability and durability of an echo, or None where it takes those of the publishers.

        Once any policy is given, those that are not are those of the profile sensor_data.
        """
        if not self.options.keys() & QOS.keys():
            return None
        defaults = {"--qos-reliability": "best_effort", "--qos-durability": "volatile"}
        reliability, durability = (self.options.get(name, default) for name, default in defaults.items())
        return reliability, durability


def documented() -> list[Command]:
    """Return every command that is given with its arguments."""
    return [parse(path.name, text) for path in DOCUMENTS for text in texts(path.read_text())]


def texts(document: str) -> Iterator[str]:
    """Yield the commands in code blocks and in inline code; a command's name alone is no command."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document, re.M | re.S)
    for block in blocks:
        yield from commands_of(re.sub(r"\\\n", " ", block))
    inline = re.sub(r"^```\w*\n.*?^```", "", document, flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", inline):
        for text in re.findall(r"ros2 [a-z][^)|]*", span.replace("\n", " ")):
            if len(text.split()) > 3 or text.startswith(("ros2 launch ", "ros2 run ")):
                yield text


def commands_of(block: str) -> Iterator[str]:
    """Yield the lines of a block that run `ros2`, with those on which a quoted text goes on."""
    lines = iter(block.splitlines())
    for line in lines:
        text = re.sub(r"^\$ ", "", line)
        if not text.startswith("ros2 "):
            continue
        while not is_whole(text):
            text += "\n" + next(lines)
        yield text


def is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quotation is open
        return False
    return True


def parse(source: str, text: str) -> Command:
    """Read a command.

    Raises:
        AssertionError: `ros2` has no such command, option or value, or not that many words.
    """
    words = shlex.split(text, comments=True)[1:]
    size = 1 if words[0] in NUM_WORDS else 2
    command = Command(source, text, " ".join(words[:size]))
    assert command.name in NUM_WORDS, f"{source}: ros2 {command.name} is not known to this test: {text}"
    rest = iter(words[size:])
    for word in rest:
        if word in VALUED.get(command.name, ()):
            command.options[word] = next(rest)
        elif word in FLAGS.get(command.name, ()):
            command.options[word] = ""
        else:
            assert command.name == "run" or not word.startswith("-"), f"{source}: no option {word}: {text}"
            command.words.append(word)
    for name, value in command.options.items():
        assert name not in QOS or value in QOS[name], f"{source}: {name} takes one of {QOS[name]}: {text}"
    fewest, most = NUM_WORDS[command.name]
    assert fewest <= len(command.words) <= most, f"{source}: {len(command.words)} words: {text}"
    return command
