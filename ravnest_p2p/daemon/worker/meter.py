"""What a stage measures of itself: busy share, staleness, loss, memory, and the trace of versions.

The trace holds, for every micro-batch, the number of updates that the weights had seen at its forward and
at the moment its gradient was applied. It is written as it happened, from the trainer's own counters, so
that it can be held against the closed form of `core.pipeline`.

A GPU is given its work and computes on while the thread goes on; an operation has ended when the GPU is done
with it, so each is waited for. What it is followed by is queued some ten microseconds later.

Tensors are counted one by one in the first two updates only, which bring everything that later ones hold (the
optimizer's state, ŵ, a full window): counting costs time with every operation.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO, TypeVar

import torch
from torch import Tensor

from ravnest_p2p.daemon.messages import AHEAD_KEPT, Report
from ravnest_p2p.daemon.worker.resident import ResidentPeak
from ravnest_p2p.model.footprint import StorageMeter
from ravnest_p2p.training import DevicePeak, synchronize

UPDATES_COUNTED = 2
MAX_LOSSES = 4096
CPU = torch.device("cpu")

Result = TypeVar("Result")


class Meter:
    """Counters of one run; the compute thread counts, the event loop reports and averages.

    Args:
        folder: where `trace.csv` is written: micro-batch, forward version, backward version, τ of its batch.
        first_version: the trainer's version when the run began; the trace counts from it.
        held: parameters and buffers, from the beginning.
        compiling: after the updates in which tensors are counted, memory goes to a compiler as well; it is
            this peer's alone, and no measure of the stage.
        device: that is computed on; the memory of tensors is counted there.
    """

    def __init__(
        self,
        folder: Path,
        first_version: int,
        held: Sequence[Tensor] = (),
        compiling: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self._trace: TextIO = (folder / "trace.csv").open("w", buffering=1 << 16)
        self._first_version = first_version
        self._version = first_version
        self._forward_versions: dict[int, int] = {}
        self._started_s = time.monotonic()
        self._busy_s = 0.0
        self._averaging_s = 0.0
        self._staleness = 0
        self._ahead: list[int] = []
        self._crossed = 0
        self._samples = 0
        self._batches_done = 0
        self._found: dict[int, list[float]] = {}
        self._losses: deque[tuple[int, float]] = deque()
        self._resident = ResidentPeak()
        self._compiling = compiling
        self._resident_before = 0
        self._held_bytes = sum(tensor.nbytes for tensor in held)
        self._device = device
        self._storages = StorageMeter(held, device)
        self._device_peak = DevicePeak(device)

    def timed(self, work: Callable[[], Result]) -> tuple[Result, float]:
        """The work's result and its seconds."""
        started = time.perf_counter()
        with self._storages if self._counting else nullcontext():
            result = work()
            synchronize(self._device)
        seconds = time.perf_counter() - started
        self._busy_s += seconds
        return result, seconds

    @property
    def _counting(self) -> bool:
        return self._version - self._first_version < UPDATES_COUNTED

    def forwarded(self, microbatch: int, version: int, *, crossed: bool) -> None:
        """A micro-batch goes forward, on ŵ where it crosses an update; what is in flight is before it."""
        ahead = min(len(self._forward_versions), AHEAD_KEPT - 1)
        self._ahead += [0] * (ahead + 1 - len(self._ahead))
        self._ahead[ahead] += 1
        self._crossed += crossed
        self._forward_versions[microbatch] = version

    def backed(self, microbatch: int, version: int, samples: int, staleness: int) -> None:
        forward = self._forward_versions.pop(microbatch)
        self._staleness = max(self._staleness, version - forward)
        self._samples += samples
        versions = f"{forward - self._first_version},{version - self._first_version}"
        self._trace.write(f"{microbatch},{versions},{staleness}\n")

    def stepped(self, version: int) -> None:
        counted = self._counting
        self._version = version
        if self._compiling and counted and not self._counting:
            self._resident_before = self._resident.bytes()

    def averaged(self, seconds: float) -> None:
        """Training stood for so long, for a mean."""
        self._averaging_s += seconds

    def saved(self, batches_done: int) -> None:
        """The state with so many batches is saved."""
        self._batches_done = batches_done

    def loss(self, batch: int, value: float, microbatches: int) -> None:
        """Collect one micro-batch's mean loss; a batch is reported once all its micro-batches are in.

        Args:
            value: NaN of one that is left out; the mean is that of the others.
        """
        found = [*self._found.pop(batch, ()), value]
        if len(found) < microbatches:
            self._found[batch] = found
            return
        counted = [loss for loss in found if not math.isnan(loss)]
        if counted:
            self._losses.append((batch, sum(counted) / len(counted)))

    def report(self, bytes_sent: int, bytes_received: int) -> Report:
        """Everything so far; losses only once."""
        losses = [self._losses.popleft() for _ in range(min(len(self._losses), MAX_LOSSES))]
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        return Report(
            version=self._version,
            updates=self._version - self._first_version,
            batches_done=self._batches_done,
            busy=min(self._busy_s / elapsed_s, 1.0),
            busy_s=self._busy_s,
            training_s=elapsed_s,
            averaging_s=self._averaging_s,
            staleness=self._staleness,
            ahead=tuple(self._ahead),
            crossed=self._crossed,
            in_flight=len(self._forward_versions),
            samples=self._samples,
            bytes_sent=bytes_sent,
            bytes_received=bytes_received,
            peak_memory_bytes=self._device_peak.bytes() or self._resident_before or self._resident.bytes(),
            peak_tensor_bytes=self._held_bytes + self._storages.peak_bytes,
            losses=tuple(losses),
        )

    def close(self) -> None:
        self._trace.close()
