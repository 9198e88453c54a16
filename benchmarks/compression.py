"""What does compression save and cost? `python -m benchmarks.compression --json`, half an hour on one core.

Sections:

* `speed`: GB of float32 a second, packed with its frame's checksum, and unpacked, of a boundary of GPT-2
  (4 × 512 tokens, 768 wide), in the processor's time of one thread; beside a copy of the same tensor, and
  hivemind's codecs, as far as they work.
* `bytes`: the frame of that boundary against the bare float32, head and header included.
* `loss`: the GPT of examples/gpt, cut into two stages and into four, trained with each codec on every cut in
  both directions, against exact training with the same first weights and samples: text held out, finished
  weights, mean of the seeds' gaps.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

import torch
from crc32c import crc32c
from torch import Tensor

from benchmarks.common import Goal, report
from benchmarks.compression_loss import Run, train
from ravnest_p2p.core.compression import CODECS, INT4, INT8, NONE, allowed
from ravnest_p2p.daemon.worker.crossing import CODEC, Crossing
from ravnest_p2p.model import TensorSpec
from ravnest_p2p.network.frames import Packed, pack

SECTIONS = ("speed", "bytes", "loss")
BOUNDARY = TensorSpec((4, 512, 768), "float32", True)
TRIES, QUICK_TRIES = 40, 5
STAGES = (2, 4)
UPDATES, QUICK_UPDATES = 250, 25
SEEDS = 3
LEAST_RATIO = {INT8: 3.9, INT4: 7.5}
MOST_GAP = {INT8: 0.2, INT4: 0.5}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="shorter runs; never for a claim")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="only this one")
    parser.add_argument("--stages", type=int, action="append", help="of `loss` (default: 2 and 4)")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of `loss` (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    goals: list[Goal] = []
    for section in options.section or SECTIONS:
        if section == "speed":
            results[section] = _speed(QUICK_TRIES if options.quick else TRIES, goals)
        elif section == "bytes":
            results[section] = _bytes(goals)
        else:
            for stages in options.stages or STAGES:
                updates, seeds = (QUICK_UPDATES, 1) if options.quick else (options.updates, SEEDS)
                results[f"{section}, {stages} stages"] = _loss(stages, updates, seeds, goals)
    return report("compression", results, goals, options.json)


def _boundary() -> Tensor:
    return torch.randn(BOUNDARY.shape, generator=torch.Generator().manual_seed(0))


def _ends(codec: str) -> tuple[Crossing, Crossing]:
    sender, receiver = (Crossing([BOUNDARY], allowed(codec), predicted=True) for _ in range(2))
    return sender, receiver


def _framed(sender: Crossing, codec: str, tensor: Tensor) -> tuple[Packed, list[memoryview]]:
    name, buffers = sender.pack(codec, [tensor])
    return pack({"i": 1, CODEC: name}, buffers), buffers


def _speed(tries: int, goals: list[Goal]) -> dict[str, Any]:
    tensor, target = _boundary(), torch.empty(BOUNDARY.shape)
    rows: dict[str, Any] = {"memcpy": {"pack": _rate(lambda: target.copy_(tensor), tries)}}
    for codec in CODECS:
        sender, receiver = _ends(codec)
        payload = bytearray(b"".join(_framed(sender, codec, tensor)[1]))

        def back(receiver: Crossing = receiver, codec: str = codec, payload: bytearray = payload) -> None:
            crc32c(payload)
            receiver.unpack(codec, payload, what="a boundary")

        rates = {
            "pack": _rate(lambda: _framed(sender, codec, tensor), tries),  # noqa: B023 (called here)
            "unpack": _rate(back, tries),
        }
        rows[codec] = rates
        goals += [Goal(f"{codec}: {way}", rate, "GB/s", ">= 1.0") for way, rate in rates.items()]
    return rows | _hivemind(tensor, tries)


def _hivemind(tensor: Tensor, tries: int) -> dict[str, Any]:
    """Theirs, without framing or checksum; some cannot read back what they wrote."""
    from hivemind import compression as theirs

    names = (
        "Float16Compression",
        "ScaledFloat16Compression",
        "Uniform8BitQuantization",
        "Quantile8BitQuantization",
        "BlockwiseQuantization",
    )
    rows: dict[str, Any] = {}
    for name in names:
        codec, info = getattr(theirs, name)(), theirs.CompressionInfo.from_tensor(tensor)
        row = rows[f"hivemind {name}"] = {"pack": "fails", "unpack": "fails"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = codec.compress(tensor, info)
                row["pack"] = _rate(lambda: codec.compress(tensor, info), min(tries, 3))  # noqa: B023
                codec.extract(data)
                row["unpack"] = _rate(lambda: codec.extract(data), min(tries, 3))  # noqa: B023
            except (ImportError, TypeError):
                continue
    return rows


def _rate(work: Callable[[], object], tries: int) -> float:
    """GB of the boundary a second: the median of the tries."""
    times = []
    for _ in range(tries + 1):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return BOUNDARY.nbytes / sorted(times[1:])[tries // 2] / 1e9


def _bytes(goals: list[Goal]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for codec in CODECS:
        size = _framed(_ends(codec)[0], codec, _boundary())[0].size_bytes
        rows[codec] = {"bytes": size, "times fewer": BOUNDARY.nbytes / size}
        if codec in LEAST_RATIO:
            ratio, least = rows[codec]["times fewer"], LEAST_RATIO[codec]
            goals.append(Goal(f"{codec}: times fewer bytes", ratio, "", f">= {least}"))
    return rows


def _loss(stages: int, updates: int, seeds: int, goals: list[Goal]) -> dict[str, Any]:
    losses = {
        codec: [train(Run(codec, stages, updates, seed)) for seed in range(seeds)]
        for codec in (NONE, INT8, INT4)
    }
    rows: dict[str, Any] = {}
    for codec, found in losses.items():
        gaps = [100 * (loss / exact - 1) for loss, exact in zip(found, losses[NONE], strict=True)]
        rows[codec] = {"loss": mean(found), "gap %": mean(gaps), "gaps %": [round(gap, 3) for gap in gaps]}
        if seeds > 1:
            rows[codec]["standard error %"] = stdev(gaps) / seeds**0.5
        if codec in MOST_GAP:
            goals.append(Goal(f"{codec}: loss, {stages} stages", mean(gaps), "%", f"<= {MOST_GAP[codec]}"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
