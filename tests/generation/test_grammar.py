"""Constrained answers judged by jsonschema, and the masks by brute force."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from nvila_ros.errors import BackendError, QueryError
from nvila_ros.generation import grammar_compile
from nvila_ros.generation.grammar import Constraint, Grammars
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.paths import share_path
from nvila_ros.prompt.answer_kinds import Constrained, parse_kind
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import TorchEngine

TINY = share_path("checkpoints") / "nvila-tiny"
TOKENIZER = ChatTokenizer.from_folder(TINY / "llm")
VOCAB_SIZE = 512  # more rows than tokens
STOP = TOKENIZER.answer_end
BYTES = TOKENIZER.token_bytes(VOCAB_SIZE)
BYTE_IDS = {written: idx for idx, written in enumerate(BYTES) if len(written) == 1}
MAX_TOKENS = 4000
EVEN = {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 98}
MANY_PATTERNS = {"type": "string", "allOf": [{"pattern": f"x{k}y"} for k in range(20)]}
PRODUCT = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967, 9949, 9941)]}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, VOCAB_SIZE, STOP)


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the trial, a process for each schema, where hypothesis draws many that are known to be harmless."""
    monkeypatch.setattr("nvila_ros.generation.grammar.try_schema", lambda schema: "")


def json_kind(schema: Any) -> Constrained:
    return parse_kind("json", json_schema=json.dumps(schema))


def integer_kind(low: int, high: int) -> Constrained:
    kind = parse_kind("integer", minimum=low, maximum=high)
    assert isinstance(kind, Constrained)
    return kind


def objects(fields: dict[str, tuple[Any, Any]], optional: set[str]) -> tuple[Any, Any]:
    """Return the schema of an object and an instance that leaves out what is optional."""
    schema = {
        "type": "object",
        "properties": {key: schema for key, (schema, _) in fields.items()},
        "required": [key for key in fields if key not in optional],
        "additionalProperties": False,
    }
    return schema, {key: value for key, (_, value) in fields.items() if key not in optional}


def arrays(items: list[tuple[Any, Any]], more: int) -> tuple[Any, Any]:
    """Return the schema of an array of anything that one of these schemas allows, and an instance."""
    schema = {"type": "array", "items": {"anyOf": [schema for schema, _ in items]}, "maxItems": len(items) + more}
    return schema, [value for _, value in items]


