"""`nvila fetch` from a hub that behaves: what is moved, what is not, and what is found afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvila_ros.errors import CheckpointError, HubError
from nvila_ros.hub.client import HubClient
from nvila_ros.hub.fetch import fetch, plan_fetch
from nvila_ros.hub.local import find_fetched
from nvila_ros.hub.published import HubSource
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.paths import fetched_folder
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.cli import main
from nvila_ros.tools.fetch import judge
from tests.hub.fetching import BIG, NOT_FETCHED, Waits, check_refused, check_whole, run
from tests.hub.local_hub import REPO, TOKEN, LocalHub, folder_files


def test_fetches_what_a_checkpoint_needs(hub: LocalHub, tmp_path: Path) -> None:
    moved = run(hub, tmp_path / "model")

    check_whole(hub, tmp_path / "model")
    assert moved == sum(len(data) for path, data in hub.files.items() if path not in NOT_FETCHED)
    assert not [path for path in NOT_FETCHED if hub.seen("hub", path)]


def test_a_second_run_moves_nothing(hub: LocalHub, tmp_path: Path) -> None:
    run(hub, tmp_path / "model")
    hub.requests.clear()

    assert run(hub, tmp_path / "model") == 0

    assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/main"]


def test_small_files_come_first_and_are_judged_before_weights(hub: LocalHub, tmp_path: Path) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps({**config, "mm_vision_select_feature": "patch"}).encode()

    with pytest.raises(CheckpointError, match=f"^{REPO} would not load.*mm_vision_select_feature must be 'cls_patch'"):
        run(hub, tmp_path / "model")

    assert max(int(h["range"].rpartition("-")[2]) for _, _, h in hub.seen("store")) < 1 << 16  # headers alone
    check_refused(tmp_path / "model")


def test_headers_are_judged_before_weights(hub: LocalHub, tmp_path: Path) -> None:
    part = json.loads(hub.files["llm/config.json"])
    hub.files["llm/config.json"] = json.dumps({**part, "intermediate_size": 2 * part["intermediate_size"]}).encode()

    with pytest.raises(CheckpointError, match=r"would not load.*gate_proj"):
        run(hub, tmp_path / "model")

    assert BIG not in folder_files(tmp_path / "model")


def test_a_paged_tree_is_read_whole(hub: LocalHub, tmp_path: Path) -> None:
    hub.page_size = 3
    run(hub, tmp_path / "model")
    check_whole(hub, tmp_path / "model")
    assert len(hub.seen("hub", "/tree/")) == -(-len(hub.tree()) // 3)


def test_a_renamed_repository_is_followed(hub: LocalHub, tmp_path: Path) -> None:
    hub.renamed_from = "Old/Name"
    client = HubClient(hub.url, stopped=Waits())
    plan = plan_fetch(client, HubSource("Old/Name"), tmp_path / "model")
    fetch(client, plan, tmp_path / "model", judge, lambda *_: None)
    assert open_checkpoint(tmp_path / "model").load()


def test_a_new_commit_moves_only_what_changed(hub: LocalHub, tmp_path: Path) -> None:
    hub.files["NOTICE"] = b"of the first commit"
    run(hub, tmp_path / "model")
    del hub.files["NOTICE"]
    hub.files["README.md"] = b"another card"

    assert run(hub, tmp_path / "model") == len(b"another card")

    check_whole(hub, tmp_path / "model")


def test_files_that_others_put_there_are_taken_if_right(hub: LocalHub, tmp_path: Path) -> None:
    for path, data in hub.files.items():
        if path not in NOT_FETCHED:
            target = tmp_path / "model" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if path != BIG else data[:-1] + b"!")

    assert run(hub, tmp_path / "model") == len(hub.files[BIG])

    check_whole(hub, tmp_path / "model")


def fill_cache(hub: LocalHub, home: Path) -> Path:
    """Lay out the hub's cache as its own tools do; returns the snapshot."""
    cache = home / "hub" / f"models--{REPO.replace('/', '--')}"
    snapshot = cache / "snapshots" / hub.commit
    for entry in hub.tree()[1:]:
        blob = cache / "blobs" / (entry["lfs"]["oid"] if "lfs" in entry else entry["oid"])
        link = snapshot / entry["path"]
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(hub.files[entry["path"]])
        link.symlink_to(blob)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(hub.commit)
    return snapshot


