"""Whatever τ is wanted and whenever that changes, every rule of the pipeline holds."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ravnest_p2p.core.pipeline.schedule import Backward, Forward, StageSchedule, closed_form
from ravnest_p2p.testing.pipeline_watch import StageWatch

UPDATES = 5


@given(st.integers(0, 1 << 32), st.integers(1, 6))
def test_any_wish_at_any_time_keeps_the_rules(seed: int, m: int) -> None:
    rng = random.Random(seed)
    bound = rng.randint(0, m)
    schedule = StageSchedule(0, 2, bound, m, m * UPDATES, updates_per_round=2)
    watch = StageWatch("a stage", 0, 2, bound, m, m * UPDATES, 2, 3, fixed=False)
    of_batch: dict[int, int] = {}
    returned = 0
    while not schedule.done:
        schedule.wanted = rng.randint(0, bound)
        on_the_way = len(watch.forwarded) - returned
        for _ in range(rng.randint(0, on_the_way)):
            schedule.gradient_arrived(returned)
            watch.gradients.add(returned)
            returned += 1
        op = schedule.next()
        if op is None:
            watch.idle()
            assert on_the_way or returned < len(watch.forwarded) or schedule.in_flight, "it is stuck"
            continue
        watch.started(op)
        schedule.finished(op)
        watch.finished(op)
        if isinstance(op, Forward):
            batch = op.i // m
            tau = of_batch.setdefault(batch, schedule.staleness_of(batch) if batch else 0)
            assert op.version == closed_form(op.i, tau, m).forward
            assert schedule.in_flight <= bound + 1
        elif isinstance(op, Backward):
            assert op.version == closed_form(op.i, 0, m).backward
    watch.ended()
