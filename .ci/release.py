"""Make and try what is released of this version: `make release`.

Into build/release/: the sdist, this machine's wheel, and the notes, which are the version's section of CHANGELOG.md.
Each of the two is installed into a bare environment and tried outside the repository: the program, the embedded model,
the interfaces. The version stands in package.xml alone. Once the section's heading has a date, CHANGELOG.rst, which
bloom reads, is written as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "release"
UNRELEASED = "unreleased"
QUESTION, ANSWER = "Where does the square move?", "right"
_SECTION = re.compile(r"^## (\S+) \(([^)\n]+)\)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def package_version() -> str:
    """Return the version, as package.xml has it."""
    return ElementTree.parse(ROOT / "package.xml").findtext("version", "")


def sections(changelog: str) -> list[tuple[str, str, str]]:
    """Return version, date and text of each section of a changelog, the newest first."""
    return _SECTION.findall(changelog)


def notes_of(changelog: str, version: str) -> str:
    """Return the notes of the version that is to be released.

    Raises:
        SystemExit: the changelog begins with another one.
    """
    newest, _, text = sections(changelog)[0]
    if newest != version:
        sys.exit(f"error: CHANGELOG.md begins with {newest}, package.xml says {version}; make them agree")
    return text.strip() + "\n"


def to_rst(changelog: str) -> str:
    """Return the released sections of a changelog as bloom's tools read it (REP 132)."""
    title = "Changelog for package nvila_ros"
    parts = ["^" * len(title), title, "^" * len(title), ""]
    for version, date, text in sections(changelog):
        if date == UNRELEASED:
            continue
        heading = f"{version} ({date})"
        parts += [heading, "-" * len(heading), _body_to_rst(text), ""]
    return "\n".join(parts).rstrip() + "\n"


def _body_to_rst(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text.strip())
    return re.sub(r"^- ", "* ", re.sub(r"`([^`]+)`", r"``\1``", text), flags=re.MULTILINE)


def main() -> None:
    """Build, try and report."""
    version, changelog = package_version(), (ROOT / "CHANGELOG.md").read_text()
    notes = notes_of(changelog, version)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tools = _environment("tools")
    _run(tools / "pip", "install", "--quiet", "build")
    _run(tools / "python", "-m", "build", "--outdir", OUT, ROOT)  # the wheel is built from the sdist
    sdist, wheel = next(OUT.glob("*.tar.gz")), next(OUT.glob("*.whl"))
    _try(f"nvila_ros[ros] @ {wheel.as_uri()}", "wheel", version, has_ros=True)
    _try(str(sdist), "sdist", version, has_ros=False)
    (OUT / "notes.md").write_text(notes)
    if sections(changelog)[0][1] == UNRELEASED:
        print(f"a rehearsal: write a date for '{UNRELEASED}' in CHANGELOG.md, run again, then commit and tag {version}")
    else:
        (ROOT / "CHANGELOG.rst").write_text(to_rst(changelog))
    for path in sorted(OUT.iterdir()):
        if path.is_file():
            print(f"{path.stat().st_size:12,} {path.relative_to(ROOT)}")


def _environment(name: str) -> Path:
    """Make a bare environment; return the folder of its programs."""
    venv.create(OUT / name, with_pip=True, clear=True)
    return OUT / name / "bin"


def _try(requirement: str, name: str, version: str, *, has_ros: bool) -> None:
    bin_folder = _environment(name)
    _run(bin_folder / "pip", "install", "--quiet", requirement)
    clip = shutil.copy(ROOT / "examples" / "clip.mp4", OUT / name)
    _expect(f"nvila_ros {version}", bin_folder / "nvila", "--version")
    _expect(ANSWER, bin_folder / "nvila", "ask", clip, QUESTION)
    if has_ros:
        _expect("Ask", bin_folder / "python", "-c", "from nvila_ros.srv import Ask; print(Ask.__name__)")
        _run(bin_folder / "nvila_node", "--help", stdout=subprocess.DEVNULL)
    shutil.rmtree(bin_folder.parent)


def _expect(text: str, *command: object) -> None:
    told = _run(*command, stdout=subprocess.PIPE).stdout.strip()
    if told != text:
        sys.exit(f"error: {' '.join(map(str, command))} must print {text!r}, got {told!r}")


def _run(*command: object, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own, without this shell's ROS and Python paths."""
    words = [str(word) for word in command]
    kept = ("CMAKE_PREFIX_PATH", "AMENT_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in kept}
    begin_s = time.monotonic()
    done = subprocess.run(words, cwd=OUT, env=env, stdout=stdout, text=True, check=False)
    print(f"{time.monotonic() - begin_s:6.1f} s  {' '.join(words)}".replace(f"{ROOT}/", ""), flush=True)
    if done.returncode:
        sys.exit(f"error: it ended with {done.returncode}")
    return done


if __name__ == "__main__":
    main()
