"""How segments are averaged: round after round by each way that a job may name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ravnest_p2p.core.averaging import AVERAGINGS, DIFFERENCES, NESTEROV, PARAMETERS, SPARSE
from ravnest_p2p.core.rings import SegmentRound
from ravnest_p2p.testing.averaged_sim import exchange
from ravnest_p2p.training import averaging
from ravnest_p2p.training.late_mean import save, settle, take_in
from ravnest_p2p.training.means import Averaging, Means, Parameters, means_of
from ravnest_p2p.training.outer import OuterSpec

NAMES = ["a", "mean", "w"]
MEMBERS = 3


class Stage:
    def __init__(self, how: Averaging, members: int = MEMBERS) -> None:
        torch.manual_seed(0)
        self.params = {"w": torch.randn(300, 200), "a": torch.randn(77)}
        self.buffers = {"mean": torch.rand(5)}
        self.means: Means = means_of(how, self.params, self.buffers, NAMES, members, 1)

    def learn(self, seed: int, scale: float = 0.01) -> None:
        generator = torch.Generator().manual_seed(seed)
        for tensor in (*self.params.values(), *self.buffers.values()):
            tensor += scale * torch.randn(tensor.shape, generator=generator)

    def all(self) -> dict[str, Tensor]:
        return {**self.params, **self.buffers}

    def scatter(self) -> None:
        averaging.scatter(self.means.weights, self.params, self.buffers, self.means.names)


class Kept(dict[str, Tensor]):
    def replace(self, name: str, values: Tensor) -> Tensor:
        before, self[name] = self[name], values.clone()
        return before


def piece(stage: Stage) -> Kept:
    kept = Kept({f"param/{name}": tensor.clone() for name, tensor in stage.params.items()})
    kept |= {f"buffer/{name}": tensor.clone() for name, tensor in stage.buffers.items()}
    return kept


def average(stages: Sequence[Stage], weights: Sequence[float] = (1, 1, 1)) -> int:
    values: list[Any] = [stage.means.begin(stage.params, stage.buffers) for stage in stages]
    rounds = [
        SegmentRound(rank, list(weights), its.chunks, its, stage.means.ways)
        for rank, (stage, its) in enumerate(zip(stages, values, strict=True))
    ]
    sent = exchange(rounds)
    for stage in stages:
        stage.means.end()
    return sent


@pytest.mark.parametrize("kind", AVERAGINGS)
def test_all_hold_the_same_mean_round_after_round(kind: str) -> None:
    stages = [Stage(Averaging(kind, seed=rank)) for rank in range(MEMBERS)]
    for number in range(4):
        for rank, stage in enumerate(stages):
            stage.learn(10 * number + rank)
        wanted = {
            name: sum(w * stage.all()[name] for w, stage in zip((0.5, 0.25, 0.25), stages, strict=True))
            for name in NAMES
        }
        average(stages, (2, 1, 1))
        first = stages[0].means.mean
        assert all(torch.equal(stage.means.mean, first) for stage in stages)
        if kind != SPARSE:
            found = {name: part for name, _, part in averaging.parts(first, *tensors(stages[0]))}
            error = max(float((found[name] - wanted[name]).abs().max()) for name in ("w", "a"))
            assert error < {"int4": 0.01, "int8": 1e-3}.get(kind, 1e-4)
            torch.testing.assert_close(found["mean"], wanted["mean"], rtol=0, atol=1e-6)
        for stage in stages:
            stage.scatter()


def tensors(stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], Sequence[str]]:
    return stage.params, stage.buffers, stage.means.names


def test_the_bytes_are_those_of_the_codec() -> None:
    sent = {}
    for kind in AVERAGINGS:
        stages = [Stage(Averaging(kind)) for _ in range(MEMBERS)]
        for rank, stage in enumerate(stages):
            stage.learn(rank)
        sent[kind] = average(stages)
    assert sent[DIFFERENCES] == sent[PARAMETERS]
    shares = {kind: sent[PARAMETERS] / its for kind, its in sent.items()}
    assert shares["fp16"] == pytest.approx(2.0, rel=0.02)
    assert shares["int8"] == pytest.approx(3.95, rel=0.02)
    assert shares["int4"] == pytest.approx(7.5, rel=0.02)
    assert shares[SPARSE] > 95


def test_statistics_cross_exactly_whatever_the_codec_and_the_outer_optimizer() -> None:
    stages = [Stage(Averaging(SPARSE, OuterSpec(NESTEROV, 0.7, 0.9))) for _ in range(MEMBERS)]
    for number in range(3):
        for rank, stage in enumerate(stages):
            stage.learn(10 * number + rank, scale=1.0)
        wanted = torch.stack([stage.buffers["mean"] for stage in stages]).mean(0)
        average(stages)
        for stage in stages:
            stage.scatter()
            torch.testing.assert_close(stage.buffers["mean"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", AVERAGINGS)
def test_a_mean_taken_in_later_adds_what_a_stop_would_have_set(kind: str) -> None:
    """The weights after it are those of a stop, and what was learned meanwhile; the piece is the same."""
    stopping, beside = ([Stage(Averaging(kind)) for _ in range(MEMBERS)] for _ in "ab")
    # A codec makes much of the last bit, in which an addition differs, in the next round.
    for number in range(3 if kind in (PARAMETERS, DIFFERENCES) else 1):
        for rank in range(MEMBERS):
            stopping[rank].learn(10 * number + rank)
            beside[rank].learn(10 * number + rank)
        snapshots = [piece(stage) for stage in beside]
        average(stopping)
        average(beside)
        for stage, kept in zip(beside, snapshots, strict=True):
            stage.params["w"] += 0.5
            settle(stage.means, stage.params, stage.buffers, kept)
            take_in(stage.means, stage.params, stage.buffers)
            stage.params["w"] -= 0.5
        for one, other, kept in zip(stopping, beside, snapshots, strict=True):
            one.scatter()
            saved = piece(one)
            save(one.means, one.params, one.buffers, saved)
            for name in NAMES:
                torch.testing.assert_close(other.all()[name], one.all()[name], rtol=0, atol=1e-5)
            for key, tensor in saved.items():
                torch.testing.assert_close(kept[key], tensor.view(kept[key].shape), rtol=0, atol=1e-5)


def test_a_round_that_failed_is_made_again_from_the_same_bits() -> None:
    stages = [Stage(Averaging(SPARSE)) for _ in range(MEMBERS)]
    for rank, stage in enumerate(stages):
        stage.learn(rank)
    again = [Stage(Averaging(SPARSE)) for _ in range(MEMBERS)]
    for rank, stage in enumerate(again):
        stage.learn(rank)
        stage.means.begin(stage.params, stage.buffers).part(0, 0.5)
    average(stages)
    average(again)
    assert torch.equal(stages[0].means.weights, again[0].means.weights)


def test_who_holds_a_segment_alone_needs_no_mean_to_differ_from() -> None:
    assert isinstance(Stage(Averaging(SPARSE), members=1).means, Parameters)
