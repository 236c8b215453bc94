"""`nvila sim`: a robot with a camera in a house, as a ROS node; `nvila_sim` with plain options."""

from __future__ import annotations

import argparse

from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.sim import main
from nvila_ros.tools.options import size, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--task", type=whole, default=0, metavar="N", help="its house and start (default: 0)")
    parser.add_argument("--size", type=size, default=(320, 240), metavar="WxH", help="of the images (default: 320x240)")
    parser.add_argument("--rate", type=float, default=15.0, metavar="HZ", help="of images and scans (default: 15)")
    parser.add_argument("--clock", action="store_true", help="publish /clock and stamp by it")
    parser.add_argument("--ros-args", nargs=argparse.REMAINDER, default=[], help="all that follows is for ROS")


def run(args: argparse.Namespace) -> int:
    """Run the simulation as the arguments say."""
    width, height = args.size
    values = {"task": args.task, "width": width, "height": height, "rate_hz": args.rate, "clock": args.clock}
    return main(["nvila_sim", *ros_args(values), *args.ros_args])
