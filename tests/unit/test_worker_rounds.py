"""Rounds beside training: what is copied when, what is saved, and what a failed one does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ravnest_p2p.core.errors import CoMemberLostError, JobError
from ravnest_p2p.core.ledger import Shares
from ravnest_p2p.core.pipeline.round_numbers import Numbers
from ravnest_p2p.core.types import ClusterPlan, PeerId, StageAssignment
from ravnest_p2p.daemon.messages import PieceSaved
from ravnest_p2p.daemon.worker.averaging import RingExchange
from ravnest_p2p.daemon.worker.rounds import Rounds, Saved
from ravnest_p2p.training import averaging
from ravnest_p2p.training.late_mean import save, settle, take_in
from ravnest_p2p.training.means import Parameters

MEAN = torch.arange(4.0)
NAMES = ["w"]


class Rings:
    """A round that ends when the test says so, with `MEAN`, or with an error."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.share = SimpleNamespace(bound=self._bound, free=self._free)
        self.bounded: list[bool] = []
        self.may_end = asyncio.Event()
        self.lost: list[CoMemberLostError] = []
        self.error: Exception | None = None
        self.means = Parameters(trainer.params, {}, NAMES, 2, 1)
        self.sent_bytes = 0
        self.numbers = Numbers()

    def _bound(self) -> None:
        self.bounded.append(True)

    def _free(self) -> None:
        self.bounded.append(False)

    async def gather(self, weights: object, buffers: dict[str, torch.Tensor], work: Any) -> None:
        await work(lambda: self.means.begin(self._trainer.params, buffers))

    async def exchange(self, number: int, update_s: float, late_s: float) -> list[CoMemberLostError]:
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        self.means.mean.copy_(MEAN)
        self.sent_bytes += 16
        return self.lost

    async def settle(self, draft: Any, work: Any) -> None:
        await work(lambda: settle(self.means, self._trainer.params, {}, draft))

    def scatter(self) -> None:
        averaging.scatter(self.means.weights, self._trainer.params, {}, NAMES)

    def save(self, draft: Any) -> None:
        save(self.means, self._trainer.params, {}, draft)

    def take_in(self) -> None:
        take_in(self.means, self._trainer.params, {})


class Case:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        place = StageAssignment(PeerId("p"), 0, 3, 0)
        plan = SimpleNamespace(clusters=(ClusterPlan((place,), 2, 1),))
        spec = SimpleNamespace(kappa="fixed")
        start: Any = SimpleNamespace(plan=plan, cluster=0, stage=0, folder=str(folder), spec=spec)
        self.trainer: Any = SimpleNamespace(
            params={"w": torch.ones(4)},
            buffers={"b": torch.zeros(1)},
            version=2,
            optimizer_state=lambda: {"w": {"exp_avg": torch.full((4,), 5.0)}},
        )
        self.reports: list[PieceSaved] = []
        self.done: list[Saved] = []
        self._thread = ThreadPoolExecutor(1)
        self.gate = threading.Event()
        self.gate.set()
        self.fake = Rings(self.trainer)
        self.rings: RingExchange = self.fake  # type: ignore[assignment]
        self.rounds = Rounds(
            start, self.trainer, Shares(0, 8, (2,)), self.beside, self._report, self.done.append
        )

    async def beside(self, work: Callable[[], Any]) -> Any:
        def gated() -> Any:
            assert self.gate.wait(10)
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, gated)

    async def _report(self, message: Any) -> None:
        self.reports.append(message)

    def piece(self) -> dict[str, torch.Tensor]:
        (report,) = self.reports
        return load_file(report.path)


async def computed(work: Callable[[], Any]) -> Any:
    return work()


def test_a_round_beside_training_saves_the_mean_and_adds_the_difference(tmp_path: Path) -> None:
    async def run() -> None:
        case = Case(tmp_path)
        rounds, trainer = case.rounds, case.trainer
        case.gate.clear()
        begun = rounds.snapshot()
        rounds.begin(0, case.rings, begun)
        trainer.buffers["b"] += 9  # the next forward
        stepping = asyncio.get_running_loop().run_in_executor(None, rounds.wait_copied)
        await asyncio.sleep(0.05)
        assert not stepping.done(), "a step waits for the copy"
        case.gate.set()
        await asyncio.wait_for(stepping, 10)
        assert not rounds.between.is_set()
        trainer.params["w"] += 10
        trainer.version = 3
        case.fake.may_end.set()
        await asyncio.wait_for(rounds.between.wait(), 10)
        found = case.piece()
        assert torch.equal(found["param/w"], MEAN)
        assert torch.equal(found["buffer/b"], torch.zeros(1))
        assert torch.equal(found["optim/w/exp_avg"], torch.full((4,), 5.0))
        assert (case.reports[0].batches_done, case.reports[0].version) == (2, 2)
        assert [(its.number, its.batches_done, its.sent_bytes) for its in case.done] == [(0, 2, 16)]
        assert torch.equal(trainer.params["w"], torch.full((4,), 11.0)), "not before its Average"
        await rounds.take_in(0, case.rings, computed)
        assert torch.equal(trainer.params["w"], 11 + (MEAN - 1))
        assert case.fake.bounded == [True, False]

    asyncio.run(run())


def test_a_round_that_training_waits_for_puts_the_mean_in_the_weights_place(tmp_path: Path) -> None:
    async def run() -> None:
        case = Case(tmp_path)
        case.fake.may_end.set()
        await case.rounds.take_in(0, case.rings, computed)
        assert torch.equal(case.trainer.params["w"], MEAN)
        assert torch.equal(case.piece()["param/w"], MEAN)
        assert case.fake.bounded == [False]

    asyncio.run(run())


@pytest.mark.parametrize("beside", [False, True])
def test_a_round_without_a_lost_member_is_saved_and_ends_the_run(tmp_path: Path, beside: bool) -> None:
    async def run() -> None:
        case = Case(tmp_path)
        case.fake.lost = [CoMemberLostError(PeerId("gone"), "gone")]
        case.fake.may_end.set()
        if beside:
            case.rounds.begin(0, case.rings, case.rounds.snapshot())
        else:
            with pytest.raises(CoMemberLostError):
                await case.rounds.take_in(0, case.rings, computed)
        with pytest.raises(CoMemberLostError, match="gone"):
            await case.rounds.failed
        assert torch.equal(case.piece()["param/w"], MEAN)

    asyncio.run(run())


def test_a_round_that_fails_leaves_no_piece_and_nobody_waiting(tmp_path: Path) -> None:
    async def run() -> None:
        case = Case(tmp_path)
        case.fake.error = JobError("diverged")
        case.rounds.begin(0, case.rings, case.rounds.snapshot())
        stepping = asyncio.get_running_loop().run_in_executor(None, case.rounds.wait_copied)
        await asyncio.wait_for(stepping, 10)
        case.fake.may_end.set()
        with pytest.raises(JobError):
            await case.rounds.failed
        assert case.rounds.between.is_set()
        assert not case.reports

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_closed_lets_a_waiting_step_go(tmp_path: Path) -> None:
    async def run() -> None:
        case = Case(tmp_path)
        case.rounds.begin(0, case.rings, case.rounds.snapshot())
        await asyncio.sleep(0)
        case.rounds.close()
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, case.rounds.wait_copied), 10)
        await asyncio.wait_for(case.rounds.between.wait(), 10)

    asyncio.run(run())
