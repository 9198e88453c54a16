"""Rounds of differences: the same bits at all, what is owed comes later, what is hostile changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ravnest_p2p.core.errors import ChunkMismatchError, NonFiniteError
from ravnest_p2p.core.rings import Outcome, SegmentRound, Star
from ravnest_p2p.testing.averaged_sim import exchange
from ravnest_p2p.training.difference import (
    CODECS,
    DifferenceValues,
    ErrorFeedback,
    Sparse,
    difference_codec,
    sparse_outer,
)
from ravnest_p2p.training.difference.feedback import AGREE
from ravnest_p2p.training.outer import DILOCO, Outer, OuterSpec

ELEMENTS, CHUNKS = 30_000, 6
WEIGHTS = (3, 1, 0, 2)
EXACT = OuterSpec()


class Swarm:
    """Members that learn something and average it."""

    def __init__(self, codec: str, spec: OuterSpec = EXACT, decay: float = 1.0, ahead: bool = False) -> None:
        self.ahead = ahead
        start = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(9))
        self.own = [start.clone() for _ in WEIGHTS]
        self.common = [start.clone() for _ in WEIGHTS]
        self.feedbacks = [
            ErrorFeedback(ELEMENTS, CHUNKS, difference_codec(codec, seed), decay)
            for seed, _ in enumerate(WEIGHTS)
        ]
        self.outers = [Outer(spec) for _ in WEIGHTS]

    def learn(self, seed: int) -> torch.Tensor:
        """Returns the exact mean of what they learned."""
        found = torch.randn(len(WEIGHTS), ELEMENTS, generator=torch.Generator().manual_seed(seed)) ** 3
        for own, learned in zip(self.own, found, strict=True):
            own += learned
        return torch.tensor(WEIGHTS, dtype=torch.float32) @ found / sum(WEIGHTS)

    def average(self) -> int:
        """Returns the bytes that were sent."""
        pairs = zip(self.own, self.common, self.feedbacks, strict=True)
        values = [DifferenceValues(*pair, ahead=self.ahead) for pair in pairs]
        rounds = [SegmentRound(n, WEIGHTS, CHUNKS, its, Star) for n, its in enumerate(values)]
        sent = exchange(rounds)
        assert all(one.outcome is Outcome.MEAN for one in rounds)
        for its, outer in zip(values, self.outers, strict=True):
            its.settle(outer)
        assert self.ahead or all(torch.equal(own, self.common[0]) for own in self.own)
        assert all(torch.equal(self.common[0], other) for other in self.common)
        return sent


@pytest.mark.parametrize("codec", CODECS)
def test_all_end_with_the_same_bits_near_the_mean_and_send_what_was_announced(codec: str) -> None:
    swarm = Swarm(codec)
    start = swarm.common[0].clone()
    mean = swarm.learn(1)
    sent = swarm.average()
    assert sent == 2 * 3 * CHUNKS * difference_codec(codec).nbytes(ELEMENTS // CHUNKS)
    lost = (swarm.common[0] - start - mean).norm() / mean.norm()
    assert lost < {"none": 1e-5, "fp16": 1e-3, "int8": 0.03, "int4": 0.3, "sparse": 0.9}[codec]


@pytest.mark.parametrize(("codec", "ahead"), [("int4", False), ("sparse", False), ("sparse", True)])
def test_what_one_round_lacks_comes_with_the_next(codec: str, ahead: bool) -> None:
    swarm = Swarm(codec, ahead=ahead)
    start = swarm.common[0].clone()
    mean = swarm.learn(1)
    lacks = []
    for _ in range(60):
        swarm.average()
        lacks.append(float((swarm.common[0] - start - mean).norm() / mean.norm()))
    assert lacks[-1] < 0.01 * lacks[0]


def test_who_goes_on_ahead_has_what_it_could_not_send_and_half_as_much_of_others() -> None:
    swarm = Swarm("sparse", ahead=True)
    start = swarm.common[0].clone()
    swarm.learn(1)
    learned = [own - start for own in swarm.own]
    swarm.average()
    for rank, (own, mine) in enumerate(zip(swarm.own, learned, strict=True)):
        others = torch.tensor([chunk % len(WEIGHTS) != rank for chunk in range(CHUNKS)])
        beyond, its = own - swarm.common[0], others.repeat_interleave(ELEMENTS // CHUNKS)
        if WEIGHTS[rank]:
            expected = mine[its] * (AGREE + (1 - AGREE) * WEIGHTS[rank] / sum(WEIGHTS))
            unsent = torch.isclose(beyond[its], expected, rtol=1e-3, atol=1e-5).float().mean()
            assert 1 - 1 / 32 - 0.01 < unsent < 1 - 1 / 32 + 0.001
        else:
            assert not beyond[its].any()


def test_the_mean_of_sparse_differences_counts_the_more_the_more_members_there_are() -> None:
    rates = [sparse_outer(members).lr for members in (1, 2, 4, 8)]
    assert rates[0] == 1.0
    assert rates == sorted(rates)
    assert rates[-1] < 8 * AGREE, "less than what a member that sends alone had expected"


def test_what_is_kept_fades() -> None:
    codec = Sparse(7)
    feedback = ErrorFeedback(4096, 1, codec, decay=0.5)
    values = np.arange(4096, dtype=np.float32)
    lost = values - codec.decode(codec.encode(values), 4096)
    feedback.encode(0, values.copy())
    feedback.commit()
    again = codec.decode(feedback.encode(0, np.zeros(4096, np.float32)), 4096)
    assert np.array_equal(again, codec.decode(codec.encode(lost / 2), 4096))


def test_a_round_that_fails_owes_nothing() -> None:
    feedback = ErrorFeedback(100, 2, difference_codec("sparse"))
    assert feedback.length(1) == 50
    values = np.arange(50, dtype=np.float32)
    first = feedback.encode(1, values.copy())
    assert np.array_equal(feedback.encode(1, values.copy()), first), "summed again after a death"
    feedback.forget()
    feedback.commit()
    assert np.array_equal(feedback.encode(1, values.copy()), first)


def test_who_did_not_train_sends_only_what_it_owes() -> None:
    flat = torch.full((8,), float("inf"))
    values = DifferenceValues(flat, torch.zeros(8), ErrorFeedback(8, 1, difference_codec("none")))
    assert not values.part(0, 0.0).any()


def test_foreign_chunks_are_refused_and_change_nothing() -> None:
    common, codec = torch.full((64,), 3e38), difference_codec("none")
    values = DifferenceValues(common.clone(), common, ErrorFeedback(64, 2, codec))
    good = bytes(128)
    assert not values.received(1, good).any()
    for chunk, payload in ((2, good), (-1, good), (0, good[1:])):
        with pytest.raises(ChunkMismatchError):
            values.received(chunk, payload)
    for number in (np.nan, np.inf, 1e38):
        bad = np.full(32, number, np.float32).view(np.uint8)
        with pytest.raises(NonFiniteError):
            values.hold(0, bad)
    with pytest.raises(NonFiniteError):
        values.add(0, 1.0, [np.full(32, 3e38, np.float32).view(np.uint8)] * 2)
    values.settle(Outer(OuterSpec()))
    assert (common == 3e38).all()


def test_an_outer_optimizer_moves_all_alike() -> None:
    swarm, exact = Swarm("int8", DILOCO), Swarm("none", DILOCO)
    for number in range(5):
        swarm.learn(number)
        exact.learn(number)
        swarm.average()
        exact.average()
    apart = (swarm.common[0] - exact.common[0]).norm() / exact.common[0].norm()
    assert 0 < apart < 0.01
