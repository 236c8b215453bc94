"""`nvila call`: asks the running node, as `ros2` would, on machines that have no `ros2`.

What was asked for goes to stdout; whatever explains it goes to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from nvila_ros.config import from_dict
from nvila_ros.errors import QueryError, shown
from nvila_ros.files import parse_yaml
from nvila_ros.standing.query import StandingQuery
from nvila_ros.tools.options import positive, words
from nvila_ros.types import Answer

ANSWER_OPTIONS: tuple[tuple[str, str, Callable[[str], Any], str, str], ...] = (
    ("--frames", "num_frames", positive, "N", "frames to look at"),
    ("--window", "window_s", float, "S", "the last seconds, up to the newest frame"),
    ("--cameras", "cameras", words, "A,B", "names of the cameras; by default all"),
    ("--choices", "choices", words, "A,B", "the only answers allowed"),
    ("--type", "answer_type", str, "TYPE", "yes_no, integer, json, choices, when, tool or text"),
    ("--max-tokens", "max_tokens", positive, "N", "longest answer"),
    ("--deadline", "deadline_s", float, "S", "cut the answer after this time"),
    ("--conversation", "conversation", str, "NAME", "begin or continue a conversation"),
)
"""Option, field, type, what stands for the value, and help."""


STATUS_S = 5.0
"""How long the last status may take to arrive from a node that is there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb and of what it calls."""
    parser.add_argument("--node", default="nvila", metavar="NAME", help="the node's name (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of a call (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print JSON: one object a line")
    calls = parser.add_subparsers(dest="call", metavar="CALL", required=True, title="calls")
    for name, text in (("ask", "ask one question"), ("stream", "ask one question, print the answer as it comes")):
        _add_question(_add(calls, name, text))
    add_query = _add(calls, "add-query", "let the node ask a question again and again")
    add_query.add_argument("name", metavar="NAME")
    add_query.add_argument("question", metavar="QUESTION")
    add_query.add_argument("--replace", action="store_true", help="take the place of a query of that name")
    _add_set(add_query, "of a standing query, such as trigger=rising or rate_hz=2")
    for name, text in (("remove", "forget a standing query"), ("pause", "pause one"), ("resume", "ask it again")):
        _add(calls, f"{name}-query", text).add_argument("name", metavar="NAME")
    _add(calls, "list-queries", "show the standing queries")
    events = _add(calls, "events", "print the events of standing queries as they come")
    events.add_argument("name", nargs="?", default="", metavar="NAME", help="of one query; by default of all")
    events.add_argument("--count", type=positive, metavar="N", help="end after so many")
    _add(calls, "status", "show what the model is doing").add_argument(
        "--wait", action="store_true", help="wait until the model answers"
    )


def run(args: argparse.Namespace) -> int:
    """Make one call; 1 where the node gave no answer.

    Raises:
        NvilaError: there is no node, or it refuses the call.
    """
    from nvila_ros.ros.client_process import connected

    with connected(args.node, args.timeout) as client:
        return int(CALLS[args.call](client, args))


def _ask(client: Any, args: argparse.Namespace) -> int:
    answer = client.ask(args.question, **_fields(args)).result()
    _print(args, answer, answer.text)
    _explain(args, answer)
    return 0


def _stream(client: Any, args: argparse.Namespace) -> int:
    with client.ask_video(args.question, **_fields(args)) as pieces:
        for piece in pieces:
            if not args.json:
                print(piece, end="", flush=True)
        answer = pieces.answer.result()
    _print(args, answer, "")
    _explain(args, answer)
    return 0


def _add_query(client: Any, args: argparse.Namespace) -> int:
    query = from_dict(StandingQuery, {**_set(args), "name": args.name, "question": args.question})
    added = client.add_query(query, replace=args.replace).result()
    _print(args, added, f"{added.name}: asked {added.rate_hz:g} times a second at most")
    return 0


def _remove_query(client: Any, args: argparse.Namespace) -> int:
    client.remove_query(args.name).result()
    return 0


def _enable(is_enabled: bool) -> Callable[[Any, argparse.Namespace], int]:
    def call(client: Any, args: argparse.Namespace) -> int:
        client.enable_query(args.name, is_enabled).result()
        return 0

    return call


def _list_queries(client: Any, args: argparse.Namespace) -> int:
    for query in client.list_queries().result():
        state = "" if query.enabled else " (paused)"
        _print(args, query, f"{query.name}: {query.question} {query.trigger}, {query.rate_hz:g} Hz{state}")
    return 0


def _events(client: Any, args: argparse.Namespace) -> int:
    client.list_queries().result()  # there is such a node
    with client.events(args.name) as events:
        for num_seen, event in enumerate(events, 1):
            _print(args, event, f"{event.phase.name} {event.name} {event.event_id}: {event.text}", flush=True)
            if num_seen == args.count:
                break
    return 0


def _status(client: Any, args: argparse.Namespace) -> int:
    if args.wait:
        status = client.wait_until_ready().result()
    else:
        end_s = time.monotonic() + STATUS_S
        status = None
        while status is None and time.monotonic() < end_s:
            client.list_queries().result()  # a call receives what else comes meanwhile
            status = client.status
    if status is None:
        raise QueryError("the node published no status yet; try again, or use --wait")
    _print(
        args, status, f"{status.state.name} {status.model} {status.backend} {status.precision} {status.text}".strip()
    )
    return 0


CALLS: dict[str, Callable[[Any, argparse.Namespace], int]] = {
    "ask": _ask,
    "stream": _stream,
    "add-query": _add_query,
    "remove-query": _remove_query,
    "pause-query": _enable(False),
    "resume-query": _enable(True),
    "list-queries": _list_queries,
    "events": _events,
    "status": _status,
}


def _add(calls: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = calls.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION", help="in plain language")
    for option, field, kind, metavar, text in ANSWER_OPTIONS:
        parser.add_argument(option, dest=field, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--image",
        dest="images",
        action="append",
        metavar="FILE",
        help="ask about this picture in place of the cameras' frames; several are a clip",
    )
    _add_set(parser, "of nvila_ros/srv/Ask, such as ago_start_s=10")


def _add_set(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=f"any field {text}")


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a question says beside its text."""
    named = {field: getattr(args, field) for field in (*(field for _, field, *_ in ANSWER_OPTIONS), "images")}
    return {name: value for name, value in named.items() if value is not None} | _set(args)


