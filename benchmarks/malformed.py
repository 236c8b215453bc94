"""How the HTTP door takes 10,000 requests that nobody means to send; each must be answered, and the door go on.

Up to a third come from schemathesis, which makes requests that our OpenAPI document allows and others that it forbids,
over all paths. Half of the others are sensible requests with a value at random in a place at random, and half bytes at
random or a request of HTTP with bytes at random in it. The door belongs to a process of its own, with a fake model.

    python -m benchmarks.malformed                 # some minutes; prints a table, and last one JSON line
    python -m benchmarks.malformed --requests 900
"""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import random
import socket
import string
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from benchmarks.served import served_process

GOOD = {
    "model": "live",
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "nvila:latest"}}],
        },
    ],
    "max_tokens": 4,
    "stop": ["a"],
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}},
    "stream_options": {"include_usage": False},
    "priority": 1,
    "deadline_s": 5.0,
    "conversation": "c",
}
"""A request of many parts, each of which may be broken."""
NUM_STRATEGIES = 24  # of schemathesis: operations, and what of each is allowed and forbidden
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", " ", "x", "\0", "\ud800", "😀",
    "x" * 5000, "nvila:", "nvila:latest?frames=999", "nvila:frame/front/1", "data:,", "data:image/png;base64,AAAA",
    "file:///etc/passwd", [], [[]], {}, {"": None}, {"type": "text"}, {"$ref": "#"}, [None], ["x"] * 100, {"enum": []},
    {"type": ["object"]}, {"pattern": "(a+)+$"}, {"anyOf": [{}] * 50},
)  # fmt: skip
VERBS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "\0", "get", "G" * 9000)


def breakages(good: Any, rng: random.Random, count: int) -> Iterator[Any]:
    """Yield copies of a request, each with one to three values replaced, dropped or added."""
    for _ in range(count):
        body = copy.deepcopy(good)
        for _ in range(rng.randint(1, 3)):
            _break(body, rng)
        yield body


def raw_requests(rng: random.Random, count: int) -> Iterator[bytes]:
    """Yield bytes that are not, or not quite, requests of HTTP."""
    for _ in range(count):
        kind = rng.randrange(4)
        if kind == 0:
            yield rng.randbytes(rng.randint(1, 2000))
            continue
        path = rng.choice(("/", "/v1/chat/completions", "/api/state", "/%00", "/" + "a" * 9000, "//", "*", "/\xff"))
        head = f"{rng.choice(VERBS)} {path} HTTP/{rng.choice(('1.1', '1.0', '9.9', 'x'))}\r\nHost: localhost\r\n"
        length = rng.choice(("5", "-1", "99999999999", "x", "5, 5", "0x5"))
        if kind == 1:
            head += f"Content-Length: {length}\r\n"
        elif kind == 2:
            head += f"Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"
        else:
            name = "".join(rng.choices(string.printable, k=rng.randint(0, 30)))
            head += f"{name}: {'v' * rng.choice((0, 10, 20000))}\r\n"
        yield head.encode("latin-1", "replace") + b"\r\n" + rng.randbytes(rng.randint(0, 50))


def _break(body: Any, rng: random.Random) -> None:
    places = list(_places(body))
    if not places:
        return
    parent, key = rng.choice(places)
    if rng.random() < 0.2 and isinstance(parent, dict):
        del parent[key]
    elif rng.random() < 0.1 and isinstance(parent, dict):
        parent["".join(rng.choices(string.printable, k=8))] = rng.choice(VALUES)
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield value, key
        yield from _places(each)


def check_against_document(url: str, per_operation: int) -> Counter[str]:
    """Ask what the OpenAPI document allows and what it forbids; return how many got each status.

    Raises:
        AssertionError: a response is not as the document says, or is a fault of the server.
    """
    import hypothesis
    import requests
    import schemathesis
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    statuses: Counter[str] = Counter()
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance]

    def ask(case: Any) -> None:
        if case.operation.path == "/api/events":  # goes on for ever: only its status is looked at
            with requests.request(**case.as_transport_kwargs(base_url=url), stream=True, timeout=30) as begun:
                statuses[str(begun.status_code)] += 1
                assert begun.status_code < 500, case
            return
        response = case.call(base_url=url, timeout=30)
        statuses[str(response.status_code)] += 1
        # 503 is what the document says of a question without frames, and no fault.
        case.validate_response(response, checks=checks[response.status_code == 503 :])

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    options: Any = {"database": None, "deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
    for operation in [found.ok() for found in schema.get_all_operations()]:
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                cases = hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                hypothesis.settings(max_examples=per_operation, derandomize=True, **options)(cases(ask))()
            except Unsatisfiable:  # nothing of it can be wrong
                continue
    return statuses


def check_raw(address: tuple[str, int], rng: random.Random, count: int) -> Counter[str]:
    """Send bytes at random and close that half; return how many got each status, `none` for a closed connection."""
    statuses: Counter[str] = Counter()
    for content in raw_requests(rng, count):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            found = connection.makefile("rb").readline().split()
        statuses[found[1].decode() if found else "none"] += 1
    return statuses


def check_broken(address: tuple[str, int], rng: random.Random, count: int) -> Counter[str]:
    """Send sensible requests with something broken; return how many got each status."""
    statuses: Counter[str] = Counter()
    connection = http.client.HTTPConnection(*address, timeout=60)
    for body in breakages(GOOD, rng, count):
        content = json.dumps(body)
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        statuses[str(response.status)] += 1
    connection.close()
    return statuses


def main() -> int:
    """Run all three, and print what came of them; 1 where the door failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="over all kinds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, third = random.Random(args.seed), args.requests // 3
    with served_process("world", "--size", "160x120") as url:
        address = urlsplit(url).hostname or "", urlsplit(url).port or 0
        # It finds fewer than it is asked for; the others make up for that.
        found = {"schemathesis": check_against_document(url, max(third // NUM_STRATEGIES, 1))}
        left = max(args.requests - found["schemathesis"].total(), 2)
        found["broken"] = check_broken(address, rng, left // 2)
        found["raw"] = check_raw(address, rng, left - left // 2)
        with urllib.request.urlopen(f"{url}/ready") as response:
            is_ready = response.status == 200
    for kind, statuses in found.items():
        print(f"{kind:14} {dict(sorted(statuses.items()))}")
    faults = sum(count for statuses in found.values() for status, count in statuses.items() if status == "500")
    total = sum(statuses.total() for statuses in found.values())
    silent = found["raw"]["none"]
    figures = {"requests": total, "status_500": faults, "without_response": silent, "is_ready_afterwards": is_ready}
    print(json.dumps(figures))
    return 0 if is_ready and not faults and not silent else 1


if __name__ == "__main__":
    sys.exit(main())
