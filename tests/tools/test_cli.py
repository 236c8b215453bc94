"""One line and the right exit code for whatever goes wrong, and help that is quick and true."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvila_ros.tools import cli

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "rclpy", "cv2", "onnxruntime", "transformers"}


def run(*argv: str) -> int:
    """Run a verb as the console script does."""
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0

    told = capsys.readouterr().out
    assert set(cli.VERBS) <= set(re.findall(r"^    ([a-z-]+)\b", told, re.M))


def test_help_imports_nothing_heavy() -> None:
    code = f"""if True:
        import sys
        from nvila_ros.tools.cli import main
        try:
            main(["--help"])
        except SystemExit:
            print(sorted({HEAVY} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", ["ask", "eval", "export", "inspect", "parity"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0

    assert capsys.readouterr().out.startswith(f"usage: nvila {verb} ")


@pytest.mark.ros
@pytest.mark.parametrize("verb", ["camera", "demo"])
def test_every_verb_of_ros_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvila_ros.msg")

    assert run(verb, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: nvila {verb} ")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="training needs torch")
def test_training_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train-tiny", "--help") == 0

    assert "--workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "required: VERB"),
        (("fly",), "invalid choice: 'fly'"),
        (("ask",), "required: SOURCE, QUESTION"),
        (("ask", "x.mp4", "What?", "--frames", "0"), "whole number >= 1, got '0'"),
        (("ask", "x.mp4", "What?", "--backend", "magic"), "invalid choice: 'magic'"),
        (("ask", "x.mp4", "  "), "question must not be empty"),
        (("ask", "x.mp4", "What?", "--choices", "a,a"), "choices must be distinct"),
        (("ask", "x.mp4", "What?", "--choices", "a,,b"), "none of them empty, got 'a,,b'"),
        (("ask", "x.mp4", "What?", "--choices", ","), "none of them empty, got ','"),
        (("ask", "x.mp4", "What?", "--max-tiles", "65"), "at most 64 tiles, got '65'"),
        (("plan", "nvila-lite-2b.orin-nano", "--image", "0x480"), "expected WIDTHxHEIGHT"),
        (("ask", "x.mp4", "What?", "--checkpoint", "/nowhere"), "no checkpoint at '/nowhere'"),
        (("eval", "/nowhere"), "no checkpoint at '/nowhere'"),
        (("train-tiny", "--out", "/dev/null", "--work", "w"), "/dev/null holds something that is no checkpoint"),
        (("train-tiny", "--out", "o", "--work", "w", "--start", "nvila-tiny"), "--start and --stages go together"),
        (("eval", "nvila-tiny", "--kinds", "color,taste"), "got taste"),
        (("eval", "nvila-tiny", "--suite", "huge"), "invalid choice: 'huge'"),
    ],
)
def test_bad_input_is_told_in_one_line(argv: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert told in err
    assert err.startswith("nvila")


def _use_verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Add a verb that does nothing but fail."""

    def fail(args: object) -> int:
        raise error

    module = SimpleNamespace(add_arguments=lambda parser: None, run=fail)
    monkeypatch.setitem(cli.VERBS, "fail", ("failing", "fail"))
    monkeypatch.setitem(sys.modules, "nvila_ros.tools.failing", module)


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _use_verb(monkeypatch, KeyboardInterrupt())

    assert run("fail") == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("torch", "install nvila_ros[torch]"),
        ("rclpy", "install nvila_ros[ros] or source a ROS 2 workspace"),
        ("nvila_ros.msg", "is not built"),
    ],
)
def test_missing_extra_is_named(
    module: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _use_verb(monkeypatch, ModuleNotFoundError(f"No module named {module!r}", name=module))

    assert run("fail") == 2
    assert told in capsys.readouterr().err


def test_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _use_verb(monkeypatch, ModuleNotFoundError("No module named 'typo'", name="typo"))

    with pytest.raises(ModuleNotFoundError):
        run("fail")


@pytest.mark.parametrize(
    ("words", "name"), [(("plan", "nvila-lite-2b.orin-nano"), "nvila plan"), (("--version",), "nvila")]
)
def test_full_disk_behind_the_output_is_one_line_and_code_2(words: tuple[str, ...], name: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "nvila_ros.tools.cli", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)

    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"{name}: error: the output cannot be written: No space left on device; make room, or write elsewhere"
    )


def test_closed_output_is_nobody_s_traceback() -> None:
    command = [sys.executable, "-m", "nvila_ros.tools.cli", "plan", "nvila-lite-2b.orin-nano"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    assert (done.returncode, done.stderr) == (0, "")
