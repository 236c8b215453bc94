"""The client beside a real node in its own process: whoever turns the caller's node, each call ends, and clearly."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import rclpy
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node

from nvila_ros.client import (
    FinishReason,
    ModelState,
    NvilaClient,
    StandingQuery,
)
from nvila_ros.errors import (
    ConfigError,
    NoFramesError,
    NvilaError,
    QueryError,
    ServerError,
    ServerTimeoutError,
    UnansweredError,
)
from tests.ros.robot import WAIT_S, Camera, Robot, running, wait_until
from tests.tiny import CRASH

WORDS = "one two three four five six seven eight"


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Robot, Camera]]:
    """A node with a fake model that says the words of the question, one each 20 ms, and three frames."""
    with running("-p", "model:=fake:0.02") as (robot, camera):
        robot.show(camera, 100.0, 100.1, 100.2)
        yield robot, camera


@pytest.fixture
def caller(scene: tuple[Robot, Camera]) -> Iterator[Node]:
    """A node of the caller that nobody turns."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("caller", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def client(caller: Node) -> Iterator[NvilaClient]:
    with NvilaClient(caller, timeout_s=WAIT_S, discovery_s=WAIT_S) as client:
        yield client


@pytest.fixture(params=[SingleThreadedExecutor, MultiThreadedExecutor], ids=["single", "multi"])
def spun(request: pytest.FixtureRequest, caller: Node) -> Iterator[threading.Thread]:
    """An executor of the caller turns its node in a thread."""
    executor = request.param(context=caller.context)
    executor.add_node(caller)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    yield thread
    executor.shutdown()
    thread.join()


def test_answer_comes_where_nobody_spins(client: NvilaClient) -> None:
    answer = client.ask("a red cube", num_frames=2, window_s=5.0).result()

    assert (answer.text, answer.finish_reason) == ("a red cube", FinishReason.STOP)
    assert [frame.stamp_ns for frame in answer.frames] == [100_000_000_000, 100_200_000_000]
    assert answer.query.num_frames == 2
    assert answer.query.query_id.startswith("q")
    assert answer.counts.num_answer_tokens == 3
    assert answer.model == "fake"
    assert answer.age_s > 1e6  # the frames are of 1970


@pytest.mark.usefixtures("spun")
def test_answer_comes_where_an_executor_spins(client: NvilaClient) -> None:
    assert client.ask("a red cube").result().text == "a red cube"
    assert "".join(client.ask_video(WORDS)) == WORDS


def test_many_questions_are_open_at_once_from_several_threads(client: NvilaClient) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda k=k: texts.append(client.ask(f"number {k}").result().text)) for k in range(8)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(texts) == [f"number {k}" for k in range(8)]


def test_callback_gets_the_answer(client: NvilaClient) -> None:
    texts: list[str] = []
    future = client.ask("a cube")

    future.add_done_callback(lambda done: texts.append(done.result().text))
    future.result()

    assert texts == ["a cube"]


def test_coroutine_of_an_executor_awaits(caller: Node, client: NvilaClient) -> None:
    async def work() -> tuple[str, list[str]]:
        answer = await client.ask("a cube")
        return answer.text, [piece async for piece in client.ask_video(WORDS)]

    executor = SingleThreadedExecutor(context=caller.context)
    executor.add_node(caller)
    task = executor.create_task(work)
    executor.spin_until_future_complete(task, timeout_sec=WAIT_S)

    text, pieces = task.result()
    assert (text, "".join(pieces)) == ("a cube", WORDS)
    executor.shutdown()


@pytest.mark.usefixtures("spun")
def test_asyncio_awaits(client: NvilaClient) -> None:
    async def work() -> tuple[list[str], str]:
        answers = await asyncio.gather(client.ask("first"), client.ask("second"))
        return [answer.text for answer in answers], "".join([piece async for piece in client.ask_video(WORDS)])

    assert asyncio.run(work()) == (["first", "second"], WORDS)


