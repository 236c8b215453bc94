"""`nvila camera`: publish the synthetic world or a video file as a ROS camera; `nvila_camera` with plain options."""

from __future__ import annotations

import argparse

from nvila_ros.ros.camera_publisher import main, ros_args
from nvila_ros.tools.options import size, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--video", metavar="FILE", help="play this file in a loop instead of the synthetic world")
    parser.add_argument("--world", type=whole, default=0, metavar="SEED", help="seed of the world (default: 0)")
    parser.add_argument("--size", type=size, default=(640, 480), metavar="WxH", help="of the world (default: 640x480)")
    parser.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="of the world (default: 30)")
    parser.add_argument(
        "--epoch-ns", type=whole, default=0, metavar="NS", help="stamp of the world's start (default: 0)"
    )
    parser.add_argument("--reliable", action="store_true", help="QoS reliable instead of best effort")
    parser.add_argument("--topic", default="image", help="where to publish (default: %(default)s)")
    parser.add_argument("--ros-args", nargs=argparse.REMAINDER, default=[], help="all that follows is for ROS")


def run(args: argparse.Namespace) -> int:
    """Run the camera as the arguments say."""
    width, height = args.size
    values = {
        "video": args.video or "",
        "world": args.world,
        "width": width,
        "height": height,
        "rate_hz": args.rate,
        "epoch_ns": args.epoch_ns,
        "reliability": "reliable" if args.reliable else "best_effort",
    }
    return main(["nvila_camera", *ros_args(values), "-r", f"image:={args.topic}", *args.ros_args])
