"""Clusters in virtual time: cut differently, averaged by the product's rings, equal to plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from ravnest_p2p.core.errors import JobError
from ravnest_p2p.core.ledger import DataOrder, Shares, sample_of
from ravnest_p2p.core.types import ClusterPlan, OptimizerSpec, PeerId, StageAssignment
from ravnest_p2p.testing.averaged_sim import average, train_clusters
from ravnest_p2p.training import StageTrainer
from tests.unit.training_models import classifier, cut, trainers_of

ADAMW = OptimizerSpec("adamw", 1e-2, weight_decay=0.1)
M, SAMPLES = 2, 40
CUTS = ((3, 6), (3,), (6,))


def plan(bounds: Sequence[int], taus: Sequence[int], kappa: int, overlap: int = 0) -> ClusterPlan:
    edges = pairwise([0, *bounds, 7])
    stages = [StageAssignment(PeerId("p"), lo, hi, tau) for (lo, hi), tau in zip(edges, taus, strict=True)]
    return ClusterPlan(tuple(stages), kappa, overlap)


def names(lo: int, hi: int) -> list[str]:
    return [name for name, _ in classifier(0, norm=False)[lo:hi].named_parameters()]


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 6, generator=generator)
    return x, torch.randint(4, (SAMPLES,), generator=generator)


def rows(indices: Sequence[int]) -> dict[str, Tensor]:
    x, y = samples()
    return {"x": x[list(indices)], "y": y[list(indices)]}


def trained(plans: Sequence[ClusterPlan], batches: int, latency_s: float = 0.0) -> list[dict[str, Tensor]]:
    """The weights that each cluster ends with."""
    trainers: list[list[StageTrainer]] = []
    for its in plans:
        stages = cut(classifier(3, norm=False), [stage.lo for stage in its.stages[1:]])
        taus = [stage.staleness for stage in its.stages]
        trainers.append(trainers_of(stages, ADAMW, m=M, staleness=taus))
    order = DataOrder(SAMPLES, 5, M, seed=7)
    shares = Shares(0, batches, tuple(its.updates_per_round for its in plans))
    results = train_clusters(plans, trainers, rows, names, order=order, shares=shares, latency_s=latency_s)
    assert [len(its.losses) for its in results] == [M * shares.local_updates(c) for c, _ in enumerate(plans)]
    return [{name: p for trainer in its for name, p in trainer.params.items()} for its in trainers]


def plain_pytorch(kappas: tuple[int, ...], batches: int, overlaps: Sequence[int] = ()) -> dict[str, Tensor]:
    """Whole models side by side; each gets the difference to the mean so many updates after its snapshot."""
    order, shares = DataOrder(SAMPLES, 5, M, seed=7), Shares(0, batches, kappas)
    models = [classifier(3, norm=False) for _ in kappas]
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    optimizers = [torch.optim.AdamW(model.parameters(), **settings) for model in models]
    done = [0] * len(kappas)
    owed: list[tuple[int, list[Tensor]] | None] = [None] * len(kappas)

    @torch.no_grad()
    def take_in(c: int) -> None:
        pending = owed[c]
        if pending is None or done[c] < pending[0]:
            return
        for p, difference in zip(models[c].parameters(), pending[1], strict=True):
            p += difference
        owed[c] = None

    for r in range(shares.rounds):
        weights = shares.weights(r)
        for c, model in enumerate(models):
            for update in range(done[c], done[c] + weights[c]):
                for i in range(update * M, (update + 1) * M):
                    batch = rows(sample_of(order, shares, c, i).indices)
                    (nn.functional.cross_entropy(model(batch["x"]), batch["y"]) / M).backward()
                optimizers[c].step()
                optimizers[c].zero_grad()
                done[c] += 1
                take_in(c)
        with torch.no_grad():
            copies = list(zip(*(model.parameters() for model in models), strict=True))
            means = [sum(p * (w / sum(weights)) for p, w in zip(its, weights, strict=True)) for its in copies]
            for c, model in enumerate(models):
                until = min(done[c] + (overlaps[c] if overlaps else 0), shares.local_updates(c))
                if until == done[c]:
                    for p, mean in zip(model.parameters(), means, strict=True):
                        p.copy_(mean)
                else:
                    pairs = zip(model.parameters(), means, strict=True)
                    owed[c] = until, [mean - p for p, mean in pairs]
    return dict(models[0].named_parameters())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("batches", [9, 11, 12], ids=["none for one", "fewer", "whole rounds"])
def test_without_staleness_it_is_plain_pytorch_bit_for_bit(batches: int) -> None:
    """Also where the last round leaves a cluster without a batch, which averages all the same."""
    found = trained([plan(CUTS[0], (0, 0, 0), 4), plan(CUTS[1], (0, 0), 2)], batches)
    expected = plain_pytorch((4, 2), batches)
    assert same(found[0], expected)
    assert same(found[1], expected)


@pytest.mark.parametrize("batches", [11, 12, 18])
@pytest.mark.parametrize("overlaps", [(1, 1), (4, 2), (3, 0), (0, 2)])
def test_a_mean_that_comes_later_is_taken_in_as_a_difference(batches: int, overlaps: tuple[int, int]) -> None:
    """Also where clusters take theirs in after different numbers of updates, or stop for it."""
    plans = [plan(CUTS[0], (0, 0, 0), 4, overlaps[0]), plan(CUTS[1], (0, 0), 2, overlaps[1])]
    found = trained(plans, batches)
    expected = plain_pytorch((4, 2), batches, overlaps)
    assert same(found[0], expected)
    assert same(found[1], expected)


def test_overlapping_rounds_end_with_the_same_bits_whatever_the_delay() -> None:
    plans = [plan(CUTS[0], (2, 1, 0), 3, 2), plan(CUTS[1], (1, 0), 2, 2), plan(CUTS[2], (2, 0), 1, 1)]
    first, *others = trained(plans, 19)
    assert all(same(other, first) for other in others)
    assert same(trained(plans, 19, latency_s=2.5)[0], first)
    stopping = [ClusterPlan(its.stages, its.updates_per_round) for its in plans]
    assert not same(trained(stopping, 19)[0], first)


def test_clusters_that_cut_differently_end_with_the_same_bits_whatever_the_delay() -> None:
    plans = [plan(CUTS[0], (2, 1, 0), 3), plan(CUTS[1], (1, 0), 2), plan(CUTS[2], (2, 0), 1)]
    first, *others = trained(plans, 13)
    assert all(same(other, first) for other in others)
    assert same(trained(plans, 13, latency_s=2.5)[0], first)
    assert not same(trained([plan(CUTS[0], (0, 0, 0), 3), *plans[1:]], 13)[0], first)


def test_a_stage_that_diverged_is_found_and_nothing_is_averaged() -> None:
    (whole,), (other,) = ([*trainers_of([classifier(3)], ADAMW, m=1, staleness=(0,))] for _ in "ab")
    with torch.no_grad():
        other.params["0.weight"][0] = float("nan")
        whole.params["0.weight"].fill_(1.0)
    with pytest.raises(JobError, match="diverged"):
        average([whole, other], ["0.weight"], [1, 1])
    assert (whole.params["0.weight"] == 1.0).all()
