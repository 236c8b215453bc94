"""Let the node watch for something, and act on its events: python examples/standing_query.py.

Start a node and a camera before, each in a terminal: `nvila_node` and `nvila camera --video examples/clip.mp4`.
"""

import asyncio
import threading

import rclpy
from rclpy.executors import SingleThreadedExecutor

from nvila_ros.client import NvilaClient, Phase, StandingQuery

TRIANGLE = StandingQuery(
    name="triangle",
    question="Is there a red triangle?",
    trigger="rising",
    rate_hz=5.0,
    debounce_n=2,
    debounce_m=3,
)


async def watch(client: NvilaClient) -> None:
    """Wait until the triangle is there, then stop watching."""
    with client.events("triangle") as events:
        await client.add_query(TRIANGLE, replace=True)
        async for event in events:
            print(f"{event.phase.name}: {event.name}, probability {event.probability:.2f}")
            if event.phase is Phase.BEGIN:
                break
    await client.remove_query("triangle")


def main() -> None:
    """Spin the node in a thread, and work with asyncio in this one."""
    rclpy.init()
    node = rclpy.create_node("watcher")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    try:
        client = NvilaClient(node)
        asyncio.run(watch(client))
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
