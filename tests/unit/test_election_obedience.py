"""A worker obeys one generation; only a higher fence replaces it."""

import pytest

from ravnest_p2p.core.errors import StaleGenerationError
from ravnest_p2p.core.obedience import Obedience
from ravnest_p2p.core.types import Fence, Generation


def test_only_a_higher_fence_replaces():
    worker = Obedience()
    first = Generation(3, 1, "x")
    assert worker.obey(first)
    assert worker.obey(first)
    assert not worker.obey(Generation(3, 1, "y"))
    assert not worker.obey(Generation(3, 0, "z"))
    assert not worker.obey(Generation(2, 9, "z"))
    assert worker.generation == first
    assert worker.obey(Generation(3, 2, "a"))
    assert worker.floor == Fence(3, 2)


def test_messages_of_another_generation_are_refused():
    worker = Obedience()
    with pytest.raises(StaleGenerationError):
        worker.check(Generation(1, 0, "x"))
    worker.obey(Generation(1, 0, "x"))
    worker.check(Generation(1, 0, "x"))
    with pytest.raises(StaleGenerationError):
        worker.check(Generation(1, 0, "y"))


def test_stopping_keeps_the_floor():
    worker = Obedience()
    worker.obey(Generation(5, 0, "x"))
    worker.stop()
    assert worker.generation is None
    assert not worker.obey(Generation(5, 0, "x"))
    assert worker.obey(Generation(5, 1, "x"))


def test_a_restarted_worker_has_lost_its_state():
    worker = Obedience(floor=Fence(5, 0))
    assert not worker.obey(Generation(5, 0, "x"))
    assert worker.obey(Generation(6, 0, "x"))
