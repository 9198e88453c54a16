"""One training of `benchmarks.kappa`: clusters side by side in one process, averaged by the product's rounds.

Each cluster is one stage without staleness (`StageTrainer`), so two runs differ only in how they average.
Update u of all clusters together has the same samples in every run of a seed, however many clusters share
them: one cluster takes them as one larger batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import penalty_setting as setting
from benchmarks.kept import kept
from benchmarks.penalty_runs import ROOT, package_of, weights_of
from ravnest_p2p.core.kappa import Kappa, KappaSpec, Seen, apart
from ravnest_p2p.core.optimizers import learning_rate
from ravnest_p2p.core.rings import SegmentRound, Star
from ravnest_p2p.model import Package, StageComputation, split_program
from ravnest_p2p.testing.averaged_sim import exchange, mean_of
from ravnest_p2p.training import StageTrainer, averaging, late_mean
from ravnest_p2p.training.difference import (
    DifferenceCodec,
    DifferenceValues,
    ErrorFeedback,
    Sparse,
    difference_codec,
)
from ravnest_p2p.training.difference.sparse import SPARSE
from ravnest_p2p.training.means import Parameters
from ravnest_p2p.training.momenta import WithMomenta
from ravnest_p2p.training.outer import Outer, OuterSpec

PARAMETERS = "parameters"
"""In the place of a codec: averaged in a ring, as they are."""

ADAPTIVE = 0
"""In the place of κ."""

SAMPLES = 8
"""Of one of several clusters' updates."""

ROUND_UPDATES = 8.0
"""How long a round is said to take, in updates: what κ adapts to besides how far clusters are apart."""


