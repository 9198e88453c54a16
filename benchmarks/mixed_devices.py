"""Do a CPU and a GPU train one model together? `python -m benchmarks.mixed_devices --json`.

The GPT of examples/gpt in two stages of one cluster, on a real swarm of two peers on this computer, each a
`ravnestd` with its p2pd and its worker, in turns: both on the CPU; one on the GPU, which then gets what the
planner thinks is best, nearly all, and is first in the pipeline; one on the GPU, which lends so little memory
that each gets about half of the layers, and the GPU the last ones.

Compared is what was learned, from the same seed: devices round differently, and a job's staleness depends on
the peers' speeds, so losses are close and not equal. About three minutes on 16 cores; exit status 2 where
there is no CUDA device.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ravnest_p2p as rn
from benchmarks.common import Goal, report
from ravnest_p2p.core.errors import OurFault
from ravnest_p2p.model import Requirements, Terms
from ravnest_p2p.network.identity import Identity
from ravnest_p2p.testing.local_swarm import LocalSwarm, wait_until

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path += [str(EXAMPLES), str(EXAMPLES / "gpt")]
import train as example  # noqa: E402 (examples are scripts, found by their folder)

TWO_CPUS = "two CPUs"
LETTERS, QUICK_LETTERS, HELD_OUT_LETTERS = 450_000, 60_000, 40_000
EPOCH_S = 900
MEMORY = "3GB"
START_S, LIMIT_S = 60.0, 150.0
WARM = 5
"""Updates before the samples of a second are counted: a GPU's first operations load its programs."""
NEWEST = 20
"""Batches at the end whose losses are averaged."""
POINTS = 20
LAST_LINES = 6


