"""The simulator's own parts: time, network, directory, planner, and an observer that can object."""

from random import Random

import pytest

from ravnest_p2p.core.types import Fence, Generation, JobId, JobPhase, JobPlan, PeerId, Plan
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.directory import SimulatedDirectory
from ravnest_p2p.testing.invariants import InvariantError, Invariants
from ravnest_p2p.testing.network import SimulatedNetwork
from ravnest_p2p.testing.planner import plan_pairs, stays, structural_fault


def test_clock_calls_in_order_of_time_then_of_setting():
    clock, calls = VirtualClock(10), []
    clock.after(2, calls.append, "third")
    clock.at(5, calls.append, "first")
    clock.at(10, calls.append, "second")
    clock.after(9, calls.append, "never")
    clock.run_until(15)
    assert calls == ["first", "second", "third"]
    assert (clock.now_s, clock.events) == (15, 3)


def test_network_splits_even_what_is_under_way():
    clock, heard = VirtualClock(), []
    network = SimulatedNetwork(clock, Random(0))
    network.attach("a", lambda sender, message: heard.append((sender, message)))
    network.send("b", "a", 1)
    network.partition(["b"])
    clock.run_until(1)
    network.send("b", "a", 2)
    clock.run_until(2)
    network.heal()
    network.send("b", "a", 3)
    clock.run_until(3)
    network.send("b", "a", 4)
    network.detach("a")
    clock.run_until(4)
    assert heard == [("b", 3)]


def test_network_loses_its_share():
    clock, heard = VirtualClock(), []
    network = SimulatedNetwork(clock, Random(0), loss=0.3)
    network.attach("a", lambda sender, message: heard.append(message))
    for number in range(1000):
        network.send("b", "a", number)
    clock.run_until(1)
    assert 600 < len(heard) < 800


def test_directory_is_late_split_merged_and_expires():
    clock = VirtualClock()
    network = SimulatedNetwork(clock, Random(0))
    directory = SimulatedDirectory(clock, Random(0), network.side, loss=0, short_read=0)
    directory.write("a", "key", "a", "old", ttl_s=30)
    assert directory.snapshot("b", "key") == {}
    clock.run_until(2)
    assert [record.value for record in directory.news("b", "key")] == ["old"]
    assert directory.news("b", "key") == []

    network.partition(["b"])
    directory.split(2)
    directory.write("a", "key", "a", "new", ttl_s=30)
    directory.write("b", "key", "b", "other side", ttl_s=30)
    clock.run_until(4)
    assert directory.snapshot("a", "key") == {"a": "new"}
    assert directory.snapshot("b", "key") == {"a": "old", "b": "other side"}

    network.heal()
    directory.heal()
    assert directory.snapshot("b", "key") == {"a": "new", "b": "other side"}
    assert {record.value for record in directory.news("b", "key")} == {"new", "other side"}
    clock.run_until(40)
    assert directory.snapshot("b", "key") == {}
    directory.forget_reader("b")
    assert directory.news("b", "key") == []


def test_planner_keeps_what_runs_and_pairs_the_rest():
    first = plan_pairs("s", Fence(1, 0), "a", "abcd", None, {}, {})
    assert [job.job for job in first.jobs] == ["job-0", "job-1"]
    lost, kept = first.jobs
    second = plan_pairs(
        "s", Fence(1, 1), "b", {*kept.peers, lost.peers[1], "e"}, first, {"job-1": kept}, {"job-0": 4}
    )
    assert second.jobs[0] == kept
    formed = second.jobs[1]
    assert (formed.job, formed.generation[:2], formed.batches_done) == ("job-0", (1, 1), 4)
    assert set(formed.peers) == {lost.peers[1], "e"}
    assert not structural_fault(second)


