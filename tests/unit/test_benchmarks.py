"""What benchmarks share: `make bench` runs them all, and what needs namespaces says so before it runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks import averaging, namespaces, pipeline
from benchmarks.averagers.members import Members
from ravnest_p2p.testing.local_swarm import Host
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


class Scripted(Members):
    """Members that answer as they are told, so that no process is begun."""

    def __init__(self, *answers: bool) -> None:
        self._answers, self.begun = list(answers), 0
        super().__init__("hivemind", [4], [(0, 1)] * 2, [Host()] * 2)

    def _start(self) -> None:
        self.begun += 1

    def _kill(self) -> None:
        pass

    def go(self, number: int) -> list[dict[str, Any]]:
        return [{"filled": True}, {"filled": self._answers.pop(0)}]


def test_members_that_find_no_group_begin_anew_and_are_counted() -> None:
    found = Scripted(False, False, True)
    found.fill(0)
    assert (found.groupless, found.begun) == (2, 3)
    with pytest.raises(RuntimeError, match="hivemind: members found no group in 3 tries"):
        Scripted(False, False, False, True).fill(0)