# Pairs of a schema and an instance of it.
letters = st.text(st.characters(exclude_categories=("C",)), max_size=8)
keys = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=5)
leaves = st.one_of(
    st.integers(-999, 999).map(lambda k: ({"type": "integer", "minimum": k - 50, "maximum": k + 1000}, k)),
    st.integers(0, 49).map(lambda k: (EVEN, 2 * k)),
    st.integers(-200, 300).map(lambda k: ({"type": "number", "minimum": -2, "maximum": 3}, k / 100)),
    st.booleans().map(lambda value: ({"type": "boolean"}, value)),
    st.lists(letters, min_size=1, max_size=4, unique=True).map(lambda words: ({"enum": [None, *words]}, words[-1])),
    letters.map(lambda text: ({"type": "string", "minLength": len(text) // 2, "maxLength": len(text) + 3}, text)),
    st.from_regex(r"\A[a-f]{2,4}-[0-9]{1,3}\Z").map(
        lambda text: ({"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{1,3}$"}, text)
    ),
)
pairs = st.recursive(
    leaves,
    lambda inner: (
        st.builds(objects, st.dictionaries(keys, inner, max_size=3), st.sets(keys, max_size=1))
        | st.builds(arrays, st.lists(inner, min_size=1, max_size=3), st.integers(0, 2))
    ),
    max_leaves=6,
)


def decode_random(constraint: Constraint, seed: int, num_wild: int) -> list[int]:
    """Decode greedily over random logits; after a while what ends a value is raised, since noise goes on and on."""
    rng, tokens = np.random.default_rng(seed), []
    while len(tokens) < MAX_TOKENS:
        logits_V = rng.normal(size=VOCAB_SIZE)
        if len(tokens) >= num_wild:
            logits_V[[STOP, *(BYTE_IDS[mark.encode()] for mark in '"]},')]] += (50, 40, 30, 20, 10)
        allowed_V = constraint.allowed()
        assert allowed_V.shape == (VOCAB_SIZE,)
        assert allowed_V.any()
        token = int(np.where(allowed_V, logits_V, -np.inf).argmax())
        if token == STOP:
            return tokens
        assert not constraint.is_finished
        constraint.push(token)
        tokens.append(token)
    raise AssertionError(f"no end after {MAX_TOKENS} tokens: {bytes_of(tokens)[:200]}")


def bytes_of(tokens: list[int]) -> bytes:
    return b"".join(BYTES[token] for token in tokens)


def text_of(tokens: list[int]) -> str:
    return bytes_of(tokens).decode()  # broken UTF-8 raises


@pytest.mark.usefixtures("untried")
@given(pair=pairs, seed=st.integers(0, 2**32 - 1), num_wild=st.integers(0, 60))
def test_whatever_the_logits_the_answer_is_json_of_its_schema(
    grammars: Grammars, pair: tuple[Any, Any], seed: int, num_wild: int
) -> None:
    schema, _ = pair

    text = text_of(decode_random(grammars.constrain(json_kind(schema)), seed, num_wild))

    Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.usefixtures("untried")
@given(pair=pairs, seed=st.integers(0, 2**32 - 1))
def test_what_conforms_by_itself_is_decoded_token_by_token_as_without_a_constraint(
    grammars: Grammars, pair: tuple[Any, Any], seed: int
) -> None:
    schema, instance = pair
    rng, constraint = np.random.default_rng(seed), grammars.constrain(json_kind(schema))
    text = json.dumps(instance, ensure_ascii=False, separators=(",", ":"))

    for token in [*cut_at_random(rng, text.encode()), STOP]:
        allowed_V = constraint.allowed()
        assert allowed_V[token], (text, BYTES[token])
        if token != STOP:
            constraint.push(token)


def cut_at_random(rng: np.random.Generator, text: bytes) -> list[int]:
    """Cut a text into tokens in one of the ways that a model could, most of them not the tokenizer's own."""
    tokens = []
    while text:
        fitting = [idx for idx, written in enumerate(BYTES) if written and text.startswith(written)]
        tokens.append(int(rng.choice(fitting)))
        text = text[len(BYTES[tokens[-1]]) :]
    return tokens


@pytest.mark.usefixtures("untried")
@given(low=st.integers(-2000, 2000), width=st.integers(64, 3000), seed=st.integers(0, 2**32 - 1))
def test_masks_of_an_integer_are_those_of_brute_force(grammars: Grammars, low: int, width: int, seed: int) -> None:
    numbers = {str(k).encode() for k in range(low, low + width + 1)}
    if low < 0 <= low + width:
        numbers.add(b"-0")  # JSON knows it, and every reader takes it for 0
    prefixes = {number[:end] for number in numbers for end in range(1, len(number) + 1)}
    rng, constraint, said = np.random.default_rng(seed), grammars.constrain(integer_kind(low, low + width)), b""

    while True:
        allowed_V = constraint.allowed()

        want_V = np.array([bool(written) and said + written in prefixes for written in BYTES])
        want_V[STOP] = said in numbers
        np.testing.assert_array_equal(allowed_V, want_V)
        token = int(rng.choice(np.flatnonzero(want_V)))
        if token == STOP:
            return
        constraint.push(token)
        said += BYTES[token]


@pytest.mark.usefixtures("untried")
@given(pair=pairs, seed=st.integers(0, 2**32 - 1))
def test_a_token_is_allowed_where_its_bytes_are_one_by_one(
    grammars: Grammars, pair: tuple[Any, Any], seed: int
) -> None:
    kind = json_kind(pair[0])
    tokens = decode_random(grammars.constrain(kind), seed, num_wild=10)
    said, constraint = tokens[: seed % (len(tokens) + 1)], grammars.constrain(kind)
    for token in said:
        constraint.allowed()
        constraint.push(token)
    allowed_V = constraint.allowed()

    for token in np.random.default_rng(seed).choice(np.flatnonzero([len(written) > 1 for written in BYTES]), 20):
        assert allowed_V[token] == can_say(grammars.constrain(kind), bytes_of(said) + BYTES[token])


def can_say(constraint: Constraint, text: bytes) -> bool:
    for byte in text:
        token = BYTE_IDS[bytes([byte])]
        if not constraint.allowed()[token]:
            return False
        constraint.push(token)
    return True


def test_what_no_token_of_text_owns_is_never_allowed(grammars: Grammars) -> None:
    constraint = grammars.constrain(json_kind({"type": "string"}))
    never = [idx for idx, written in enumerate(BYTES) if not written]
    assert set(never) > {
        *range(TOKENIZER.num_tokens, VOCAB_SIZE),
        TOKENIZER.image_id,
        TOKENIZER.named_ids["<|im_start|>"],
        STOP,
    }

    for mark in '"<':
        assert not constraint.allowed()[never].any()
        constraint.push(BYTE_IDS[mark.encode()])


def test_constraints_of_one_schema_do_not_share_what_was_said(grammars: Grammars) -> None:
    first, second = (grammars.constrain(integer_kind(100, 900)) for _ in range(2))
    first.allowed()

    first.push(BYTE_IDS[b"9"])

    assert np.flatnonzero(first.allowed()).tolist() != np.flatnonzero(second.allowed()).tolist()
    assert second.allowed()[BYTE_IDS[b"1"]]


def test_the_end_is_known(grammars: Grammars) -> None:
    constraint = grammars.constrain(json_kind({"enum": [True]}))
    for mark in "true":
        assert not constraint.is_finished
        constraint.allowed()
        constraint.push(BYTE_IDS[mark.encode()])

    assert constraint.is_finished
    assert np.flatnonzero(constraint.allowed()).tolist() == [STOP]


def test_a_token_that_was_not_allowed_is_a_bug_of_the_caller(grammars: Grammars) -> None:
    constraint = grammars.constrain(integer_kind(0, 99))
    constraint.allowed()

    with pytest.raises(AssertionError, match="not allowed"):
        constraint.push(BYTE_IDS[b"x"])


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "integer", "multipleOf": 4, "minimum": 5, "maximum": 7}, "Unsatisfiable schema"),
        ({"$ref": "#"}, "NoExtension"),
        ({"not": {"type": "null"}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "text"}, "Invalid type: text"),
        ({"$ref": "https://example.org/schema"}, "does not fetch"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(grammars: Grammars, schema: Any, reason: str) -> None:
    with pytest.raises(QueryError, match=f"json_schema must be one that .*{reason}.*; simplify it$"):
        grammars.constrain(json_kind(schema))


def test_a_schema_that_explodes_is_refused_by_the_processor_time_it_takes_and_tried_once(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = []

    def try_schema(schema: str) -> str:
        trials.append(schema)
        return grammar_compile.try_schema(schema)

    monkeypatch.setattr(grammar_compile, "TRIAL_S", 1)
    monkeypatch.setattr(grammar_compile, "WAIT_S", 100.0)  # a busy machine is another reason, see below
    monkeypatch.setattr("nvila_ros.generation.grammar.try_schema", try_schema)
    for _ in range(2):
        with pytest.raises(QueryError, match="compiling it takes more than 1 s"):
            grammars.constrain(json_kind(PRODUCT))

    assert len(trials) == 1


def test_a_machine_that_is_busy_is_not_held_against_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(TOKENIZER, VOCAB_SIZE, STOP)  # one that has compiled nothing yet
    with monkeypatch.context() as patch:
        patch.setattr(grammar_compile, "WAIT_S", 0.001)
        with pytest.raises(QueryError, match="this machine is busy; ask again"):
            grammars.constrain(json_kind(EVEN))

    assert grammars.constrain(json_kind(EVEN)).allowed().any()


def test_a_schema_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_compile, "TRIAL_BYTES", 100 << 20)

    assert "fails or takes more than 100 MiB" in grammar_compile.try_schema(json.dumps(MANY_PATTERNS))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)

    with pytest.raises(BackendError, match="need 'llguidance'; install it"):
        Grammars(TOKENIZER, VOCAB_SIZE, STOP).constrain(integer_kind(0, 100))


def test_the_model_tells_a_number_in_range_and_its_own_where_that_is_one(grammars: Grammars) -> None:
    engine = TorchEngine(open_checkpoint(TINY))
    embeds_LD = engine.embed(build_prompt(TOKENIZER, ["How many objects are there?"]))

    own = decode_model(engine, embeds_LD, None)
    assert 0 <= int(text_of(own)) <= 100
    assert decode_model(engine, embeds_LD, integer_kind(0, 100)) == own
    assert 200 <= int(text_of(decode_model(engine, embeds_LD, integer_kind(200, 900)))) <= 900
    schema, _ = objects({"n": (EVEN, 0)}, optional=set())
    assert json.loads(text_of(decode_model(engine, embeds_LD, json_kind(schema))))["n"] in range(0, 99, 2)


def decode_model(engine: TorchEngine, embeds_LD: np.ndarray, kind: Constrained | None) -> list[int]:
    """Decode greedily, the slow and obvious way."""
    vocab_size = engine.spec.decoder.vocab_size
    constraint = None if kind is None else Grammars(TOKENIZER, vocab_size, STOP).constrain(kind)
    cache, tokens = engine.new_cache(len(embeds_LD) + 64), []
    logits_V = engine.forward(embeds_LD, cache)
    while True:
        if constraint is not None:
            logits_V = np.where(constraint.allowed(), logits_V, -np.inf)
        token = int(logits_V.argmax())
        if token == STOP:
            return tokens
        if constraint is not None:
            constraint.push(token)
        tokens.append(token)
        logits_V = engine.forward(engine.embed(np.array([token])), cache)