class Side(NamedTuple):
    """One swarm.

    Attributes:
        memory: that the second peer lends; "" is all there is of its device.
        second_first: the second peer has the lower id, which decides between orders of equal merit.
    """

    devices: Sequence[str]
    memory: str = MEMORY
    second_first: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed_devices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--quick", action="store_true", help="little text; never for a claim")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave the peers' folders, with their logs, here"
    )
    parser.add_argument("--devices", nargs=2, default=("cpu", "cuda"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "cuda" in options.devices and not torch.cuda.is_available():
        print("torch finds no CUDA device here, and this benchmark is about one", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    text = example.windows(1, (QUICK_LETTERS if options.quick else LETTERS) + HELD_OUT_LETTERS).flatten()
    request = replace(
        example.job(),
        data=_rows(text[:-HELD_OUT_LETTERS]),
        passes=1,
        stages=2,
        clusters=1,
        precision="fp32",
        checkpoint=False,
    )
    both = tuple(options.devices)
    # A CPU is held to what its process takes, which is more than the tensors of half of so small a model.
    planned, half = ("", str(_half_bytes(request))) if "cuda" in both else (MEMORY, MEMORY)
    sides = {
        TWO_CPUS: Side(("cpu", "cpu")),
        "as planned": Side(both, planned, second_first=True),
        "half each": Side(both, half),
    }
    found: dict[str, Any] = {}
    for name, side in sides.items():
        print(f"{name}: {' + '.join(side.devices)} …", file=sys.stderr, flush=True)
        with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory("-mixed") as folder:
            place = Path(folder) / name.replace(" ", "-")
            try:
                found[name] = _trained(side, request, place, text[-HELD_OUT_LETTERS:])
            except (OurFault, RuntimeError, TimeoutError) as error:
                print(f"  failed: {error}", file=sys.stderr, flush=True)
                _print_last_words(place)
            else:
                print(f"  {found[name]}", file=sys.stderr, flush=True)
    return report("mixed_devices", {"swarms": found}, _goals(found, sides), options.json)


def _print_last_words(folder: Path) -> None:
    """Of every daemon and worker of a swarm."""
    for log in sorted((*folder.glob("*/ravnestd.log"), *folder.glob("*/jobs/worker-*.log"))):
        print(f"  == {log.relative_to(folder)}", file=sys.stderr)
        for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            print(f"  {line:.400}", file=sys.stderr, flush=True)


def _goals(found: dict[str, Any], sides: Mapping[str, Side]) -> list[Goal]:
    goals = [Goal(f"trained, {name}", name in found, "", ">= 1") for name in sides]
    for name, row in found.items():
        goals.append(Goal(f"generations, {name}", row["generations"], "", "<= 1"))
        if name == TWO_CPUS or TWO_CPUS not in found:
            continue
        for loss in ("held-out loss", "last losses"):
            off = abs(row[loss] / found[TWO_CPUS][loss] - 1.0)
            goals.append(Goal(f"{loss} beside that of two CPUs, {name}", off, "", "<= 0.02"))
        for device in sorted(set(sides[name].devices)):
            count = sum(stage["device"] == device for stage in row["stages"].values())
            goals.append(Goal(f"stages on {device}, {name}", count, "", ">= 1"))
    return goals


def _trained(side: Side, request: rn.JobRequest, folder: Path, held_out: Tensor) -> dict[str, Any]:
    memory = ["--memory", side.memory] if side.memory else []
    each = [["--memory", MEMORY, "--device", side.devices[0]], [*memory, "--device", side.devices[1]]]
    swarm = LocalSwarm(folder, 2, more=["--epoch", str(EPOCH_S)], memory="0", each=each)
    _name_peers(swarm, second_first=side.second_first)
    with swarm, rn.connect(swarm.bootstrap.address) as connection:
        lending = lambda: sum(1 for peer in connection.peers() if peer["memory_bytes"]) == 2  # noqa: E731
        wait_until(lending, START_S, "both peers have measured themselves")
        offers = {peer["peer"]: peer["devices"][0] for peer in connection.peers() if peer["devices"]}
        row = _followed(connection.submit_request(request), offers, held_out)
    return row | {"offers": {offer["kind"]: f"{offer['flops']:.3g} FLOP/s" for offer in offers.values()}}


def _name_peers(swarm: LocalSwarm, *, second_first: bool) -> None:
    """Give both peers their identities, the lower id to the one that shall come first."""
    keys = [peer.home / "identity.key" for peer in swarm.peers]
    low, high = sorted(keys, key=lambda key: Identity.load_or_create(key, exclusive=False).peer_id)
    if (low == keys[1]) != second_first:
        spare = low.with_name("spare.key")
        low.rename(spare), high.rename(low), spare.rename(high)


def _followed(job: Any, offers: dict[str, Any], held_out: Tensor) -> dict[str, Any]:
    """Wait for the job's end; what it learned and how it ran."""
    begun: tuple[float, int] | None = None
    last = done = job.status()
    deadline_s = time.monotonic() + LIMIT_S
    ended_s = time.monotonic()
    while not (done := job.status()).over:
        now_s = time.monotonic()
        if now_s > deadline_s:
            job.cancel()
            raise TimeoutError(
                f"the job was at {done.batches_trained} of {done.total_batches}: {done.reason}"
            )
        stages = done.clusters[0].stages if done.clusters else ()
        if stages and min(stage.version for stage in stages) >= WARM:
            begun = begun or (now_s, done.samples)
            last, ended_s = done, now_s
        time.sleep(0.2)
    if done.phase.value != "done" or begun is None:
        raise RuntimeError(f"the job ended as {done.phase.value}: {done.reason}")
    losses = [loss for _, loss in sorted(done.losses)]
    newest = losses[-NEWEST:]
    return {
        "held-out loss": _loss(job.result(), held_out),
        "last losses": sum(newest) / len(newest),
        "samples/s": (last.samples - begun[1]) / max(ended_s - begun[0], 1e-9),
        "generations": len(done.lineage),
        "stages": {
            str(stage.stage): {
                "device": offers[stage.peer]["kind"],
                "layers": [stage.lo, stage.hi],
                "busy": stage.busy,
                "staleness": stage.staleness,
                "staleness bound": stage.staleness_bound,
                "peak memory, MiB": stage.peak_memory_bytes >> 20,
            }
            for stage in last.clusters[0].stages
        },
        "losses": losses[:: max(1, len(losses) // POINTS)],
    }


def _half_bytes(request: rn.JobRequest) -> int:
    """Memory with which a peer can hold about half of the layers, wherever they lie."""
    letters, following = (column[: request.microbatch_size] for column in request.data)
    package = rn.capture(request.model, (letters,), loss=request.loss, example_labels=(following,))
    needs = Requirements(
        package, Terms(request.optimizer, microbatches_per_update=request.microbatches_per_update)
    )
    count = len(needs.layers)
    middle = min(range(1, count), key=lambda n: abs(2 * needs.need(0, n).flops - needs.whole.flops))
    first = needs.need(0, middle, stage=0, stages=2, staleness=1)
    return max(first.memory.needed, needs.need(middle, count, stage=1, stages=2).memory.needed)


def _rows(letters: Tensor) -> tuple[Tensor, Tensor]:
    rows = (len(letters) - 1) // example.CONTEXT
    end = rows * example.CONTEXT
    return letters[:end].view(rows, -1), letters[1 : end + 1].view(rows, -1)


@torch.no_grad()
def _loss(weights: dict[str, Tensor], letters: Tensor) -> float:
    """Of text that was not trained on."""
    model = example.build_model()
    model.load_state_dict(weights)
    model.eval()
    return float(example.loss(model(_rows(letters)[0]), _rows(letters)[1]))


if __name__ == "__main__":
    sys.exit(main())
