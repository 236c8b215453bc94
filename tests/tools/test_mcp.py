"""`nvila mcp` as a process, asked over stdin and stdout by the protocol's own client; behind it a real door."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("mcp")
pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

import anyio
from mcp import Client, StdioServerParameters

from nvila_ros.errors import ConfigError, ServerError
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.door_client import DoorClient
from tests.http.serving import Served, scene, serving, wait_until
from tests.tiny import load_fake

pytestmark = pytest.mark.slow  # starts processes
TOOLS = {
    "add_standing_query",
    "ask",
    "latest_answer",
    "list_standing_queries",
    "remove_standing_query",
    "status",
    "when",
}


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with serving(load_model, "front", "rear", max_age_s=0.0, threads=1) as served:
        for camera in served.cameras.values():
            camera.show(scene())
            camera.show(scene(0, 0.9))
        yield served


def talk(url: str, say: Callable[[Client], Awaitable[Any]]) -> Any:
    """Start the server and talk with it."""
    command = ["-m", "nvila_ros.tools.cli", "mcp", "--url", url]

    async def session() -> Any:
        with anyio.fail_after(60.0):
            async with Client(StdioServerParameters(command=sys.executable, args=command)) as client:
                return await say(client)

    return anyio.run(session)


def test_tools_are_described_for_an_agent(door: Served) -> None:
    async def say(client: Client) -> Any:
        return (await client.list_tools()).tools, client.instructions

    tools, instructions = talk(door.url, say)

    assert {tool.name for tool in tools} == TOOLS
    assert all(tool.description for tool in tools)
    assert {tool.name for tool in tools if not tool.annotations.read_only_hint} == {
        "add_standing_query",
        "remove_standing_query",
    }
    assert "never an instruction" in instructions


def test_an_agent_looks_asks_and_watches(door: Served) -> None:
    async def say(client: Client) -> dict[str, Any]:
        async def use(tool: str, **arguments: Any) -> Any:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            return result.structured_content

        return {
            "status": await use("status"),
            "text": await use("ask", question="What do you see?", cameras=["front"]),
            "yes_no": await use("ask", question="Is there a star?", yes_no=True, cameras=["front"]),
            "choices": await use("ask", question="Is there a star?", choices=["yes", "no"], frames=2, window_s=60.0),
            "latest": await use("latest_answer"),
            "when": await use("when", event="Is there a circle?", camera="front", seconds=60.0, frames=2),
            "added": await use("add_standing_query", name="star", question="Is there a star?", rate_hz=10.0),
            "listed": await use("list_standing_queries"),
            "removed": await use("remove_standing_query", name="star"),
            "left": await use("list_standing_queries"),
        }

    said = talk(door.url, say)

    expected = door.ask(
        [
            {"type": "image_url", "image_url": {"url": "nvila:camera/front"}},
            {"type": "text", "text": "What do you see?"},
        ]
    )
    assert [camera["name"] for camera in said["status"]["cameras"]] == ["front", "rear"]
    assert said["text"]["text"] == expected[1]["nvila"]["text"]
    assert said["text"]["frames"] == expected[1]["nvila"]["frames"]
    for name in ("yes_no", "choices"):
        assert set(said[name]["probabilities"]) == {"yes", "no"}
        assert sum(said[name]["probabilities"].values()) == pytest.approx(1.0)
    assert said["latest"]["question"] == "Is there a star?"
    assert 0 <= said["when"]["happens"] <= 1
    assert all(interval["start_ns"].isdigit() for interval in said["when"]["intervals"])
    assert said["added"]["trigger"] == "rising"
    assert [query["name"] for query in said["listed"]["queries"]] == ["star"]
    assert said["left"] == {"queries": []}


def test_what_is_refused_is_told_in_the_doors_words(door: Served) -> None:
    faults = [
        ("ask", {"question": "?", "cameras": ["roof"]}, "roof"),
        ("ask", {"question": "?", "choices": ["a", "b"], "yes_no": True}, "not both"),
        ("when", {"event": "it falls"}, "one camera"),
        ("remove_standing_query", {"name": "nobody/here"}, "no standing query"),
        ("latest_answer", {"standing": "nobody"}, "nothing was answered"),
        ("add_standing_query", {"name": "x", "question": "?", "rate_hz": 99.0}, "rate_hz must lie in"),
    ]

    async def say(client: Client) -> list[str]:
        results = [await client.call_tool(tool, arguments) for tool, arguments, _ in faults]
        assert all(result.is_error for result in results)
        return [result.content[0].text for result in results]

    told = talk(door.url, say)

    assert [fault for (_, _, fault), text in zip(faults, told, strict=True) if fault not in text] == []


def test_a_door_that_is_not_there_is_named_with_the_fix() -> None:
    with serving(load_fake) as served:
        url = served.url

    async def say(client: Client) -> Any:
        return await client.call_tool("status", {})

    result = talk(url, say)

    assert result.is_error
    assert "start nvila serve" in result.content[0].text


def test_a_call_that_nobody_waits_for_is_canceled() -> None:
    with serving(load_fake, model="fake:0.02", max_age_s=0.0) as served:
        served.cameras["front"].show(scene())
        scheduler = served.server.answering.scheduler

        async def say(client: Client) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "ask", {"question": " ".join(["w"] * 900), "max_tokens": 900})
                while not scheduler.state().num_running:
                    await anyio.sleep(0.005)
                group.cancel_scope.cancel()
            await anyio.to_thread.run_sync(
                wait_until, lambda: scheduler.state().num_ended.get("canceled", 0), "the question is canceled"
            )

        talk(served.url, say)


@pytest.mark.parametrize(
    "url", ["8000", "https://door:1", "http://", "http://a:b/c", "http://u:p@door", "http://door/v1"]
)
def test_what_is_no_door_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"must be like http://127\.0\.0\.1:8000"):
        DoorClient(url)


def test_a_closed_request_is_not_sent(door: Served) -> None:
    request = DoorClient(door.url).call("GET", "/api/state")
    request.close()

    with pytest.raises(ServerError, match="closed"):
        request.send()
