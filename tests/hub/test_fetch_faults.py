"""`nvila fetch` from a hub that misbehaves: each fault has a clear end, and a rerun completes what was begun."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest

from nvila_ros.errors import ConfigError, HubError
from nvila_ros.hub.files import HubFile
from nvila_ros.tools.fetch import judge
from tests.full_disk import largest_file
from tests.hub.fetching import BIG, Waits, check_refused, check_whole, run
from tests.hub.local_hub import REPO, TOKEN, LocalHub, folder_files


def test_a_dropped_connection_is_resumed(hub: LocalHub, tmp_path: Path) -> None:
    hub.drops = {BIG: [10_000, 100_000, 0], "llm/vocab.json": [10]}
    waits = Waits()

    run(hub, tmp_path / "model", waits)

    check_whole(hub, tmp_path / "model")
    ranges = [h.get("range") for _, _, h in hub.seen("store", BIG)]
    assert ranges[1:] == [None, "bytes=10000-", "bytes=110000-", "bytes=110000-"]
    assert sorted(waits.seconds) == [1, 1, 1, 2]  # the second try in a row without a byte waits longer


def test_a_silent_connection_is_resumed(hub: LocalHub, tmp_path: Path) -> None:
    hub.drops, hub.stalls = {BIG: [100_000]}, {BIG}
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")


def test_a_later_run_resumes(hub: LocalHub, tmp_path: Path) -> None:
    hub.drops = {BIG: [100_000, *[0] * 9]}
    with pytest.raises(HubError, match=rf"ended at byte 100,000 of {BIG}; what came is kept"):
        run(hub, tmp_path / "model")
    check_refused(tmp_path / "model")
    hub.drops.clear()
    hub.requests.clear()

    moved = run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")
    assert moved <= sum(len(data) for path, data in hub.files.items() if path.endswith(".safetensors")) - 100_000
    assert [h.get("range") for _, _, h in hub.seen("store", BIG)][1:] == ["bytes=100000-"]


def test_a_range_that_is_ignored_begins_anew(hub: LocalHub, tmp_path: Path) -> None:
    hub.ignores_range, hub.drops = True, {BIG: [100_000]}
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")


def test_a_partial_file_that_is_too_long_begins_anew(hub: LocalHub, tmp_path: Path) -> None:
    hub.drops = {BIG: [10, *[0] * 9]}
    with pytest.raises(HubError):
        run(hub, tmp_path / "model")
    hub.drops.clear()
    (partial,) = (tmp_path / "model").rglob("*.part")
    partial.write_bytes(bytes(len(hub.files[BIG]) + 1))

    run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")


@pytest.mark.parametrize("path", [BIG, "llm/vocab.json"])
def test_wrong_bytes_are_fetched_once_more(hub: LocalHub, tmp_path: Path, path: str) -> None:
    hub.wrong[path] = 1
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")


@pytest.mark.parametrize("path", [BIG, "llm/vocab.json"])
def test_bytes_that_stay_wrong_are_never_kept(hub: LocalHub, tmp_path: Path, path: str) -> None:
    hub.wrong[path] = 100
    with pytest.raises(HubError, match=rf"{path} of {REPO} has another digest than http://\S+ lists, twice"):
        run(hub, tmp_path / "model")
    check_refused(tmp_path / "model")
    assert path not in folder_files(tmp_path / "model")

    hub.wrong[path] = 0
    run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")


def test_a_damaged_partial_file_is_found_and_replaced(hub: LocalHub, tmp_path: Path) -> None:
    hub.drops = {BIG: [100_000, *[0] * 9]}
    with pytest.raises(HubError):
        run(hub, tmp_path / "model")
    hub.drops.clear()
    (partial,) = (tmp_path / "model").rglob("*.part")
    partial.write_bytes(bytes(50_000))

    run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")


def test_the_token_stays_at_the_hub(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.is_gated = True

    run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")
    assert {h.get("authorization") for _, _, h in hub.seen("hub")} == {f"Bearer {TOKEN}"}
    assert hub.seen("store")
    assert not [h for _, _, h in hub.seen("store") if "authorization" in h]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("is_gated", f"{REPO} is gated: accept its terms at http.*{REPO}, then set HF_TOKEN"),
        ("is_private", rf"has no {REPO}, or it is private; see the spelling, or set HF_TOKEN"),
        ("has_no_revision", rf"{REPO} has no such revision; see http.*/tree/main"),
    ],
)
def test_refusals_say_what_to_do(hub: LocalHub, tmp_path: Path, fault: str, text: str) -> None:
    setattr(hub, fault, True)
    with pytest.raises(HubError, match=text):
        run(hub, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_tree_that_goes_on_elsewhere_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    hub.page_size, hub.next_page = 3, f"{hub.store}/more"
    with pytest.raises(HubError, match="goes on at another host"):
        run(hub, tmp_path / "model")
    assert not hub.seen("store")


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "llm/../../evil.json", "a\\b.json", "a//b.json", "a\n"]
)
def test_a_path_that_leaves_its_folder_is_refused(hub: LocalHub, tmp_path: Path, path: str) -> None:
    hub.entries = [{"type": "file", "path": path, "size": 1, "oid": "0" * 40}]
    with pytest.raises(HubError, match="which may leave its folder; nothing was fetched"):
        run(hub, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "entry", [7, {}, {"path": "a.json", "size": -1, "oid": "0" * 40}, {"path": "a.json", "size": 1, "oid": "../x"}]
)
def test_a_tree_out_of_protocol_is_refused(hub: LocalHub, tmp_path: Path, entry: object) -> None:
    hub.entries = [entry]
    with pytest.raises(HubError, match="is not its protocol"):
        run(hub, tmp_path / "model")


def test_a_file_that_is_listed_twice_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    hub.entries = hub.tree()[1:2]
    with pytest.raises(HubError, match="twice"):
        run(hub, tmp_path / "model")


@pytest.mark.parametrize("path", [BIG, "config.json"])
def test_a_file_that_changes_meanwhile_is_refused(hub: LocalHub, tmp_path: Path, path: str) -> None:
    hub.sends_wrong_etag = {path}
    with pytest.raises(HubError, match=f"{path} of {REPO} changed on the hub while it was fetched; run again"):
        run(hub, tmp_path / "model")
    check_refused(tmp_path / "model")
    hub.sends_wrong_etag = set()
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")


def test_a_commit_that_changes_meanwhile_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    hub.moves_to = "f" * 40
    with pytest.raises(HubError, match="changed on the hub while it was fetched"):
        run(hub, tmp_path / "model")


def test_an_expired_link_is_asked_for_again(hub: LocalHub, tmp_path: Path) -> None:
    hub.expired = 3
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")


def test_a_busy_hub_is_waited_for_as_it_asks(hub: LocalHub, tmp_path: Path) -> None:
    hub.busy = [(429, "7"), (503, ""), (429, "9999")]
    waits = Waits()
    run(hub, tmp_path / "model", waits)
    check_whole(hub, tmp_path / "model")
    assert waits.seconds == [7, 2, 60]


def test_a_hub_that_stays_busy_ends_the_run(hub: LocalHub, tmp_path: Path) -> None:
    hub.busy = [(500, "")] * 99
    waits = Waits()
    with pytest.raises(HubError, match=r"is busy \(status 500\)"):
        run(hub, tmp_path / "model", waits)
    assert waits.seconds == [1, 2, 4, 8]


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    with LocalHub({}) as gone:
        pass
    with pytest.raises(HubError, match=r"127\.0\.0\.1:\d+ cannot be reached: .*refused.*; run again, or name another"):
        run(gone, tmp_path / "model")


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/resolve/loop"])
def test_a_redirect_that_is_not_safe_is_refused(hub: LocalHub, tmp_path: Path, where: str) -> None:
    hub.redirect = where if "loop" not in where else f"/{REPO}/resolve/{hub.commit}/{BIG}"
    with pytest.raises(HubError, match=r"not safe|redirects more than"):
        run(hub, tmp_path / "model")


def test_a_full_disk_keeps_what_came(hub: LocalHub, tmp_path: Path) -> None:
    def fill_disk(folder: Path) -> None:
        judge(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with (
        largest_file(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        pytest.raises(ConfigError, match="cannot be written: File too large; make room, then run"),
    ):
        run(hub, tmp_path / "model", judge=fill_disk)
    check_refused(tmp_path / "model")
    hub.requests.clear()

    run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")
    assert "bytes=100000-" in [h.get("range") for _, _, h in hub.seen("store")]


def test_a_disk_that_is_too_small_is_known_before(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**7, 10**7, 1_000))
    with pytest.raises(ConfigError, match=r"needs [\d,]+ bytes more in .*, whose disk has 1,000 free"):
        run(hub, tmp_path / "model")
    assert not hub.seen("store")


def test_an_interrupt_stops_at_the_next_piece(hub: LocalHub, tmp_path: Path) -> None:
    def interrupt(file: HubFile, done: int) -> None:
        if file.is_weights:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(hub, tmp_path / "model", on_bytes=interrupt)
    check_refused(tmp_path / "model")
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")
