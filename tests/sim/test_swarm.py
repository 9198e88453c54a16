"""Swarms through crashes, splits, loss and hostile peers: nothing forbidden happens, and all agree again.

`-m slow` runs 1,000 seeds; each failure names the command that runs it again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest

from ravnest_p2p.core.election import Election
from ravnest_p2p.core.tickets import TicketBook
from ravnest_p2p.testing.invariants import InvariantError
from ravnest_p2p.testing.scenario import Outcome, Scenario, ScenarioConfig
from ravnest_p2p.testing.strangers import STRANGERS

SAMPLE = range(8)
MANY = range(1000, 2000)
SMALL = range(10_000)
"""Seeds of small swarms; `terms_of` says who is there beside them."""


class AdoptsEqualFence(Election):
    """Broken: a second leader of the same fence is obeyed too."""

    def _judge(self, header, now_s):
        if self.adopted is not None and header.fence == self.adopted.fence and not header.verdict:
            return self._adopt(header, now_s) if header.plan_hash != self.adopted.plan_hash else []
        return super()._judge(header, now_s)


class AnybodyLeads(TicketBook):
    def entitles(self, peer, term):
        return True


class AcceptsAnyLeader(Election):
    """Broken: no ticket is needed to lead."""

    def _new_book(self):
        return AnybodyLeads()


class NeverTakesOver(Election):
    """Broken: nobody plans but the first leader of an epoch."""

    def _end_term(self, now_s):
        return []


class NeverDoubts(Election):
    """Broken: a sound plan is obeyed, whatever it moves."""

    def _judge(self, header, now_s):
        return super()._judge(replace(header, doubt=""), now_s)


def failure(seed: int, peers: int) -> str:
    """Run one seed; empty if all is well."""
    try:
        Scenario(ScenarioConfig(seed, peers)).run()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    return ""


def first_caught(seeds: Iterable[int], peers: int = 60, **broken) -> str:
    """The first invariant that a broken rule violates."""
    for seed in seeds:
        try:
            Scenario(ScenarioConfig(seed, peers), **broken).run()
        except InvariantError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("seed", SAMPLE)
def test_sample(seed):
    outcome = Scenario(ScenarioConfig(seed)).run()
    assert outcome.alive > 180
    assert outcome.effective > 100
    assert outcome.frames > 100
    assert outcome.batches > 2


@pytest.mark.parametrize("peers", [1, 2, 3, 7])
def test_small_swarms(peers):
    for seed in range(10):
        assert Scenario(ScenarioConfig(seed, peers, crashes=0.5, partitions=min(2, peers - 1))).run().alive


def test_the_faults_do_happen():
    """A simulation in which nothing goes wrong proves nothing."""
    text = ""
    for seed in range(5):
        scenario = Scenario(ScenarioConfig(seed, 80), transcript=True)
        scenario.run()
        text += "\n".join(scenario.world.transcript)
    for line in (
        "the network splits into 3",
        "crashes",
        "again after a restart",
        "two plans for",
        "published no plan",
        "was refused;",
        " broke;",
        "by usurper: its author has shown no ticket",
        "by vandal: it names a job twice",
        "by inventor: it assigns 4 peers that are not known",
        "a healthy cluster",
        "by miser: it leaves out",
        "it is not obeyed again",
        "and it is the others' turn",
        "its epoch is over",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("broken", "symptom"),
    [
        ({"election_class": AdoptsEqualFence}, "where it obeyed"),
        ({"election_class": AcceptsAnyLeader}, "who has no ticket"),
        ({"election_class": NeverTakesOver}, "plans: "),
        ({"election_class": NeverDoubts}, "for poacher, a stranger"),
        ({"disk": frozenset({"worker"})}, "went back|where it obeyed"),
        ({"disk": frozenset({"plan"})}, "worker of"),
    ],
    ids=["equal fence", "any leader", "no next term", "no doubt", "plan forgotten", "worker forgets"],
)
def test_broken_rules_are_caught(broken, symptom):
    assert re.search(symptom, first_caught(range(20), **broken))


def test_a_failure_says_how_to_run_it_again():
    message = first_caught(range(20), election_class=AcceptsAnyLeader)
    assert "python -m ravnest_p2p.testing.scenario --seed 0 --peers 60 --transcript" in message


def test_a_seed_is_one_run():
    """Also in another process with another hash seed, where the printed command is run."""
    config = ScenarioConfig(3, 40, crashes=0.3, strangers=STRANGERS[1:3], partitions=1)
    command = Scenario(config).command.split()[1:]
    prints = [
        subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert prints[0] == prints[1]
    assert prints[0].startswith(str(Scenario(config).run()))
    assert isinstance(Scenario(config).run(), Outcome)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_seeds():
    """1,000 seeds of 200 peers, on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        failures = [text for text in pool.map(failure, MANY, [200] * len(MANY), chunksize=10) if text]
    assert not failures, f"{len(failures)} of {len(MANY)} seeds failed:\n" + "\n".join(failures[:10])


def terms_of(seed: int) -> int | str:
    """Terms until most of a small swarm obey one plan; a text where an invariant was broken.

    In turn nobody disturbs it, and each of the strangers. It is the swarm alone that has to agree in three
    terms: a stranger with the lowest tickets takes terms of its own.
    """
    strangers = ((), *((name,) for name in STRANGERS))[seed % (1 + len(STRANGERS))]
    config = ScenarioConfig(seed, 12 + seed % 13, strangers=strangers, partitions=1 + seed % 3)
    try:
        return Scenario(config).run().terms
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"


def agreement(results: Iterable[int | str]) -> tuple[list[str], float]:
    """What went wrong, and the share of runs that came to one plan within three terms."""
    found = list(results)
    failures = [each for each in found if isinstance(each, str)]
    return failures, sum(isinstance(each, int) and each <= 3 for each in found) / len(found)


def test_small_swarms_agree_within_three_terms():
    failures, share = agreement(map(terms_of, range(120)))
    assert not failures, "\n".join(failures[:10])
    assert share >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_small_swarms():
    """No invariant is ever broken, and all but a thousandth agree within three terms."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        failures, share = agreement(pool.map(terms_of, SMALL, chunksize=20))
    assert not failures, f"{len(failures)} of {len(SMALL)} seeds failed:\n" + "\n".join(failures[:10])
    assert share >= 0.999


def test_never_yielding_is_caught(monkeypatch):
    """Broken: after a partition, each side keeps its own cluster of a job for good."""
    monkeypatch.setattr("ravnest_p2p.testing.consent.successor", lambda *_: None)
    assert "plans: " in first_caught(range(40), peers=60)
