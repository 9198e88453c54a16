"""The main job, on a swarm of six peers on this computer: `make demo`.

Starts a bootstrap peer and five lending peers, each a real `ravnestd` with its own libp2p daemon and
identity; submits the digits CNN to be trained by two clusters of two stages, the fifth peer being spare;
shows how it goes; fetches the trained model; trains the same model in one plain PyTorch process on the same
batches; and writes both results to `build/demo.json`. Whatever happens, Ctrl+C included, nothing is left
running.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent / "cnn"))
import train as cnn
from local import follow, take_interrupts, wait_for_peers

BUILD = Path(__file__).resolve().parents[1] / "build"
PEERS, CLUSTERS, STAGES = 5, 2, 2
TRAIN_S = 600.0
STOP_S = 3.0

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=cnn.PASSES, help="over the data (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    take_interrupts()
    folder = BUILD / "demo"
    os.environ["RAVNEST_HOME"] = str(folder / "requester")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        results = run(folder, options.passes)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    (BUILD / "demo.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(
        f"\n[bold]test accuracy {results['test_accuracy']:.4f}[/bold] by the swarm, "
        f"{results['baseline_accuracy']:.4f} in one plain PyTorch process on the same batches\n"
        f"{results['samples']} samples in {results['seconds']:.1f} s of training; details in build/demo.json"
    )
    return 0


def run(folder: Path, passes: int) -> dict[str, Any]:
    """The demo; returns what goes into `build/demo.json`."""
    # Imported late, so that Ctrl+C during these seconds meets `main`'s handler.
    import ravnest_p2p as rn
    from ravnest_p2p.testing.local_swarm import LocalSwarm

    request = dataclasses.replace(cnn.job(), passes=passes, clusters=CLUSTERS, stages=STAGES)
    console.print(f"starting a bootstrap peer and {PEERS} lending peers …")
    swarm = LocalSwarm(folder, PEERS, swarm="demo")
    try:
        swarm.start()
        for peer in swarm.all:
            console.print(f"  {peer.name:10} {peer.peer}")
        console.print("while it runs, try in another terminal:")
        console.print(f"  RAVNEST_HOME={swarm.peers[0].home} .venv/bin/ravnest peers", soft_wrap=True)
        with rn.connect(*(peer.address for peer in swarm.peers)) as connection:
            try:
                wait_for_peers(connection, PEERS, folder, console)
                job = connection.submit_request(request, say=console.print)
                progress, seconds = follow(job, TRAIN_S, console)
                state = job.result(timeout_s=60)
                peers = connection.peers()
            except BaseException:
                swarm.interrupt()  # at once: closing the connection may take a moment
                raise
    finally:
        swarm.stop(STOP_S)
    trained = cnn.build_model()
    trained.load_state_dict(state)
    console.print("training the same model in one plain PyTorch process …")
    baseline = train_alone(request)
    return {
        "peers": len(peers),
        "clusters": len(progress.clusters),
        "stages": [len(cluster.stages) for cluster in progress.clusters],
        "samples": progress.samples,
        "seconds": round(seconds, 3),
        "samples_per_s": round(progress.samples / seconds, 1),
        "test_accuracy": cnn.accuracy(trained),
        "baseline_accuracy": cnn.accuracy(baseline),
        "staleness": [[stage.staleness for stage in cluster.stages] for cluster in progress.clusters],
        "stage_busy": [[round(stage.busy, 4) for stage in c.stages] for c in progress.clusters],
        "leader": progress.leader,
        "epoch": progress.epoch,
        "term": progress.term,
        "bytes_sent": progress.bytes_sent,
        "loss": progress.loss,
        "job": job.id,
    }


def train_alone(request: Any) -> torch.nn.Module:
    """Plain PyTorch, one process: the same model, optimizer settings and batches, one after another."""
    from ravnest_p2p.core.ledger import DataOrder

    model = cnn.build_model().train()
    images, labels = request.data
    spec = request.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
    )
    m = request.microbatches_per_update
    order = DataOrder(len(labels), request.microbatch_size, m, seed=request.seed)
    batches = request.passes * len(labels) // (request.microbatch_size * m)
    for batch in range(batches):
        optimizer.zero_grad()
        for k in range(m):
            rows = order.microbatch(batch, k)
            (request.loss(model(images[rows]), labels[rows]) / m).backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    sys.exit(main())
