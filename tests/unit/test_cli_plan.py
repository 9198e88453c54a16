"""`ravnest plan` answers people and machines, writes files, and says what is wrong with one."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ravnest_p2p.cli.ravnest import main
from ravnest_p2p.core.planning.instance import parse_problem
from ravnest_p2p.core.planning.layout import parse_layout
from ravnest_p2p.core.planning.objective import score
from ravnest_p2p.testing.planning_problems import instance


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    made = instance("gpt1.3b", 24, 1)
    made["peers"][0]["id"] = "<b>&[red]loud[/red]"
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(made))
    return path


def plan(*arguments: object) -> int:
    return main(["plan", *map(str, arguments), "--budget", "quick"])


def test_people_get_a_table_and_reasons(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(problem_file, "--explain") == 0
    out = capsys.readouterr().out
    for word in ("effective samples/s", "limited by", "averaging takes", "one more peer", "layers: peer"):
        assert word in out


def test_machines_get_json_and_the_plan(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(problem_file, "--json", "--explain") == 0
    found = json.loads(capsys.readouterr().out)
    problem = parse_problem(json.loads(problem_file.read_text()))
    assert score(problem, parse_layout(found["plan"])).objective == pytest.approx(found["objective"])
    assert len(found["why"]) == found["clusters"]
    assert found["primaries"] + found["standbys"] + found["idle"] == 24


def test_files_are_written(problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, drawing = tmp_path / "plan.json", tmp_path / "plan.svg"
    assert plan(problem_file, "--out", out, "--svg", drawing, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "plan" not in found
    layout = parse_layout(json.loads(out.read_text()))
    assert len(layout.clusters) == found["clusters"]
    titles = [e.text or "" for e in ET.fromstring(drawing.read_text()).iter() if e.tag.endswith("title")]
    assert len(titles) == found["primaries"]
    assert plan(problem_file, "--start", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["objective"] >= 0.999 * found["objective"]


def test_the_same_seed_gives_the_same_plan(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in (3, 3, 4):
        assert plan(problem_file, "--json", "--seed", seed) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "no object"),
        ('{"hyper": {}, "hyper": {}}', "twice"),
        ("{}", "hyper is missing"),
        (json.dumps({**instance("gpt350m", 3, 1), "peers": [7]}), "peers[0]"),
    ],
)
def test_a_bad_file_is_the_users_fault_and_named(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert plan(path) == 2
    assert says in capsys.readouterr().err


def test_a_missing_file_and_an_unwritable_one(
    problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path / "none.json") == 2
    assert plan(problem_file, "--out", tmp_path / "no" / "folder.json") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_too_little_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: dict[str, Any] = instance("gpt6.7b", 3, 1)
    path = tmp_path / "poor.json"
    path.write_text(json.dumps(made))
    assert plan(path) == 2
    assert "no cluster" in capsys.readouterr().err
