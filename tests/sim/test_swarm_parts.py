"""The simulator's own parts: time, network, directory, planner, and an observer that can object."""

from random import Random

import pytest

from ravnest_p2p.core.types import Fence, Generation, JobId, JobPlan
from ravnest_p2p.testing.clock import VirtualClock
from ravnest_p2p.testing.directory import SimulatedDirectory
from ravnest_p2p.testing.invariants import InvariantError, Invariants
from ravnest_p2p.testing.network import SimulatedNetwork
from ravnest_p2p.testing.planner import Beat, plan_pairs, structural_fault


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
    beats = {peer: Beat(None) for peer in ("a", "b", "c", "d")}
    first = plan_pairs("s", Fence(1, 0), "a", beats, None, (), {})
    assert [job.job for job in first.jobs] == ["job-0", "job-1"]
    running = {peer: Beat(job) for job in first.jobs for peer in job.peers}
    lost = first.jobs[0].peers[0]
    survivors = {peer: beat for peer, beat in running.items() if peer != lost} | {"e": Beat(None)}
    second = plan_pairs("s", Fence(1, 1), "b", survivors, first, (), {"job-0": 4})
    kept, formed = second.jobs
    assert kept == first.jobs[1]
    assert (formed.job, formed.generation[:2], formed.batches_done) == ("job-0", (1, 1), 4)
    assert set(formed.peers) == {first.jobs[0].peers[1], "e"}
    again = plan_pairs("s", Fence(1, 2), "b", survivors, second, {kept.generation}, {})
    assert kept not in again.jobs
    assert not structural_fault(second)


def job(generation: Generation, *peers: str) -> JobPlan:
    beats = {peer: Beat(None) for peer in peers}
    formed = plan_pairs("s", Fence(*generation[:2]), peers[0], beats, None, (), {}).jobs[0]
    return JobPlan(JobId("job-0"), generation, formed.clusters)


@pytest.fixture
def watch() -> Invariants:
    observer = Invariants()
    for leader in ("a", "b"):
        observer.ticket(1, leader)
    observer.formed("a", job(Generation(1, 0, "x"), "p", "q"))
    return observer


@pytest.mark.parametrize(
    "deed",
    [
        lambda watch: watch.adopted("p", Fence(1, 1), "b", "other"),
        lambda watch: watch.adopted("p", Fence(1, 0), "a", "hash"),
        lambda watch: watch.adopted("p", Fence(2, 0), "a", "hash"),
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
    watch.adopted("p", Fence(1, 1), "a", "hash")
    watch.obeys("p", Generation(1, 0, "x"))
    with pytest.raises(InvariantError):
        deed(watch)


def test_observer_counts_a_cluster_only_when_all_its_members_obey(watch):
    watch.obeys("p", Generation(1, 0, "x"))
    assert watch.effective == 0
    watch.obeys("q", Generation(1, 0, "x"))
    assert watch.effective == 1
