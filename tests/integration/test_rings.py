"""Averaging between real processes over real p2pd: a member is shot, and the rest end the round at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ravnest_p2p.training import averaging

MEMBERS, ELEMENTS = 3, 24_000_000
CHUNKS = averaging.chunk_count(ELEMENTS, MEMBERS)
ROUND_S = 30.0

ENDS_S = 5.0
VICTIM = 1
WHOLE, REST = (1 + 2 + 4) / 3, (1 + 4) / 2

pytestmark = pytest.mark.timeout(120)


class Member:
    """A process of `ravnest_p2p.testing.ring_member`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ravnest_p2p.testing.ring_member"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def say(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def members() -> Iterator[list[Member]]:
    """Connected, and ready for a round."""
    with ExitStack() as stack:
        found = [stack.enter_context(Member()) for _ in range(MEMBERS)]
        for cluster, one in enumerate(found):
            one.say(cluster=cluster, stage=0, cuts=[[0, 1]] * MEMBERS, layers=[ELEMENTS], address="127.0.0.1")
        peers = [{**one.hear(), "cluster": cluster, "stage": 0} for cluster, one in enumerate(found)]
        for one in found:
            one.say(peers=peers)
        for one in found:
            one.hear()
        for one in found:
            one.say(connected=True)
        for one in found:
            assert one.hear()["ready"]
        yield found


def begin(members: list[Member], number: int, **of_victim: int) -> None:
    """All average from now on."""
    for one in members:
        one.say(go=number, **(of_victim if one is members[VICTIM] else {}))
    for one in members:
        assert one.hear()["filled"]
    for one in members:
        one.say(now=True)


def test_a_member_is_shot_in_a_round_and_the_rest_end_it(members: list[Member]) -> None:
    begin(members, 0)
    found = [one.hear() for one in members]
    assert len({one["hash"] for one in found}) == 1
    assert found[0]["values"] == pytest.approx([WHOLE], abs=1e-3)

    begin(members, 1, dies_after=CHUNKS // 2)
    members[VICTIM].process.wait(ROUND_S)
    killed_s = time.monotonic()
    found = [one.hear() for one in members if one is not members[VICTIM]]
    assert time.monotonic() - killed_s <= ENDS_S
    assert len({one["hash"] for one in found}) == 1
    assert [len(one["lost"]) for one in found] == [1, 1]
    assert found[0]["values"] == pytest.approx([WHOLE, REST], abs=1e-3), "in the middle of the round"
