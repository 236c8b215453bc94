"""What of the package works here: every backend answers a fixed set and is compared with torch's answers; the node too.

Each trial is a child process with a time limit, so that a runtime that crashes or hangs is one line of the report.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nvila_ros.runtime.loading import GPU_FILES
from nvila_ros.runtime.tensorrt.api import FLAVOURS
from nvila_ros.tools.demo.subprocesses import ChildError, Children

MODEL = "nvila-tiny"
TRIAL_S = 60.0
BUILD_S = 600.0
EXACT, ROUNDED = 0.01, 0.15
"""How far a probability may be from the reference: of float backends, and of those that round weights."""
REFERENCE = (
    ("purple", 0.99983),
    ("square", 0.99687),
    ("1", 0.99990),
    ("no", 0.99956),
    ("bottom", 0.99981),
    ("down", 0.99992),
    ("2", 0.83222),
    ("no", 0.99995),
)
"""Answer and probability of each question by torch in float32: what `nvila_ros.tools.doctor.trial` prints for it."""
NO_GPU = "this machine has no NVIDIA GPU"
NO_FRAME = "no frame of"  # as a NoFramesError begins
NUM_LINES = 3  # of a child's errors
_CLI = (sys.executable, "-m", "nvila_ros.tools.cli")


class TrialOutcome(enum.Enum):
    """How a trial ended."""

    WORKS = "works"
    DIFFERS = "differs"
    FAILS = "fails"
    ABSENT = "not here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of one trial.

    Attributes:
        detail: for people: figures of one that works, the cause of one that does not.
        cure: what to do about it; empty where nothing is wrong.
        figures: what the child printed.
    """

    name: str
    outcome: TrialOutcome
    detail: str = ""
    cure: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend to try.

    Attributes:
        modules: that it needs.
        cure: where one of them is missing.
    """

    backend: str
    precision: str
    modules: tuple[str, ...]
    cure: str
    tolerance: float = EXACT

    @property
    def name(self) -> str:
        """How it is called in the report."""
        return self.backend if self.precision == "auto" else f"{self.backend} {self.precision}"


SUBJECTS = (
    Subject("onnxruntime", "auto", ("onnxruntime",), "pip install onnxruntime"),
    Subject("cpu", "fp32", ("openvino", "onnxruntime"), "pip install openvino"),
    Subject("cpu", "w8", ("openvino", "onnxruntime"), "pip install openvino", ROUNDED),
    Subject("cpu", "w4", ("openvino", "onnxruntime"), "pip install openvino", ROUNDED),
    Subject("cuda", "auto", ("torch",), "pip install 'nvila_ros[torch]' with the CUDA of this machine", ROUNDED),
    Subject("torch", "auto", ("torch",), "pip install 'nvila_ros[torch]', only for quantizing and training"),
)


def run_all(report: Callable[[str], object]) -> Iterator[Trial]:
    """Yield the outcome of each trial.

    Args:
        report: takes the name of each before it starts.
    """
    for subject in SUBJECTS:
        report(subject.name)
        yield try_backend(subject)
    report("tensorrt")
    yield try_tensorrt()
    report("node")
    yield try_node()


def try_backend(subject: Subject, model: str = MODEL, limit_s: float = TRIAL_S) -> Trial:
    """Let one backend answer the set."""
    missing = [name for name in subject.modules if find_spec(name) is None]
    if subject.backend == "cuda" and not has_gpu():
        return Trial(name=subject.name, outcome=TrialOutcome.ABSENT, detail=NO_GPU)
    if missing:
        return Trial(name=subject.name, outcome=TrialOutcome.ABSENT, detail=f"needs {missing[0]}", cure=subject.cure)
    command = [sys.executable, "-m", "nvila_ros.tools.doctor.trial", model, subject.backend, subject.precision]
    return judge(subject.name, subject.tolerance, *run_child(command, limit_s), cure=subject.cure)


def judge(name: str, tolerance: float, figures: dict[str, Any] | None, error: str, cure: str) -> Trial:
    """Compare what a child printed with the reference."""
    if figures is None:
        return Trial(name=name, outcome=TrialOutcome.FAILS, detail=error, cure=f"reinstall it ({cure}), or report this")
    wrong = [
        f"question {i}: {text} {probability:.3f}, expected {want_text} {want:.3f}"
        for i, ((text, probability), (want_text, want)) in enumerate(zip(figures["answers"], REFERENCE, strict=True))
        if text != want_text or not abs(probability - want) <= tolerance
    ]
    if wrong:
        cure = "do not use this backend here; attach this report to an issue"
        return Trial(name=name, outcome=TrialOutcome.DIFFERS, detail=wrong[0], cure=cure, figures=figures)
    detail = "{precision}, {answers_s} answers/s, loaded in {load_s} s".format(**figures)
    return Trial(name=name, outcome=TrialOutcome.WORKS, detail=detail, figures=figures)


def has_gpu() -> bool:
    """Whether the system has a device file of a GPU."""
    return any(path.exists() for path in GPU_FILES)


def try_tensorrt() -> Trial:
    """Compile a plan of the embedded model on this machine's GPU, and let it answer."""
    if not any(find_spec(name) for names in FLAVOURS.values() for name in names):
        cure = "comes with JetPack; on a workstation pip install tensorrt"
        return Trial(name="tensorrt", outcome=TrialOutcome.ABSENT, detail="needs tensorrt", cure=cure)
    if not has_gpu():
        return Trial(name="tensorrt", outcome=TrialOutcome.ABSENT, detail=NO_GPU)
    is_jetson = Path("/etc/nv_tegra_release").exists()
    recipe = f"{MODEL}.agx-orin" if is_jetson else f"{MODEL}.rtx-4090"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NVILA_ROS_BUILDS"] = folder
        built = run_child([*_CLI, "build", recipe], BUILD_S)
        if built[0] is None:
            cure = "see docs/tensorrt.md for versions that work; the backends above do not need it"
            return Trial(name="tensorrt", outcome=TrialOutcome.FAILS, detail=built[1], cure=cure)
        return try_backend(Subject("tensorrt", "auto", (), "nvila build", ROUNDED), str(Path(folder, recipe)))


