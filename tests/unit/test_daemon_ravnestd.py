"""The daemon's command line: settings become a configuration, or one clear line of error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ravnest_p2p.cli import ravnestd
from ravnest_p2p.core.errors import ConfigError

PEER = "/ip4/203.0.113.5/tcp/4001/p2p/12D3KooWSvz79aa6qHKskr7WeiQryFWshC8t3zPyKQRqfVDaKT7P"


def configured(*arguments: str) -> object:
    return ravnestd.configured(ravnestd.parser().parse_args(arguments))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512 MB", 512 * 10**6),
        ("1.5g", 1_500_000_000),
        ("1000000", 1_000_000),
        ("2TiB", 2 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert ravnestd.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "four", "4XB", "-1GB", "GB", "1e9"])
def test_what_is_no_size_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="4GB"):
        ravnestd.parse_size(text)


def test_defaults_need_no_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAVNEST_HOME", str(tmp_path / "home"))
    config = configured()
    assert config.home == tmp_path / "home"
    assert config.identity == tmp_path / "home" / "identity.key"
    assert config.lend
    assert any("/tcp/" in address for address in config.listen)
    assert any("/quic-v1" in address for address in config.listen)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bootstrap", "203.0.113.5:4001"],
        ["--bootstrap", "/ip4/203.0.113.5/tcp/4001"],
        ["--listen", "/ip4/300.0.0.1/tcp/0"],
        ["--listen", PEER],
        ["--threads", "0"],
        ["--epoch", "1"],
        ["--memory", "lots"],
        ["--device", "tpu"],
        ["--device", "cpu:1"],
        ["--device", "cuda:99"],
        ["--microbatch-flops", "0"],
    ],
)
def test_nonsense_is_the_users_to_mend(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ravnestd.main(arguments) == ravnestd.EXIT_USER_FAULT
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ravnestd: ")


def test_help_teaches_how_to_join(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ravnestd.main(["--help"])
    text = capsys.readouterr().out
    assert "--bootstrap /ip4/" in text
    assert "ravnest submit" in text


def test_too_little_memory_of_a_gpu_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ravnest_p2p.training.choose_device", lambda name: torch.device("cuda"))
    config = ravnestd.configured(ravnestd.parser().parse_args(["--memory", "100MB"]))
    with pytest.raises(ConfigError, match="lend at least 300 MiB of cuda, by --memory: 95 MiB hold no"):
        ravnestd.run(config)