def test_callback_that_waits_for_its_own_executor_is_refused(caller: Node, client: NvilaClient) -> None:
    executor = SingleThreadedExecutor(context=caller.context)
    executor.add_node(caller)
    task = executor.create_task(lambda: client.ask("a cube").result())

    with pytest.raises(ServerError, match="await it in an async callback"):
        executor.spin_until_future_complete(task, timeout_sec=WAIT_S)
    executor.shutdown()


def test_executor_that_nobody_spins_is_named(caller: Node) -> None:
    executor = SingleThreadedExecutor(context=caller.context)
    executor.add_node(caller)
    with NvilaClient(caller, timeout_s=0.5) as client, pytest.raises(ServerTimeoutError, match="spin the executor"):
        client.ask("a cube").result()
    with NvilaClient(caller, timeout_s=0.5) as client, pytest.raises(ServerTimeoutError, match="spin the executor"):
        list(client.ask_video("a cube"))
    executor.shutdown()


def test_pieces_come_while_the_model_answers_and_join_to_the_answer(client: NvilaClient) -> None:
    stream = client.ask_video(WORDS)

    pieces = list(stream)

    assert 2 <= len(pieces) <= 8  # feedback that comes too fast is merged
    assert "".join(pieces) == stream.answer.result().text == WORDS


def test_stream_that_is_left_is_canceled(scene: tuple[Robot, Camera], client: NvilaClient) -> None:
    robot, _ = scene
    with client.ask_video("word " * 200, max_tokens=200) as stream:
        first = next(stream)

    answer = stream.answer.result()

    assert answer.finish_reason is FinishReason.CANCELED
    assert answer.text.startswith(first)
    assert "".join([first, *stream]) == answer.text
    assert len(answer.text) < 900
    assert int(robot.fresh_diagnostics()["queries_running"]) == 0


def test_future_that_is_canceled_raises(client: NvilaClient) -> None:
    future = client.ask("word " * 50)

    assert future.cancel()

    with pytest.raises(CancelledError):
        future.result()
    assert client.ask("the next").result().text == "the next"


@pytest.mark.parametrize(
    ("question", "fields", "error", "text"),
    [
        (" ", {}, QueryError, "question must not be empty"),
        ("when", {"start_ns": 1, "end_ns": 2}, NoFramesError, "100.2"),
        ("late " * 50, {"deadline_s": 0.1, "max_tokens": 50}, UnansweredError, "DEADLINE"),
        ("which", {"answer_type": "choices"}, QueryError, "needs choices"),
    ],
    ids=["invalid", "no_frames", "deadline", "rule"],
)
def test_question_without_an_answer_raises_why(
    client: NvilaClient, question: str, fields: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        client.ask(question, **fields).result()
    with pytest.raises(error, match=text):
        list(client.ask_video(question, **fields))


def test_late_answer_has_what_was_said(client: NvilaClient) -> None:
    with pytest.raises(UnansweredError) as raised:
        client.ask("late " * 50, deadline_s=0.3, max_tokens=50).result()

    assert raised.value.answer.finish_reason is FinishReason.DEADLINE
    assert raised.value.answer.text.startswith("late")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"frames": 3}, "unknown field 'frames'; did you mean one of"),
        ({"choices": "yes,no"}, "write \\['yes,no'\\]"),
        ({"num_frames": 1.5}, "num_frames must be a whole number"),
        ({"priority": 256}, "priority must be a whole number in \\[0, 255\\]"),
        ({"window_s": float("nan")}, "window_s must be a finite number"),
        ({"cameras": [1]}, "cameras must be a list of texts"),
        ({"start_ns": 1 << 63}, "start_ns must be a whole number"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_field_is_refused_at_once(client: NvilaClient, fields: dict[str, object], text: str) -> None:
    with pytest.raises(QueryError, match=text):
        client.ask("what", **fields)


def test_probabilities_are_beside_their_choices(client: NvilaClient) -> None:
    answer = client.ask("which", choices=["a", "b"]).result()

    assert (answer.text, answer.choices) == ("a", ("a", "b"))
    assert len(answer.probabilities) == 2


def test_status_is_known_once_ready(client: NvilaClient) -> None:
    status = client.wait_until_ready().result()

    assert (status.state, status.model) == (ModelState.READY, "fake")
    assert client.status == status


def test_closed_client_fails_what_is_open(caller: Node) -> None:
    client = NvilaClient(caller, discovery_s=WAIT_S, name="nobody")
    future = client.ask("what")

    client.close()

    with pytest.raises(ServerError, match="closed"):
        future.result()


def test_absent_node_is_explained(caller: Node) -> None:
    wait_until(lambda: "/nvila/ask" in dict(caller.get_service_names_and_types()), "the other node is seen")
    with NvilaClient(caller, "/other", discovery_s=1.0) as client:
        with pytest.raises(ServerError) as raised:
            client.ask("what").result()
        with pytest.raises(ServerError, match="action /other/ask_video"):
            list(client.ask_video("what"))

    text = str(raised.value)
    assert "no server of the service /other/ask (nvila_ros/srv/Ask) was found within 1 s" in text
    assert f"in ROS domain {caller.context.get_domain_id()}" in text
    assert "of that type there are ['/nvila/ask']" in text
    assert all(name in text for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "RMW_IMPLEMENTATION"))


