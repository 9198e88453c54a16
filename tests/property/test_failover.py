"""Any order of events: at most one final action, and always a reason."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ravnest_p2p.core.failover import Break, Done, RunMonitor, Stop
from ravnest_p2p.core.types import Generation, JobPhase, PeerId
from tests.unit.planning_cases import JOB, peers, planned, spec

PLAN = planned(peers(4), {JOB: spec(stages=2, clusters=2)}).jobs[0]
WHO = st.sampled_from([*PLAN.peers, PeerId("stranger")])
PHASES = st.sampled_from(
    [JobPhase.WAITING, JobPhase.RUNNING, JobPhase.RUNNING, JobPhase.DONE, JobPhase.BROKEN]
)
GENERATIONS = st.sampled_from([PLAN.generation] * 5 + [None, Generation(0, 0, "x"), Generation(9, 0, "x")])
EVENTS = st.one_of(
    st.tuples(st.just("worker"), PHASES),
    st.tuples(st.just("heard"), WHO, GENERATIONS, PHASES),
    st.tuples(st.just("gone"), WHO),
    st.tuples(st.just("tick"), st.floats(0, 50)),
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_at_most_one_final_action(events: list[tuple[object, ...]]) -> None:
    it = RunMonitor(own=PLAN.peers[0], plan=PLAN, now_s=0.0, start_up_s=60.0, silence_s=20.0)
    now_s = 0.0
    actions: list[object] = []
    for event in events:
        match event:
            case ("worker", phase):
                action = it.worker_state(phase, "")  # type: ignore[arg-type]
            case ("heard", who, generation, phase):
                action = it.member_heard(who, generation, phase, "", now_s)  # type: ignore[arg-type]
            case ("gone", who):
                action = it.member_gone(who, "", now_s)  # type: ignore[arg-type]
            case (_, seconds):
                now_s += float(seconds)  # type: ignore[arg-type]
                action = it.tick(now_s)
        if action is not None:
            actions.append(action)
    assert len(actions) <= 1
    assert it.outcome == (actions[0] if actions else None)
    for action in actions:
        assert isinstance(action, (Break, Stop, Done))
        if not isinstance(action, Done):
            assert action.reason
            assert action.who in PLAN.peers
    assert it.tick(now_s + 1000.0) is None or not actions


@given(st.lists(st.tuples(WHO, PHASES), max_size=10))
def test_no_run_waits_for_ever(heard: list[tuple[PeerId, JobPhase]]) -> None:
    it = RunMonitor(own=PLAN.peers[0], plan=PLAN, now_s=0.0, start_up_s=60.0, silence_s=20.0)
    it.worker_state(JobPhase.DONE)
    for who, phase in heard:
        it.member_heard(who, PLAN.generation, phase, "", 1.0)
    it.tick(61.0)
    assert it.outcome is not None
