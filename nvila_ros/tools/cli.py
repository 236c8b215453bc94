"""`nvila <verb>`: finds the verb's module, and reports every error as one line and an exit code.

A verb's module has `add_arguments(parser)` and `run(args) -> int`. It is imported only when its verb is used, so that
help appears at once and torch is imported only where it is used. Exit codes: 0 success, 1 the check or command that was
run failed, 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import NoReturn

from nvila_ros.errors import NvilaError
from nvila_ros.paths import version

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo.demo", "start the node and cameras, ask them questions, show the answers"),
    "ask": ("ask", "ask about a video file, images or a camera, without ROS"),
    "serve": ("serve", "serve OpenAI's API and a page about a video, a webcam or the world, without ROS"),
    "mcp": ("mcp_server", "serve a robot's eyes to agents by the Model Context Protocol, over stdin and stdout"),
    "call": ("call", "ask the running node: questions, standing queries, events, status"),
    "find": ("find.find", "find when something happens in a bag or a video of hours"),
    "camera": ("camera", "publish the synthetic world or a video file as a ROS camera"),
    "drive": ("drive.drive", "let a model drive a simulated robot by ten instructions, and show its ways"),
    "sim": ("sim", "simulate a robot with a camera in a house, as a ROS node"),
    "eval": ("evaluate", "measure how often a checkpoint answers right"),
    "doctor": ("doctor.doctor", "show what this machine is, and what of the package works on it"),
    "fetch": ("fetch", "fetch a published checkpoint by name, checked and resumable; or list them all"),
    "inspect": ("inspect_checkpoint", "show what a checkpoint is, what it costs and what is wrong with it"),
    "parity": ("parity", "compare a checkpoint with golden cases of the reference, stage by stage"),
    "plan": ("plan", "predict whether an engine fits a device, and how fast it is"),
    "bench": ("bench", "measure how fast a model is on this machine, and how close to its memory's speed"),
    "build": ("build", "quantize a checkpoint by a recipe, for the node to load"),
    "import-tinychat": ("import_tinychat", "make a build of AWQ weights that TinyChat packed"),
    "export": ("export", "write a checkpoint's parts as ONNX files"),
    "prune": ("prune", "keep the samples of a data set that are worth learning from"),
    "finetune": ("finetune", "tune a checkpoint on conversations"),
    "train-nav": ("train_nav", "make nvila-tiny-nav, which follows instructions in rooms, of nvila-tiny"),
    "train-tiny": ("train", "train nvila-tiny from nothing, or a sibling from it"),
}
"""Module and help line of each verb."""
_EXTRA_BY_MODULE = {
    "torch": "torch",
    "aiohttp": "http",
    "prometheus_client": "http",
    "mcp": "mcp",
    "mcp_types": "mcp",
    "matplotlib": "train",
    "peft": "train",
    "pydicom": "dicom",
    "pyarrow": "train",
    "rosbags": "bags",
    "rclpy": "ros",
    "sensor_msgs": "ros",
    "geometry_msgs": "ros",
    "nav_msgs": "ros",
    "rosgraph_msgs": "ros",
    "diagnostic_msgs": "ros",
}
_INTERFACES = ("nvila_ros.msg", "nvila_ros.srv", "nvila_ros.action")


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"nvila_ros {version()}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if sys.stdout is None:  # the shell closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    name = next((word for word in argv if not word.startswith("-")), "")
    try:
        with_arguments = _import_verb(name) if name in VERBS else None
        args = build_parser(name, with_arguments).parse_args(argv)
        assert with_arguments is not None, "argparse lets only known verbs pass"
        code = int(with_arguments.run(args))
        sys.stdout.flush()  # where a full disk would show only at exit
        return code
    except NvilaError as error:
        return _complain(name, " ".join(str(error).split()))
    except ModuleNotFoundError as error:
        hint = _hint(error.name or "")
        if not hint:
            raise
        return _complain(name, hint)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        return _complain(name, f"the output cannot be written: {error.strerror}; make room, or write elsewhere")


def build_parser(name: str = "", module: ModuleType | None = None) -> Parser:
    """Return the parser of all verbs; only the named verb, whose module is given, has its arguments."""
    layout = partial(argparse.HelpFormatter, max_help_position=28)
    parser = Parser(
        prog="nvila", description="Ask a robot's cameras questions in plain language.", formatter_class=layout
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for verb, (_, text) in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=layout)
        if verb == name and module is not None:
            module.add_arguments(sub)
    return parser


def _import_verb(name: str) -> ModuleType:
    return importlib.import_module(f"nvila_ros.tools.{VERBS[name][0]}")


def _drop_output() -> None:
    """Let go of standard output: nobody takes it, and Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(name: str, text: str) -> int:
    print(f"{' '.join(filter(None, ['nvila', name]))}: error: {text}", file=sys.stderr)
    return 2


def _hint(missing: str) -> str:
    """Return how to install a missing module; empty for one that is always installed."""
    if missing in _INTERFACES:
        return f"{missing} is not built; install nvila_ros[ros] with pip, or build and source the workspace"
    extra = _EXTRA_BY_MODULE.get(missing.partition(".")[0])
    how = f"install nvila_ros[{extra}]" + (" or source a ROS 2 workspace" if extra == "ros" else "")
    return f"{missing} is not installed; {how}" if extra else ""


def _leave(code: int) -> NoReturn:
    """End the process; a rank of torchrun at once, since torch's threads may abort while the interpreter exits."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
