"""Every example on a swarm of this computer, one after another: `make examples`.

Starts a bootstrap peer and three lending peers, each a real `ravnestd`; submits each example through the SDK
to be trained across two stages or more; shows how it goes; fetches the trained model; and prints a line of
result for each. Ends with 1 if one of them failed or its loss did not fall, with 130 after Ctrl+C. Whatever
happens, nothing is left running.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from local import follow, take_interrupts, wait_for_peers
from rich.console import Console

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
NAMES = ("gpt_sorter", "resnet50", "bert", "gpt2")
PEERS = 3
TRAIN_S = 300.0
STOP_S = 3.0
FALLEN = 0.8
"""The loss at the end counts as fallen where it is below so much of that at the begin."""
ENDS = 5
"""Points of the loss curve that are averaged at either end."""


@dataclass(frozen=True)
class Outcome:
    """What became of one example.

    Attributes:
        begin, end: loss, mean over the first and the last points of its curve.
        seconds: from submitting to the result, and `training_s` of that in training.
        judged: what the trained model can do, in words.
        failure: why it does not count; empty where all is well.
    """

    name: str
    stages: int = 0
    samples: int = 0
    begin: float | None = None
    end: float | None = None
    seconds: float = 0.0
    training_s: float = 0.0
    judged: str = ""
    failure: str = ""

    def line(self) -> str:
        """For people."""
        if self.begin is None or self.end is None:
            return f"[bold red]{self.name}[/]: {self.failure}"
        color = "red" if self.failure else "green"
        text = (
            f"[bold {color}]{self.name}[/]: loss {self.begin:.3f} → {self.end:.3f}, {self.stages} stages, "
            f"{self.samples} samples, {self.training_s:.0f} s of training, {self.seconds:.0f} s in all"
        )
        return text + "".join(f"; {more}" for more in (self.judged, self.failure) if more)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no example {unknown[0]!r}; there are {', '.join(NAMES)}")
    console = Console(stderr=options.json)
    torch.set_num_threads(1)
    take_interrupts()
    folder = BUILD / "examples"
    os.environ["RAVNEST_HOME"] = str(folder / "requester")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        outcomes = run(folder, options.names or list(NAMES), console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    holds = all(not outcome.failure for outcome in outcomes)
    if options.json:
        print(json.dumps({"examples": [asdict(outcome) for outcome in outcomes], "holds": holds}))
    else:
        console.print(f"\n{sum(not o.failure for o in outcomes)} of {len(outcomes)} examples trained:")
        for outcome in outcomes:
            console.print(outcome.line(), highlight=False, soft_wrap=True)
    return 0 if holds else 1


def run(folder: Path, names: list[str], console: Console) -> list[Outcome]:
    """Train these examples on a swarm whose peers live in the folder."""
    # Imported late, so that Ctrl+C during these seconds meets `main`'s handler.
    import ravnest_p2p as rn
    from ravnest_p2p.testing.local_swarm import LocalSwarm

    console.print(f"starting a bootstrap peer and {PEERS} lending peers …")
    swarm = LocalSwarm(folder, PEERS, swarm="examples")
    outcomes = []
    try:
        swarm.start()
        with rn.connect(*(peer.address for peer in swarm.peers)) as connection:
            try:
                wait_for_peers(connection, PEERS, folder, console)
                for name in names:
                    outcomes.append(train(connection, name, console))
                    if outcomes[-1].failure:
                        console.print(outcomes[-1].line(), highlight=False, soft_wrap=True)
            except BaseException:
                swarm.interrupt()  # at once: closing the connection may take a moment
                raise
    finally:
        swarm.stop(STOP_S)
    return outcomes


def train(connection: Any, name: str, console: Console) -> Outcome:
    """Submit one example, follow it, fetch what it made, and look whether the loss fell."""
    from ravnest_p2p.core.errors import RavnestError

    begin_s = time.monotonic()
    job = None
    try:
        console.print(f"\n[bold]{name}[/]: making the model and its data")
        example = load(name)
        job = connection.submit_request(example.job(), say=console.print)
        progress, training_s = follow(job, TRAIN_S, console)
        model = example.build_model()
        model.load_state_dict(job.result(timeout_s=60))
    except ImportError as error:
        return Outcome(name, failure=f"it needs a package that is missing: {error}")
    except RavnestError as error:
        cancel(job)
        return Outcome(name, failure=str(error))
    losses = [loss for _, loss in progress.losses]
    begin, end = (sum(part) / max(1, len(part)) for part in (losses[:ENDS], losses[-ENDS:]))
    stages = len(progress.clusters[0].stages)
    return Outcome(
        name=name,
        stages=stages,
        samples=progress.samples,
        begin=begin,
        end=end,
        seconds=round(time.monotonic() - begin_s, 1),
        training_s=round(training_s, 1),
        judged=example.judged(model),
        failure=failure(begin, end, stages),
    )


def load(name: str) -> ModuleType:
    """The example's `train.py` as a module of its own name."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", HERE / name / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def failure(begin: float, end: float, stages: int) -> str:
    """What is wrong with a job that ended well, or nothing."""
    if not end < FALLEN * begin:
        return f"the loss did not fall below {FALLEN:.0%} of its begin"
    return "" if stages > 1 else "it was trained on one stage only"


def cancel(job: Any) -> None:
    """End a job that went wrong, so that the next one has the peers."""
    from ravnest_p2p.core.errors import RavnestError

    try:
        if job is not None:
            job.cancel()
    except RavnestError:
        pass  # it is over already


if __name__ == "__main__":
    sys.exit(main())
