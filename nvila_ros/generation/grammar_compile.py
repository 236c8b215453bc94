"""From a JSON schema to a grammar, tried first in a process of its own: compiling some schemas would take forever.

Schemas multiply: a number that is a multiple of several others, or text that must match many patterns at once, needs an
automaton as large as the product of all. The library bounds most of this itself and not all, and nothing can end a
thread that computes in it. So the trial runs under limits of time and memory that the operating system keeps.

This file is also the trial's program. Beyond the standard library it imports only llguidance, to start fast.
"""

from __future__ import annotations

import json
import math
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from typing import Any

TRIAL_S = 3  # of a processor's time, which other work on the machine does not use up
WAIT_S = 10.0  # for those to pass
TRIAL_BYTES = 512 << 20  # of address space
MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
MAX_REASON = 300
NUM_KEPT = 1024  # results of trials; a schema has 16 kB at most
_FAULTS: OrderedDict[str, str] = OrderedDict()
_LOCK = threading.Lock()


def compile_schema(tokenizer: Any, schema: str) -> Any:
    """Return a matcher at the beginning of an answer, which may be in an error.

    Args:
        tokenizer: an `llguidance.LLTokenizer`.
        schema: JSON text of an object.
    """
    import llguidance

    # Escapes of code points could write halves of surrogate pairs, which no text holds.
    options = {"whitespace_flexible": False, "json_allowed_escapes": 'nrbtf\\"'}
    whole = json.dumps({**json.loads(schema), "x-guidance": options})
    limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
    # Forcing would allow only one way to cut certain text into tokens, so that a model's own way would be refused.
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {whole}\n'
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def reason_of(matcher: Any) -> str:
    """Return why a matcher failed, in one line without the grammar; empty if it did not."""
    text = matcher.get_error().partition("\n   1 |")[0].partition("\n<")[0]
    line = " ".join(re.sub(r"^at \d+\(\d+\): ", "", text).split())
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."


def known_fault(schema: str) -> str | None:
    """Return the result of an earlier `try_schema`, or None if there is none."""
    with _LOCK:
        if schema in _FAULTS:
            _FAULTS.move_to_end(schema)
        return _FAULTS.get(schema)


def try_schema(schema: str) -> str:
    """Return why a schema cannot be compiled within the limits, or an empty text if it can; each is tried once.

    Raises:
        TimeoutError: the machine is too busy for the trial; says nothing about the schema.
    """
    fault = known_fault(schema)
    if fault is None:
        fault = _run_trial(schema)
        with _LOCK:
            _FAULTS[schema] = fault
            while len(_FAULTS) > NUM_KEPT:
                _FAULTS.popitem(last=False)
    return fault


def _run_trial(schema: str) -> str:
    job = json.dumps({"path": sys.path, "max_bytes": TRIAL_BYTES, "max_s": TRIAL_S, "schema": schema})
    # Isolated from folder and environment; the path is this process's own, however it came by it.
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, timeout=WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"compiling it did not end within {WAIT_S:g} s") from error
    if done.returncode == -signal.SIGXCPU:
        return f"compiling it takes more than {TRIAL_S} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return f"compiling it fails or takes more than {TRIAL_BYTES >> 20} MiB ({last[:MAX_REASON]})"
    return done.stdout.strip()


def main() -> None:
    """Compile the schema given on stdin, over a vocabulary of single bytes, and print why that fails, if it does."""
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (job["max_bytes"], job["max_bytes"]))
    sys.path[:] = job["path"]
    import llguidance

    end_s = math.ceil(time.process_time()) + job["max_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (end_s, end_s + 1))
    matcher = compile_schema(llguidance.LLTokenizer("byte", slices=[]), job["schema"])
    if not matcher.is_error():
        matcher.compute_bitmask()  # a grammar without any text fails only here
    print(reason_of(matcher))


if __name__ == "__main__":
    main()