@dataclass(frozen=True)
class Run:
    """What is trained how.

    Attributes:
        kappa: local updates between two averagings, or `ADAPTIVE`.
        codec: of the differences, or `PARAMETERS`.
        samples: of one cluster's update.
        lower_bits: of the sparse codec; 0 takes the product's.
        decay, ahead: of what the codec lost (`ErrorFeedback`, `DifferenceValues`).
        last: codec of the last round, where it is another.
        outer: name, rate and momentum.
        overlap: updates between a round's snapshot and when its mean is taken in; parameters only.
        momentum: the optimizers' mean gradients are averaged too.
        seed: of the first weights and of the samples.
    """

    clusters: int
    kappa: int
    updates: int
    seed: int
    samples: int = SAMPLES
    codec: str = PARAMETERS
    lower_bits: int = 0
    decay: float = 1.0
    ahead: bool = False
    last: str = ""
    outer: tuple[str, float, float] = OuterSpec()
    optimizer: str = "adamw"
    overlap: int = 0
    momentum: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a training gave.

    Attributes:
        held_out: loss of the finished weights, nats a letter.
        sent: bytes of payloads that each cluster sent, on average.
        kappas: of each round.
        apart: of each round, how far apart the clusters were (`core.kappa.apart`).
    """

    held_out: float
    sent: float
    kappas: list[int]
    apart: list[float]
    seconds: float


def outcome(run: Run, keep: Path | None) -> Outcome:
    """Train, or read from `keep` what the same run gave with the same code."""
    return kept(run, keep, _sources(), Outcome, lambda: _train(run))


def _sources() -> list[Path]:
    """Of all code that decides what a run gives."""
    product = ROOT / "ravnest_p2p"
    benches = ("penalty_setting.py", "penalty_runs.py", "kappa_runs.py")
    parts = [ROOT / "benchmarks" / name for name in benches]
    parts += [product / "testing" / "averaged_sim.py"]
    parts += [product / "core" / name for name in ("kappa.py", "optimizers.py")]
    for folder in ("core/rings", "training", "training/difference", "training/codecs"):
        parts += sorted((product / folder).glob("*.py"))
    return parts


def _train(run: Run) -> Outcome:
    began = time.monotonic()
    count = run.samples * run.clusters * run.updates
    x, y = (rows.split(run.samples) for rows in setting.windows(setting.text(False), count, run.seed + 1))
    clusters = [_trainer(run) for _ in range(run.clusters)]
    averager = _Averager(run, clusters)
    optimizer = setting.optimizer_of(run.optimizer, run.updates)
    kappa = Kappa(KappaSpec(), partial(learning_rate, optimizer)) if run.kappa == ADAPTIVE else None
    done, sent, kappas, aparts = 0, 0, [], []
    while done < run.updates:
        updates = min(kappa.current.kappa if kappa else run.kappa, run.updates - done)
        for u in range(done, done + updates):
            if u == done + run.overlap:
                averager.take_in()
            for c, trainer in enumerate(clusters):
                part = u * len(clusters) + c
                _update(trainer, u, {"x0": x[part], "y0": y[part]})
        done += updates
        averager.take_in()
        seen, its = averager.average(last=done == run.updates)
        sent += its
        kappas.append(updates)
        aparts.append(seen.apart)
        if kappa:
            kappa.ended(seen)
    return Outcome(
        setting.held_out_loss(averager.weights()),
        sent / run.clusters,
        kappas,
        aparts,
        time.monotonic() - began,
    )


class _Averager:
    """Rounds of whole models."""

    def __init__(self, run: Run, clusters: Sequence[StageTrainer]) -> None:
        self._run, self._clusters = run, clusters
        self._params = [WithMomenta(its) if run.momentum else its.params for its in clusters]
        self._names = list(self._params[0])
        self._weights = averaging.elements(clusters[0].params, {}, list(clusters[0].params))
        self._common = [self._flat(params) for params in self._params]
        count = len(self._common[0])
        self._chunks = averaging.chunk_count(count, len(clusters))
        codecs = [_codec(run, seed) for seed, _ in enumerate(clusters)] if run.codec != PARAMETERS else []
        self._feedbacks = [ErrorFeedback(count, self._chunks, codec, run.decay) for codec in codecs]
        self._outers = [Outer(OuterSpec(*run.outer)) for _ in clusters]
        self._late: list[Parameters] = []

    def average(self, last: bool) -> tuple[Seen, int]:
        """One round; what it showed, and the bytes of all payloads."""
        if last and self._run.last:
            for seed, feedback in enumerate(self._feedbacks):
                feedback.codec = difference_codec(self._run.last, seed)
        flats, count = torch.stack([self._flat(params) for params in self._params]), len(self._clusters)
        seen = Seen(self._apart(flats), ROUND_UPDATES, 1.0)
        if count == 1:
            self._common = [flats[0]]
            return seen, 0
        if self._run.overlap and not last:
            return seen, self._beside(flats)
        if not self._feedbacks:
            sent = mean_of(list(flats), [1] * count)
            self._go_on_from(flats)
            self._common = [flats[0].clone()]
            return seen, sent
        pairs = zip(flats, self._common, self._feedbacks, strict=True)
        values = [DifferenceValues(*pair, ahead=self._run.ahead) for pair in pairs]
        sent = exchange(
            [SegmentRound(n, [1] * count, self._chunks, its, Star) for n, its in enumerate(values)]
        )
        for its, outer in zip(values, self._outers, strict=True):
            its.settle(outer)
        self._go_on_from(flats)
        return seen, sent

    def _go_on_from(self, flats: Iterable[Tensor]) -> None:
        for params, flat in zip(self._params, flats, strict=True):
            averaging.scatter(flat, params, {}, self._names)

    def _beside(self, flats: Tensor) -> int:
        """A round whose mean is taken in later; the bytes of all payloads."""
        self._late = [Parameters(its, {}, self._names, len(flats), columns=1) for its in self._params]
        means = [late.weights.copy_(flat) for late, flat in zip(self._late, flats, strict=True)]
        sent = mean_of(means, [1] * len(flats))
        self._common = [means[0].clone()]
        for mean, flat in zip(means, flats, strict=True):
            mean.sub_(flat)
        return sent

    def take_in(self) -> None:
        """The mean of the last round, if it went on beside training."""
        for late, params in zip(self._late, self._params, strict=False):
            late_mean.take_in(late, params, {})
        self._late = []

    def weights(self) -> dict[str, Tensor]:
        """The common mean, by name."""
        self._go_on_from([self._common[0]] * len(self._params))
        return {name: value.detach() for name, value in self._clusters[0].params.items()}

    def _apart(self, flats: Tensor) -> float:
        flats, common = flats[:, : self._weights], self._common[0][: self._weights]
        mean, learned = flats.mean(0), flats - common
        squares = (float(learned.square().sum() / len(flats)), float(learned.mean(0).square().sum()))
        return apart(*squares, float(mean.square().sum()), [1 / len(flats)] * len(flats))

    def _flat(self, params: Mapping[str, Tensor]) -> Tensor:
        return averaging.gather(params, {}, self._names)


def _codec(run: Run, seed: int) -> DifferenceCodec:
    sparse = run.codec == SPARSE and run.lower_bits
    return Sparse(run.lower_bits) if sparse else difference_codec(run.codec, seed)


@cache
def _package(seed: int, rows: int) -> Package:
    return package_of(seed, rows)


def _trainer(run: Run) -> StageTrainer:
    package = _package(run.seed, run.samples)
    (stage,) = split_program(package.program, stages=1)
    return StageTrainer(
        StageComputation(stage),
        weights_of(package, stage),
        {name: package.weights[name] for name in stage.buffers},
        optimizer=setting.optimizer_of(run.optimizer, run.updates),
        microbatches_per_update=1,
        staleness=0,
        is_last=True,
    )


def _update(trainer: StageTrainer, u: int, data: Mapping[str, Tensor]) -> None:
    trainer.forward(u, (), data, u, speculative=False)
    trainer.backward(u, [])
    trainer.step()
