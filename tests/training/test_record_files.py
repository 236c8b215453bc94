"""Any record is found again in a file of lines and in an array, whatever it holds and however it is laid out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvila_ros.training.conversations import files
from nvila_ros.training.conversations.bad_samples import DataError, SampleError
from nvila_ros.training.conversations.files import RecordFile

LAYOUTS = ("lines", "array", "indented array")
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ['"', "\\", '\\"', "]}", "{[", "\n", "\\\\"]
)
values = st.recursive(texts | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
records = st.lists(st.dictionaries(texts, values | st.dictionaries(texts, values, max_size=2), max_size=4), max_size=6)


def write(path: Path, told: list[Any], layout: str, is_ascii: bool = False) -> RecordFile:
    if layout == "lines":
        text = "".join(json.dumps(each, ensure_ascii=is_ascii) + "\n\n" for each in told)
    else:
        text = json.dumps(told, ensure_ascii=is_ascii, indent=2 if layout == "indented array" else None) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    return RecordFile(path, path.parent)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=records, layout=st.sampled_from(LAYOUTS), is_ascii=st.booleans())
def test_every_record_is_found(tmp_path: Path, told: list[Any], layout: str, is_ascii: bool) -> None:
    file = write(tmp_path / "set.json", told, layout, is_ascii)

    assert len(file) == len(told)
    lines = [file.line(index) for index in range(len(file))]
    assert [json.loads(line) for line in lines] == told
    assert all(b"\n" not in line for line in lines)


def test_lines_are_given_back_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b'  {"a":  1} \r\n\n{"b":2}')

    file = RecordFile(tmp_path / "set.jsonl", tmp_path)

    assert [file.line(0), file.line(1)] == [b'{"a":  1}', b'{"b":2}']


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=records.filter(bool), layout=st.sampled_from(LAYOUTS[1:]), data=st.data())
def test_array_that_is_cut_off_is_refused(tmp_path: Path, told: list[Any], layout: str, data: st.DataObject) -> None:
    path = write(tmp_path / "set.json", told, layout).path
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])

    with pytest.raises(DataError, match="does not end"):
        RecordFile(path, tmp_path)


@pytest.mark.parametrize("text", ['[{"a": 1}]', '{"a": 1}'])
def test_byte_order_mark_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.json").write_text(text, encoding="utf-8-sig")

    file = RecordFile(tmp_path / "set.json", tmp_path)

    assert len(file) == 1
    assert json.loads(file.line(0)) == {"a": 1}


@pytest.mark.parametrize("text", ["[1, 2]", '["a"]', '[{} "a", {}]', "[{}] {}", "[true]", '[{}, "a"]'])
def test_array_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.json").write_text(text)

    with pytest.raises(DataError, match="array of objects"):
        RecordFile(tmp_path / "set.json", tmp_path)


@pytest.mark.parametrize("line", [b"{", b"nonsense", b'{"a": "\xff"}', b"[[1]", b"[" * 100_000])
def test_line_that_is_no_json_is_a_bad_sample(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "set.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")

    with pytest.raises(SampleError, match="record 2: a record must be JSON") as refused:
        RecordFile(tmp_path / "set.jsonl", tmp_path).read(1)
    assert refused.value.reason == "malformed"


def test_half_of_a_surrogate_pair_is_a_bad_sample(tmp_path: Path) -> None:
    records = (f'{{"question": "{text}", "answer": "a"}}' for text in ("What \\ud83d?", "\\u00e9"))
    (tmp_path / "set.json").write_text(f"[{', '.join(records)}]")
    file = RecordFile(tmp_path / "set.json", tmp_path)

    with pytest.raises(SampleError, match="surrogates not allowed"):
        file.read(0)
    assert file.read(1).turns[0].parts == ("\u00e9",)


def test_field_names_the_group_and_must_be_there(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a"}]
    path = tmp_path / "set.json"
    path.write_text(json.dumps([{"from_set": "vqa", "conversations": said}, {"conversations": said}]))

    file = RecordFile(path, tmp_path, "from_set")

    assert file.read(0).group == "vqa"
    with pytest.raises(DataError, match="record 2: field 'from_set' must name"):
        file.read(1)


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        RecordFile(tmp_path / "none.json", tmp_path)


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    first, same, other = (
        write(tmp_path / name, told, "lines")
        for name, told in (("a", [{"a": 1}]), ("b", [{"a": 1}]), ("c", [{"a": 2}]))
    )

    assert first.digest() == same.digest() != other.digest()


def test_what_has_no_end_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(DataError, match="must be a regular file, not a device, pipe or folder; give a file of"):
            RecordFile(path, tmp_path)

    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 11)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "b"}')
    assert len(RecordFile(tmp_path / "a.jsonl", tmp_path)) == 1
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "b"}\n{"a": "bc"}\n')
    with pytest.raises(DataError, match="a record must have at most 11 bytes, and one at 11 has more"):
        RecordFile(tmp_path / "a.jsonl", tmp_path)
