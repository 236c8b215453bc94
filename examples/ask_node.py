"""Ask the running node from a ROS program: python examples/ask_node.py [QUESTION].

Start a node and a camera before, each in a terminal: `nvila_node` and `nvila camera --video examples/clip.mp4`.
"""

import sys

import rclpy

from nvila_ros.client import NvilaClient


def main(question: str = "How many objects are there?") -> None:
    """Ask once, and stream once; nothing spins the node, so the client does while it waits."""
    rclpy.init()
    node = rclpy.create_node("asker")
    with NvilaClient(node) as client:
        client.wait_until_ready().result()
        answer = client.ask(question).result()
        print(f"{answer.text} (about a frame {answer.age_s * 1e3:.0f} ms old)")
        with client.ask_video("Describe the scene.") as pieces:
            print("".join(pieces))
    node.destroy_node()
    rclpy.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
