"""What benchmarks share: `make bench` runs them all, and what needs namespaces says so before it runs."""

from __future__ import annotations

import re

import pytest

from benchmarks import averaging, namespaces, pipeline
from tests.unit.doc_pages import code, rows_below, text_of

ELSEWHERE = {"mixed_devices"}
"""Needs a CUDA device."""


def test_all_that_the_design_lists_are_run_by_make_bench() -> None:
    (line,) = re.findall(r"^BENCH \?= (.*)$", text_of("Makefile"), re.MULTILINE)
    listed = {code(row[0])[0] for row in rows_below("docs/design.md", "| name | question | needs |")}
    assert set(line.split()) == listed - ELSEWHERE


@pytest.mark.parametrize("benchmark", [averaging, pipeline], ids=lambda module: module.__name__)
def test_without_root_nothing_runs_that_needs_namespaces(
    benchmark: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(namespaces.sys, "platform", "linux")
    for chosen in ([], ["--section", benchmark.IN_NAMESPACES[0]]):  # type: ignore[attr-defined]
        with pytest.raises(SystemExit) as ended:
            benchmark.main(chosen)  # type: ignore[attr-defined]
        assert ended.value.code == 2
        assert "network namespaces need root, and so do the sections" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", [averaging, pipeline], ids=lambda module: module.__name__)
def test_without_root_the_other_sections_run(
    benchmark: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(benchmark, "SECTIONS", {"loopback": lambda *_: ({}, [])})
    monkeypatch.setattr(pipeline, "ROUNDS", {"loopback": 1})
    assert benchmark.main(["--section", "loopback", "--json"]) == 0  # type: ignore[attr-defined]
    assert '"loopback": {}' in capsys.readouterr().out


def test_what_a_command_says_of_its_failure_is_passed_on() -> None:
    with pytest.raises(OSError, match=r"ls: .*no-such-file"):
        namespaces.run("ls", "/no-such-file")
