"""The client beside nodes that come, go, and report events, each in a process of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nvila_ros.client import ModelState, NvilaClient, Phase, StandingQuery
from nvila_ros.errors import ConfigError, NoFramesError, QueryError, ServerError, UnansweredError
from tests.ros.guard import LAMP_NODE, Guard
from tests.ros.robot import SLOW_NODE, WAIT_S, Robot, running, wait_until


@pytest.mark.slow
def test_node_that_leaves_fails_what_is_open(tmp_path: Path) -> None:
    with (
        Robot("-p", f"model:={tmp_path / 'never'}", command=SLOW_NODE, state=ModelState.LOADING) as robot,
        NvilaClient(robot.node, timeout_s=WAIT_S, discovery_s=WAIT_S) as client,
    ):
        future, stream = client.ask("first"), client.ask_video("second")
        wait_until(lambda: robot.fresh_diagnostics()["queue_depth"] == "2", "both questions wait")
        robot.process.stop(signal.SIGKILL)

        with pytest.raises(ServerError, match="left before it answered"):
            future.result()
        with pytest.raises(ServerError, match="left before it answered"):
            list(stream)


def test_goal_is_rejected_with_the_reason(tmp_path: Path) -> None:
    arguments = ("-p", f"model:={tmp_path / 'later'}", "-p", "queue_size:=1")
    with (
        Robot(*arguments, command=SLOW_NODE, state=ModelState.LOADING) as robot,
        NvilaClient(robot.node, timeout_s=WAIT_S, discovery_s=WAIT_S) as client,
    ):
        waiting = client.ask("first")
        wait_until(lambda: robot.fresh_diagnostics()["queue_depth"] == "1", "a question waits")

        with pytest.raises(UnansweredError, match="REJECTED: the node's queue was full"):
            list(client.ask_video("second"))
        ready = client.wait_until_ready()
        assert not ready.done()
        (tmp_path / "later").touch()

        assert ready.result().state is ModelState.READY
        with pytest.raises(NoFramesError):
            waiting.result()


def test_standing_query_reports_events() -> None:
    with running(command=LAMP_NODE) as (robot, camera), NvilaClient(robot.node, discovery_s=WAIT_S) as client:
        guard = Guard(robot, camera)
        lamp = StandingQuery(name="lamp", question="Is the lamp on?", trigger="rising", rate_hz=10.0)
        with client.events("lamp") as events, client.events() as all_events:
            stands = client.add_query(lamp).result()
            assert (stands.name, stands.window_s, stands.cameras) == ("lamp", 2.0, ("camera",))
            assert client.list_queries().result() == (stands,)
            guard.show(False)
            begin_s = guard.show(True)
            begin = events.next(WAIT_S)
            end_s = guard.show(False)
            end = next(events)

        assert (begin.phase, end.phase) == (Phase.BEGIN, Phase.END)
        assert begin.event_id == end.event_id
        assert (begin.begin_stamp_ns, end.end_stamp_ns) == (begin_s * 10**9, end_s * 10**9)
        assert begin.text == "yes"
        assert begin.frames[-1].camera == "camera"
        assert list(events) == []  # closed
        assert [event.phase for event in all_events] == [Phase.BEGIN, Phase.END]

        with pytest.raises(QueryError, match="lamp"):
            client.add_query(lamp).result()
        client.enable_query("lamp", False).result()
        assert not client.list_queries().result()[0].enabled
        client.remove_query("lamp").result()
        with pytest.raises(QueryError, match="lamp"):
            client.remove_query("lamp").result()
        with pytest.raises(ConfigError, match="trigger"):
            StandingQuery(name="odd", question="?", trigger="sometimes")