def _set(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields given by --set; values are written as in YAML.

    Raises:
        QueryError: a word is not of the form FIELD=VALUE, or its value is no YAML.
    """
    values = {}
    for word in args.set:
        name, sign, text = word.partition("=")
        try:
            values[name] = parse_yaml(text)
        except ValueError:
            sign = ""
        if not sign or not name:
            raise QueryError(f"--set takes FIELD=VALUE, the value as in YAML, got {shown(word)}")
    return values


def _print(args: argparse.Namespace, value: Any, text: str, *, flush: bool = False) -> None:
    print(json.dumps(dataclasses.asdict(value, dict_factory=_named)) if args.json else text, flush=flush)


def _named(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return fields as a dictionary, enumerations by name."""
    return {key: value.name if isinstance(value, enum.Enum) else value for key, value in items}


def _explain(args: argparse.Namespace, answer: Answer) -> None:
    """Print what is known of an answer beside its text."""
    if args.json:
        return
    for choice, probability in zip(answer.choices, answer.probabilities, strict=True):
        print(f"{probability:6.3f} {choice}", file=sys.stderr)
    frames = f"{len(answer.frames)} frames of {', '.join(sorted({frame.camera for frame in answer.frames}))}"
    age = f", the newest {answer.age_s * 1e3:.0f} ms old" if answer.frames else ""
    print(f"{answer.finish_reason.name}, {frames}{age}, {answer.timings.total_s * 1e3:.0f} ms", file=sys.stderr)