def test_wait_that_is_too_short_says_so_and_can_be_repeated(client: NvilaClient) -> None:
    future = client.ask("word " * 20, max_tokens=20)

    with pytest.raises(ServerTimeoutError, match=r"the response of /nvila/ask did not come within 0\.01 s"):
        future.result(0.01)

    assert future.result().text.startswith("word")


def test_call_that_takes_too_long_times_out(client: NvilaClient) -> None:
    client.ask("the node is found").result()

    with pytest.raises(ServerTimeoutError, match=r"/nvila/ask did not respond within 0\.2 s"):
        client.ask("word " * 50, max_tokens=50, timeout_s=0.2).result()


def test_model_that_fails_is_reported(client: NvilaClient) -> None:
    with pytest.raises(UnansweredError, match="FAILED"):
        client.ask(CRASH).result()


def test_no_event_in_time_is_an_error(client: NvilaClient) -> None:
    with client.events("lamp") as events, pytest.raises(ServerTimeoutError, match="no event of lamp"):
        events.next(0.1)


NO_UTF8 = "ab\udce9"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda client: client.ask(NO_UTF8), "question must be UTF-8, got bytes that are none at character 2"),
        (lambda client: client.ask_video("what", choices=["a", NO_UTF8]), "choices must be UTF-8"),
        (lambda client: client.add_query(StandingQuery(name="a", question=NO_UTF8)), "question must be UTF-8"),
        (lambda client: client.remove_query(NO_UTF8), "name must be UTF-8"),
        (lambda client: client.ask("what", timeout_s=math.nan), "timeout_s must be positive, got nan"),
    ],
)
def test_what_no_message_holds_is_refused_before_it_is_sent(
    client: NvilaClient, ask: Callable[[NvilaClient], object], message: str
) -> None:
    with pytest.raises(NvilaError, match=message):
        ask(client)


@pytest.mark.parametrize("name", ["a b", "", NO_UTF8])
def test_what_names_no_node_is_refused(caller: Node, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a node"):
        NvilaClient(caller, name)


@pytest.mark.parametrize("times", [{"timeout_s": 0.0}, {"discovery_s": -1.0}, {"timeout_s": math.nan}])
def test_times_of_a_client_are_positive(caller: Node, times: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        NvilaClient(caller, **times)


def test_clients_come_and_go_while_an_executor_turns(caller: Node, spun: threading.Thread) -> None:
    caller.create_timer(0.001, lambda: None)  # so that it gathers anew what it waits for all the time

    for _ in range(40):
        with NvilaClient(caller, "nobody", timeout_s=WAIT_S, discovery_s=WAIT_S) as client:
            asked = client.ask(WORDS), client.ask_video(WORDS)
        with pytest.raises(ServerError, match="was closed"):
            asked[0].result()

    assert spun.is_alive()
