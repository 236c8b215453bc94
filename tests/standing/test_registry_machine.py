"""Any order of what can happen to a book, held against a model that keeps the whole history."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.registry import Evaluation, EvaluationCounts, QueryRegistry
from nvila_ros.types import Answer, FinishReason
from tests.standing.obvious import S, answer_of, expect, told, yes_no_answer

CAPACITY = 3
STEP_NS = S // 4
NAMES = st.sampled_from("abcd")
QUERIES = st.builds(
    lambda trigger, rate_hz, n, extra, cooldown_s, num_frames: {
        "trigger": trigger,
        "rate_hz": rate_hz,
        "debounce_n": 1 if trigger == "every" else n,
        "debounce_m": 1 if trigger == "every" else n + extra,
        "cooldown_s": cooldown_s,
        "num_frames": num_frames,
        "threshold": 0.6,
        "hysteresis": 0.2,
        "stale_s": 6.0,
    },
    st.sampled_from(["rising", "falling", "on_change", "every"]),
    st.sampled_from([0.5, 1.0, 5.0]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([0.0, 3.0]),
    st.integers(1, 2),
)


@dataclass(eq=False)
class QueryHistory:
    """The history of one query, in segments between the times that it was forgotten."""

    query: StandingQuery
    stamps_ns: list[int] = field(default_factory=list)
    said: list[tuple[str, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    num_told: int = 0
    last_begin_ns: int | None = None
    seen_ns: int | None = None
    heard_ns: int = 0
    asked_ns: int | None = None
    epoch: int = 0
    counted: int = 0
    settled: int = 0
    numbers: list[int] = field(default_factory=list)
    counts: EvaluationCounts = field(default_factory=EvaluationCounts)

    def check(self, ended_by: EndReason | None = None) -> None:
        want = expect(self.query, self.stamps_ns, self.said, last_begin_ns=self.last_begin_ns, ended_by=ended_by)
        assert [told(event) for event in self.events] == want

    def forget(self, reason: EndReason) -> None:
        self.check(reason)
        begins = [e.confirmed_stamp_ns for e in self.events if e.phase is not Phase.END]
        self.last_begin_ns = begins[-1] if begins else self.last_begin_ns
        if reason is EndReason.TIME_JUMP:
            self.last_begin_ns = self.seen_ns = None
        self.stamps_ns, self.said, self.events = [], [], []

    def restart(self, reason: EndReason) -> None:
        self.forget(reason)
        self.epoch += 1
        self.asked_ns = None
        self.settled = self.numbers[-1] if self.numbers else 0


class BookMachine(RuleBasedStateMachine):
    """Two books get the same; both must say the same, and what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.books = QueryRegistry(CAPACITY), QueryRegistry(CAPACITY)
        self.models: dict[str, QueryHistory] = {}
        self.open: list[tuple[tuple[Evaluation, Evaluation], QueryHistory, int]] = []
        self.now_ns, self.camera_ns = 10_000 * S, 0
        self.open_ids: dict[str, str] = {}
        self.used_ids: set[str] = set()

    def take(self, events: tuple[list[Event], list[Event]], gone: QueryHistory | None = None) -> None:
        """Hand events to the models; each end must follow its begin."""
        assert events[0] == events[1]
        for event in events[0]:
            model = gone or self.models[event.query.name]
            model.events.append(event)
            model.counts.events += 1
            if event.phase is Phase.END:
                assert self.open_ids.pop(event.query.name) == event.event_id
                continue
            assert event.event_id not in self.used_ids
            self.used_ids.add(event.event_id)
            if event.phase is Phase.BEGIN:
                assert event.query.name not in self.open_ids
                self.open_ids[event.query.name] = event.event_id

    @precondition(lambda self: len(self.models) < CAPACITY)
    @rule(name=NAMES, values=QUERIES)
    def add(self, name: str, values: dict[str, object]) -> None:
        if name in self.models:
            return
        query = StandingQuery(name=name, question="?", **values)  # type: ignore[arg-type]
        assert [book.add(query) for book in self.books] == [[], []]
        self.models[name] = QueryHistory(query)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.models:
            model = self.models.pop(name)
            first, second = (book.remove(name) for book in self.books)
            self.take((first, second), model)
            model.forget(EndReason.REMOVED)

    @rule(name=NAMES, is_enabled=st.booleans())
    def enable(self, name: str, is_enabled: bool) -> None:
        if name not in self.models:
            return
        was_enabled = self.books[0].states()[list(self.models).index(name)].query.enabled
        first, second = (book.enable(name, is_enabled) for book in self.books)
        self.take((first, second))
        if was_enabled != is_enabled:
            self.models[name].restart(EndReason.DISABLED)

    @rule(steps=st.sampled_from([1, 2, 4, 12, 30]))
    def tick(self, steps: int) -> None:
        self.now_ns += steps * STEP_NS
        self._expire()
        first, second = (book.due(self.now_ns) for book in self.books)
        assert first == second
        enabled = {state.query.name for state in self.books[0].states() if state.query.enabled}
        asked = [evaluation.query.name for group in first for evaluation in group]
        assert sorted(asked) == sorted(n for n, m in self.models.items() if n in enabled and self._is_due(m))
        assert len({group[0].query.clip for group in first}) == len(first)
        for group, twins in zip(first, second, strict=True):
            assert len({evaluation.query.clip for evaluation in group}) == 1
            for pair in zip(group, twins, strict=True):
                self._note_asking(pair)

    @rule(seconds=st.sampled_from([2, 100]))
    def jump_back(self, seconds: int) -> None:
        self.now_ns -= seconds * S
        self.camera_ns = 0
        self._expire(has_jumped=True)

    @rule(seconds=st.sampled_from([-50, 50]))
    def shift_stamps(self, seconds: int) -> None:
        self.camera_ns += seconds * S

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 2),
        yes=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
        age=st.integers(0, 2),
        is_late=st.booleans(),
    )
    def answer(self, which: int, yes: float, age: int, is_late: bool) -> None:
        evaluations, model, epoch = self.open.pop(which % len(self.open))
        self.now_ns += is_late * STEP_NS
        stamp_ns = self.now_ns + self.camera_ns - age * STEP_NS
        self._observe(evaluations, yes_no_answer(model.query, yes, stamp_ns), model, epoch, (stamp_ns, yes))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), reason=st.sampled_from([r for r in FinishReason if not r.is_answered]))
    def miss(self, which: int, reason: FinishReason) -> None:
        evaluations, model, epoch = self.open.pop(which % len(self.open))
        self._observe(evaluations, answer_of(model.query, "yes", None, reason=reason), model, epoch, None)

    @invariant()
    def tells_what_the_whole_history_says(self) -> None:
        states = self.books[0].states()
        assert states == self.books[1].states()
        assert [state.query.name for state in states] == list(self.models)
        for state, model in zip(states, self.models.values(), strict=True):
            model.check()
            assert state.counts == model.counts
            assert (state.open_event.event_id if state.open_event else None) == self.open_ids.get(state.query.name)
            num_open = sum(held is model for _, held, _ in self.open)
            assert model.counts.asked == (
                model.counts.answered + model.counts.missed + model.counts.repeated + num_open
            )

    def _is_due(self, model: QueryHistory) -> bool:
        period_ns = round(S / model.query.rate_hz)
        return model.asked_ns is None or model.asked_ns // period_ns != self.now_ns // period_ns

    def _note_asking(self, evaluations: tuple[Evaluation, Evaluation]) -> None:
        model = self.models[evaluations[0].query.name]
        model.counts.asked += 1
        if model.numbers and model.settled < model.numbers[-1]:
            model.counts.skipped += 1
        model.asked_ns = self.now_ns
        model.numbers.append(evaluations[0].number)
        self.open.append((evaluations, model, model.epoch))

    def _expire(self, *, has_jumped: bool = False) -> None:
        first, second = (book.expire(self.now_ns) for book in self.books)
        self.take((first, second))
        self._forget_what_is_old(has_jumped)

    def _forget_what_is_old(self, has_jumped: bool) -> None:
        for model in self.models.values():
            if has_jumped:
                model.restart(EndReason.TIME_JUMP)
            elif model.stamps_ns and self.now_ns - model.heard_ns >= model.query.stale_s * S:
                model.forget(EndReason.STALE)

    def _observe(
        self,
        evaluations: tuple[Evaluation, Evaluation],
        answer: Answer,
        model: QueryHistory,
        epoch: int,
        observation: tuple[int, float] | None,
    ) -> None:
        self._expire()  # so that what ends here is told apart from what the answer does
        first, second = (b.observe(a, answer, self.now_ns) for a, b in zip(evaluations, self.books, strict=True))
        number = evaluations[0].number
        if model not in self.models.values():
            assert first == []
            return
        is_known = epoch == model.epoch and number > model.counted
        model.settled = max(model.settled, number)
        if observation is None or not is_known:
            assert first == []
            model.counts.missed += 1
            return
        stamp_ns, yes = observation
        if model.seen_ns is not None and stamp_ns < model.seen_ns - S:
            ends = [event for event in first if event.end_reason is EndReason.TIME_JUMP]
            self.take((ends, [event for event in second if event.end_reason is EndReason.TIME_JUMP]))
            model.forget(EndReason.TIME_JUMP)
            first, second = first[len(ends) :], second[len(ends) :]
        elif model.seen_ns is not None and stamp_ns <= model.seen_ns:
            assert first == []
            model.counts.repeated += 1
            return
        model.counts.answered += 1
        model.counted, model.heard_ns = number, self.now_ns
        model.seen_ns = stamp_ns
        model.stamps_ns.append(stamp_ns)
        model.said.append(("yes" if yes >= 0.5 else "no", yes))
        self.take((first, second))


TestBookMachine = BookMachine.TestCase
TestBookMachine.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