def try_node() -> Trial:
    """Start the node and a camera, and ask the node over this machine's middleware."""
    cure = "pip install 'nvila_ros[ros]', or source a workspace of ROS 2"
    if find_spec("rclpy") is None:
        return Trial(name="node", outcome=TrialOutcome.ABSENT, detail="needs rclpy", cure=cure)
    from nvila_ros.tools.demo.graph import ros_environment

    environ = ros_environment()
    ask = ["call", "--json", "--timeout", f"{TRIAL_S / 2:g}", "ask", "Is there a star?", "--choices", "yes,no"]
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder), environ | {"ROS_LOG_DIR": folder}) as children:
        children.start("nvila_node", "nvila_ros.ros.node", ())
        children.start("nvila_camera", "nvila_ros.ros.camera_publisher", ())
        end_s = time.monotonic() + TRIAL_S
        figures, error = run_child([*_CLI, *ask], TRIAL_S, {**os.environ, **environ})
        while figures is None and NO_FRAME in error and time.monotonic() < end_s:  # the camera may start later
            figures, error = run_child([*_CLI, *ask], TRIAL_S, {**os.environ, **environ})
        try:
            children.check()
        except ChildError as ended:
            figures, error = None, str(ended)
    if figures is None or not figures["frames"]:
        cure = "see docs/troubleshooting.md: the discovery range, the Fast DDS profile and shared memory come first"
        return Trial(name="node", outcome=TrialOutcome.FAILS, detail=error or str(figures), cure=cure)
    detail = f"answered about a camera, {figures['timings']['total_s'] * 1000:.0f} ms"
    return Trial(name="node", outcome=TrialOutcome.WORKS, detail=detail, figures=figures)


def run_child(
    command: Sequence[str], limit_s: float, environ: dict[str, str] | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Run a child, no longer than a time; return the JSON object on its last line, or None and what went wrong."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=limit_s)
        except BaseException as error:  # Ctrl-C too: the child leads a group of its own
            os.killpg(child.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None, f"did not end within {limit_s:g} s"
    try:
        return (
            (json.loads(out.splitlines()[-1]), "") if child.returncode == 0 else (None, _cause(child.returncode, err))
        )
    except (IndexError, ValueError):
        return None, "printed no figures"


def _cause(code: int, err: str) -> str:
    """Return why a child ended: its signal, or the last lines that it wrote."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return " ".join(line.strip() for line in err.splitlines()[-NUM_LINES:]) or f"exit code {code}"