def test_what_has_effect_stays_before_what_only_lives_and_that_before_the_unheard():
    plan = plan_pairs("s", Fence(1, 0), "a", "abcd", None, {}, {})
    one, two = plan.jobs
    idle = dict.fromkeys("abcd", (None, JobPhase.WAITING))
    unheard = {job.job: idle for job in plan.jobs}
    running = {job.job: job for job in plan.jobs}
    assert stays(running, unheard, "abcd", ()) == running
    assert stays(running, unheard, "abc", ()) != running, "a member does not answer"
    assert stays(running, unheard, "abcd", {one.generation}) == {two.job: two}

    rival = JobPlan(JobId("rival"), Generation(1, 5, "higher"), one.clusters)
    at_work = dict.fromkeys(one.peers, (one.generation, JobPhase.RUNNING))
    half = {one.peers[0]: (rival.generation, JobPhase.RUNNING)}
    both = {one.job: one, rival.job: rival}
    assert stays(both, {one.job: at_work, rival.job: half}, "abcd", ()) == {one.job: one}
    assert stays(both, {one.job: idle, rival.job: half}, "abcd", ()) == {rival.job: rival}


def job(generation: Generation, *peers: str) -> JobPlan:
    formed = plan_pairs("s", Fence(*generation[:2]), peers[0], peers, None, {}, {}).jobs[0]
    return JobPlan(JobId("job-0"), generation, formed.clusters)


def plan(fence: Fence, leader: str, *jobs: JobPlan) -> Plan:
    return Plan("s", fence, PeerId(leader), 0, "", "", jobs)


@pytest.fixture
def watch() -> Invariants:
    observer = Invariants(strangers={"thief"})
    for leader in ("a", "b", "thief"):
        observer.ticket(1, leader)
    observer.formed("a", job(Generation(1, 0, "x"), "p", "q"))
    return observer


@pytest.mark.parametrize(
    "deed",
    [
        lambda watch: watch.adopted("p", plan(Fence(1, 1), "b"), "other"),
        lambda watch: watch.adopted("p", plan(Fence(1, 0), "a"), "hash"),
        lambda watch: watch.adopted("p", plan(Fence(2, 0), "a"), "hash"),
        lambda watch: watch.formed("b", job(Generation(1, 0, "x"), "p", "q")),
        lambda watch: watch.obeys("stranger", Generation(1, 0, "x")),
        lambda watch: watch.obeys("p", Generation(0, 5, "x")),
        lambda watch: watch.obeys("p", Generation(1, 0, "y")),
        lambda watch: watch.frame("p", "q", Generation(1, 0, "x")),
        lambda watch: watch.frame("stranger", "p", Generation(1, 0, "x")),
        lambda watch: watch.applied("p", (0, 1, 1)),
        lambda watch: watch.applied("p", (0, 2)),
        lambda watch: watch.versions("p", "forward 3", 1, 0),
    ],
    ids=[
        "second leader of a fence",
        "lower fence",
        "leader without ticket",
        "generation under two leaders",
        "obeying as a stranger",
        "older generation",
        "unknown generation",
        "frame taken by one who does not obey",
        "frame of a stranger",
        "batch twice",
        "batch left out",
        "wrong version",
    ],
)
def test_observer_objects(watch, deed):
    watch.adopted("p", plan(Fence(1, 1), "a"), "hash")
    watch.obeys("p", Generation(1, 0, "x"))
    with pytest.raises(InvariantError):
        deed(watch)


def test_observer_counts_a_cluster_only_when_all_its_members_obey(watch):
    watch.obeys("p", Generation(1, 0, "x"))
    assert watch.effective == 0
    watch.obeys("q", Generation(1, 0, "x"))
    assert watch.effective == 1


def test_observer_objects_to_a_theft_but_not_to_a_move_within_the_job(watch):
    running, rival = job(Generation(1, 0, "x"), "p", "q"), job(Generation(1, 2, "y"), "r", "s")
    for peer in ("p", "q"):
        watch.obeys(peer, running.generation)
    watch.adopted("p", plan(Fence(1, 1), "thief", running), "keeps it")
    watch.formed("thief", rival)
    with pytest.raises(InvariantError, match="has effect, for thief"):
        watch.adopted("p", plan(Fence(1, 2), "thief", rival), "moves it to a cluster without effect")
    for peer in ("r", "s"):
        watch.obeys(peer, rival.generation)
    watch.adopted("p", plan(Fence(1, 2), "thief", rival), "moves it to a cluster with effect")
