"""The tables of the design are those of the code.

A table below `<!-- checked: NAME -->` is compared with the code by the test of that name.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from ravnest_p2p.core import ballot, failover, membership
from ravnest_p2p.core.pipeline import schedule
from ravnest_p2p.core.types import Generation, JobPhase
from ravnest_p2p.daemon import peer_messages
from ravnest_p2p.network import blob_exchange, frames, gateway, probes, records, records_keys, rpc
from ravnest_p2p.network.links_hello import protocol_of
from tests.unit.doc_pages import amount, checked, code, head, table
from tests.unit.planning_cases import JOB, peers, planned, spec


def transitions(page: str, name: str, cell_of: Callable[[Any, Any], str], states: Any, events: Any) -> None:
    assert head(page, name)[1:] == [event.name.lower() for event in events]
    rows = {row[0]: row[1:] for row in table(page, name)}
    assert rows == {state.value: [cell_of(state, event) for event in events] for state in states}


def test_membership_table() -> None:
    def cell(state: membership.PeerState, sign: membership.Sign) -> str:
        new = membership.TRANSITIONS.get((state, sign))
        return "–" if new is None else new.value

    transitions("docs/design.md", "membership", cell, membership.PeerState, membership.Sign)


def test_election_table() -> None:
    def cell(phase: ballot.Phase, turn: ballot.Turn) -> str:
        if (phase, turn) not in ballot.TRANSITIONS:
            return "–"
        new, terms = ballot.TRANSITIONS[phase, turn]
        return f"{new.value} +{terms}" if terms else new.value

    transitions("docs/design.md", "election", cell, ballot.Phase, ballot.Turn)


def test_phases_of_a_job() -> None:
    assert [row[0] for row in table("docs/design.md", "phases")] == [phase.value for phase in JobPhase]


def test_order_of_a_stages_operations() -> None:
    tree = ast.parse(Path(schedule.__file__).read_text())
    (policy,) = [n for n in ast.walk(tree) if isinstance(n, ast.BoolOp) and len(n.values) == 7]
    asked = [
        ast.unparse(value).removeprefix("self._").split("_")[0].removesuffix("()") for value in policy.values
    ]
    assert [row[1].lower() for row in table("docs/design.md", "schedule")] == asked
    assert {row[1] for row in table("docs/design.md", "schedule")} == {
        op.__name__ for op in get_args(schedule.Op)
    }


def test_timetable() -> None:
    """The picture, stage by stage: every operation in it is the one that the schedule gives."""
    shown = checked("docs/design.md", "timetable").splitlines()[1:4]
    for stage, line in enumerate(shown):
        picture = [cell for cell in line.split()[2:] if cell != "."]
        plan = schedule.StageSchedule(stage, 3, 2 - stage, 4, 4 * 8)
        taken: list[str] = []
        mark = ""
        sent = 0
        while len(taken) < len(picture):
            op = plan.next()
            if op is None:
                wanted = picture[len(taken)].lstrip("^|")
                if wanted[0] == "B":
                    plan.gradient_arrived(int(wanted[1:]))
                else:
                    plan.activation_arrived(sent)
                    sent += 1
                continue
            plan.finished(op)
            match op:
                case schedule.Forward(i=i, speculative=early):
                    taken.append(f"{mark}{'f' if early else 'F'}{i}")
                case schedule.Backward(i=i):
                    taken.append(f"{mark}B{i}")
            mark = {schedule.Speculate: "^", schedule.Step: "|"}.get(type(op), "")
        assert taken == picture


def test_versions() -> None:
    rows = {row[0]: [int(cell) for cell in row[1:]] for row in table("docs/design.md", "versions")}
    for name, versions in rows.items():
        tau = int(name.rpartition(" ")[2]) if "τ" in name else 0
        for i, version in enumerate(versions):
            form = schedule.closed_form(i, tau, 4)
            assert version == (form.forward if "τ" in name else form.backward), name


PLAN = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]
OWN, MATE, *_ = PLAN.peers
HERE = PLAN.generation


def every_member_done(monitor: failover.RunMonitor) -> failover.Action | None:
    for mate in PLAN.peers[1:]:
        assert monitor.member_heard(mate, HERE, JobPhase.DONE, "", 11.0) is None
    return monitor.worker_state(JobPhase.DONE)


def one_silent(monitor: failover.RunMonitor) -> failover.Action | None:
    for mate in PLAN.peers[1:]:
        monitor.member_heard(mate, HERE, JobPhase.RUNNING, "", 11.0)
    monitor.worker_state(JobPhase.RUNNING)
    return monitor.tick(60.0)


EVENTS: dict[str, Callable[[failover.RunMonitor], failover.Action | None]] = {
    "own worker failed": lambda m: m.worker_state(JobPhase.FAILED, "x"),
    "a member reports this generation broken": lambda m: m.member_heard(
        MATE, HERE, JobPhase.BROKEN, "x", 11.0
    ),
    "a member is gone before it was done": lambda m: m.member_gone(MATE, "x", 11.0),
    "a member was not heard running in time": lambda m: m.tick(200.0),
    "a running member was silent for too long": one_silent,
    "a member obeys another generation of the same fence": lambda m: m.member_heard(
        MATE, HERE._replace(tag="other"), JobPhase.RUNNING, "", 11.0
    ),
    "a member obeys a higher generation": lambda m: m.member_heard(
        MATE, Generation(HERE.epoch, HERE.term + 1, "x"), JobPhase.RUNNING, "", 11.0
    ),
    "every member is done": every_member_done,
}


def test_failover_table() -> None:
    rows = table("docs/design.md", "failover")
    assert [row[0] for row in rows] == list(EVENTS)
    for event, action in rows:
        monitor = failover.RunMonitor(own=OWN, plan=PLAN, now_s=10.0, start_up_s=120.0, silence_s=30.0)
        assert type(EVENTS[event](monitor)).__name__ == action, event


def test_records_table() -> None:
    keys = {
        "capability": "peers/<shard>",
        "job": records_keys.jobs_key("<swarm>").rpartition("/")[2],
        "cancel": records_keys.cancels_key("<swarm>").rpartition("/")[2],
        "ticket": "tickets/<epoch>",
        "plan": "plan/<epoch>",
        "provider": "blob/<hash>",
    }
    kinds = {kind.KIND: kind for kind in get_args(records.Record)}
    rows = {row[0]: row for row in table("docs/design.md", "records")}
    assert rows.keys() == kinds.keys()
    for kind, (_, key, _, largest, life) in rows.items():
        assert code(key) == [f"{records_keys.key_prefix('<swarm>')}/{keys[kind]}"]
        assert (amount(largest), amount(life)) == (kinds[kind].MAX_BYTES, kinds[kind].MAX_TTL_S), kind
    made = [records_keys.peers_key("s", 1), records_keys.tickets_key("s", 1), records_keys.plan_key("s", 1)]
    assert [key.split("/")[3] for key in made] == ["peers", "tickets", "plan"]
    assert records_keys.blob_key("s", "00").split("/")[3] == "blob"  # type: ignore[arg-type]


def test_protocols_and_their_messages() -> None:
    ids = [
        gateway.PROTOCOL,
        f"{rpc._PREFIX}<name>",
        blob_exchange.PROTOCOL,
        probes.PROTOCOL,
        protocol_of("<nonce>"),
    ]
    assert [code(row[0])[0] for row in table("docs/design.md", "protocols")] == ids
    requests = {kind.model_fields["op"].default for kind in get_args(gateway.Request)}
    assert set(code(checked("docs/design.md", "gateway"))) == requests
    assert code(checked("docs/design.md", "frames")) == [kind.name for kind in frames.FrameKind]
    m = peer_messages
    calls = [m.OVERVIEW, m.PLAN, m.REPLAN, m.KEEP, m.LOGS, m.TRACE, m.BALLOT]
    assert [code(row[0])[0] for row in table("docs/design.md", "calls")] == calls


def test_limits_are_the_codes() -> None:
    for name, value, _ in table("docs/design.md", "limits"):
        parts = code(name)[0].split(".")
        depth = next(n for n in range(len(parts), 0, -1) if parts[n - 1].islower())
        found: Any = import_module(".".join(["ravnest_p2p", *parts[:depth]]))
        for part in parts[depth:]:
            found = getattr(found, part)
        assert amount(value) == found, name