def test_the_cache_of_the_hubs_own_tools_is_used(hub: LocalHub, tmp_path: Path) -> None:
    snapshot = fill_cache(hub, tmp_path / "huggingface")
    assert find_checkpoint("NVILA-Lite-2B") == snapshot
    assert open_checkpoint(snapshot).load()

    assert run(hub, tmp_path / "model") == 0

    check_whole(hub, tmp_path / "model")
    assert {h["range"] for _, _, h in hub.seen("store")} == {"bytes=0-65535"}  # headers alone


def test_a_damaged_cache_is_not_used_and_not_touched(hub: LocalHub, tmp_path: Path) -> None:
    snapshot = fill_cache(hub, tmp_path / "huggingface")
    blob = (snapshot / BIG).resolve()
    damaged = b"!" + blob.read_bytes()[1:]
    blob.write_bytes(damaged)

    assert run(hub, tmp_path / "model") == len(damaged)

    check_whole(hub, tmp_path / "model")
    assert blob.read_bytes() == damaged


def test_what_has_no_safetensors_is_refused(hub: LocalHub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "NVILA-8B-w4-g128-awq-v2.pt": b"pickle"}
    with pytest.raises(HubError, match=r"pickles alone.*NVILA-8B-w4-g128-awq-v2.pt.*nvila import-tinychat"):
        run(hub, tmp_path / "model")
    hub.files = {"README.md": b"a data set"}
    with pytest.raises(HubError, match="has no safetensors, so it is no checkpoint"):
        run(hub, tmp_path / "model")


def test_from_the_shell(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "x.png", "What?", "--checkpoint", "NVILA-Lite-2B"]) == 2
    assert "NVILA-Lite-2B is not on this machine; run: nvila fetch NVILA-Lite-2B (4.0 GB)" in capsys.readouterr().err

    assert main(["fetch", "NVILA-Lite-2B", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert BIG in listed
    assert "left out: modeling.py, optimizer.bin, trainer_state.json" in listed
    assert find_fetched("NVILA-Lite-2B") is None

    assert main(["fetch", "NVILA-Lite-2B"]) == 0
    assert find_checkpoint("NVILA-Lite-2B") == find_checkpoint(REPO) == fetched_folder(REPO)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["commit"] == hub.commit

    assert main(["fetch", "NVILA-Lite-2B", "--verify"]) == 0
    (fetched_folder(REPO) / "config.json").write_bytes(b"!" * len(hub.files["config.json"]))
    assert main(["fetch", "NVILA-Lite-2B", "--verify", "--quiet"]) == 1
    assert "fault: config.json has another digest" in capsys.readouterr().out


def test_what_is_known_to_be_refused_is_said_before(
    hub: LocalHub, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.repo = "nvidia/NVILA-8B-HD-Video"
    caplog.set_level("INFO")
    assert main(["fetch", "NVILA-8B-HD-Video", "--dry-run"]) == 0
    assert "known to be refused: AutoGaze chooses patches before the tower" in caplog.text


def test_a_path_that_is_not_there_is_no_published_name() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at 'runs/best'.* of that name: nvila fetch runs/best$"):
        find_checkpoint("runs/best")


def test_partial_files_of_others_stay(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.part").write_text("mine")
    (tmp_path / "model" / "config.json.0123456789ab.part").write_text("of a run before")
    run(hub, tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").rglob("*.part")] == ["thesis.part"]


def test_offline_says_what_there_is(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["fetch", "NVILA-Lite-2B"]) == 2
    assert f"HF_HUB_OFFLINE forbids the network; {REPO} is not on this machine" in capsys.readouterr().err
    assert not hub.requests


def test_the_token_is_not_for_a_host_named_in_passing(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    assert main(["fetch", "NVILA-Lite-2B", "--dry-run", "--endpoint", hub.url]) == 0
    assert not [h for _, _, h in hub.requests if "authorization" in h]
