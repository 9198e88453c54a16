"""The benchmark of κ: its rounds, what it counts, its plots."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from benchmarks import kappa_runs as runs
from benchmarks.kappa_plots import Line, draw, svg_of
from benchmarks.kappa_runs import ADAPTIVE, Outcome, Run, outcome


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.setting, "HELD_OUT_WINDOWS", 64)
    monkeypatch.setattr(runs.setting, "WARMUP", 1)


def made(**other: object) -> Outcome:
    settings = {"clusters": 2, "kappa": 2, "updates": 3, "seed": 0} | other
    return outcome(Run(**settings), None)  # type: ignore[arg-type]


def test_rounds_are_cut_at_the_end_and_bytes_are_those_of_the_payloads() -> None:
    exact, coded = made(), made(codec="int8")
    assert exact.kappas == coded.kappas == [2, 1]
    assert exact.sent / coded.sent == pytest.approx(3.97, abs=0.02)
    assert exact.sent == pytest.approx(2 * 469_152 * 4, abs=100)
    assert coded.held_out == pytest.approx(exact.held_out, rel=0.01)
    assert all(0 < apart < 0.1 for apart in exact.apart)
    assert made(clusters=1).sent == 0
    assert made(codec="sparse", ahead=True, last="int4").sent < coded.sent / 3
    assert made(kappa=ADAPTIVE).kappas == [3]


def test_a_mean_that_is_taken_in_late_is_taken_in_as_a_difference() -> None:
    run = Run(2, 2, 4, 0, overlap=1)
    clusters = [runs._trainer(run) for _ in range(2)]
    averager, name = runs._Averager(run, clusters), next(iter(clusters[0].params))
    first, second = (cluster.params[name].detach() for cluster in clusters)
    before = first.clone()
    second += 1.0
    _, sent = averager.average(last=False)
    assert sent == pytest.approx(2 * 469_152 * 4)
    first += 0.25
    averager.take_in()
    averager.take_in()
    assert first.sub(before).mean() == pytest.approx(0.75)
    assert second.sub(before).mean() == pytest.approx(0.5)
    averager.average(last=True)
    assert torch.equal(first, second)
    assert made(overlap=2).sent == sent


def test_a_finished_run_is_read_again(tmp_path: object) -> None:
    first = outcome(Run(1, 2, 2, 0), tmp_path)  # type: ignore[arg-type]
    assert outcome(Run(1, 2, 2, 0), tmp_path) == first  # type: ignore[arg-type]


def test_plots_are_whole_documents(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lines = [Line("a & b", [(1, 0.5), (5, 2.0), (80, 9.0)]), Line("alone", [(12, 1.0)], joined=False)]
    tree = ElementTree.fromstring(svg_of("title", "κ", "%", lines))
    assert len(tree.findall(".//{*}circle")) == 4
    assert len(tree.findall(".//{*}polyline")) == 1
    rows = {
        f"{c} clusters: {n}": {"times fewer": t, "gap %": -0.1}
        for c in (2, 4)
        for n, t in (("none", 1), ("a", 7))
    }
    overlaps = {f"{c} clusters: κ = 10, overlap {o}": {"gap %": o / 10} for c in (2, 4) for o in (0, 5, 10)}
    lost = {"mean": 6.0, "worst": 12.0}
    plans = {
        f"gpt, {n} peers, seed {n}": {"bandwidth wrong, lost %": lost, "all rates wrong, lost %": lost}
        for n in (20, 40)
    }
    draw({"compression": rows, "overlap": overlaps, "planner": plans, "outer": {}}, tmp_path)
    drawn = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(drawn) == ["kappa-compression", "kappa-overlap", "kappa-planner"]
    assert len(ElementTree.fromstring(drawn["kappa-overlap"]).findall(".//{*}polyline")) == 2
    assert ">gpt, 20 peers<" in drawn["kappa-planner"]
