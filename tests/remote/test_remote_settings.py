"""What the parameters of the backend remote may be, and where its key comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError
from nvila_ros.remote.settings import KEY_VARIABLE, remote_settings


def config(**values: Any) -> NodeConfig:
    return NodeConfig(**{"backend": "remote", "remote_url": "http://gpu:8000/v1", **values})


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://gpu:8000", "http://gpu:8000/v1"),
        ("http://gpu:8000/v1/", "http://gpu:8000/v1"),
        ("https://api.example.com/team/v1", "https://api.example.com/team/v1"),
        ("http://[::1]:30000", "http://[::1]:30000/v1"),
    ],
)
def test_addresses_become_the_base_of_an_api(url: str, base: str) -> None:
    assert remote_settings(config(remote_url=url)).url == base


@pytest.mark.parametrize(
    "url",
    [
        "gpu:8000",
        "ftp://gpu/v1",
        "http://",
        "http://gpu:99999/v1",
        "http://gpu /v1",
        "http://gpu/v1?x=1",
        "http://g\npu",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="remote_url must be like"):
        remote_settings(config(remote_url=url))


def test_a_password_in_the_address_is_refused_since_all_can_read_parameters() -> None:
    with pytest.raises(ConfigError, match="remote_key_file"):
        remote_settings(config(remote_url="http://me:secret@gpu/v1"))


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv(KEY_VARIABLE, "from-environment")

    assert remote_settings(config()).key == "from-environment"
    assert remote_settings(config(remote_key_file=str(tmp_path / "key"))).key == "from-file"


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff\xfe"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)

    with pytest.raises(ConfigError, match="remote_key_file"):
        remote_settings(config(remote_key_file=str(tmp_path / "key")))


@pytest.mark.parametrize("values", [{"precision": "w4"}, {"encode_hz": 2.0}, {"recipe": "nvila-tiny.cpu"}])
def test_what_the_server_decides_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the server's to decide"):
        remote_settings(config(**values))


def test_the_backend_and_the_address_go_together() -> None:
    with pytest.raises(ConfigError, match="remote_url"):
        NodeConfig(backend="remote")
    with pytest.raises(ConfigError, match="backend remote alone"):
        NodeConfig(remote_url="http://gpu:8000")
