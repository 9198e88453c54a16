"""What the tests of compiling start: a worker's process behind its walls that compiles and trains one stage.

Prints one JSON object: what was compiled, how far its gradients are from the loop's, and the outcomes of the
attempts to get out, all of them after compiling.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from ravnest_p2p.daemon.worker import guard, sandbox
from ravnest_p2p.daemon.worker.sandbox_syscalls import call
from ravnest_p2p.model import StageComputation, capture, split_program
from ravnest_p2p.model.compiled import Compiler, compile_stage, difference
from tests.unit.sandbox_child import of_calls, of_files, outcomes


def spawn_own(job: Path) -> None:
    """A program of one's own, made executable when the file is made."""
    with os.fdopen(os.open(job / "own", os.O_CREAT | os.O_WRONLY, 0o755), "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.posix_spawn(job / "own", ["own"], {})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--compiler", type=Path, nargs="*", default=())
    options = parser.parse_args()
    home: Path = options.home
    rooms = sandbox.Rooms(home / "blobs", home / "jobs" / "ours", home / "run" / "w0")
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.GELU(),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 4),
    )
    x, y = torch.randn(4, 8), torch.randn(4, 4)
    package = capture(model, (x,), loss=torch.nn.functional.mse_loss, example_labels=(y,))
    (stage,) = split_program(package.program, [])
    guard.give_up_privileges()
    listener = socket.create_server(("127.0.0.1", 0))
    walls = [sandbox.confine_files(rooms, options.compiler)]
    guard.limit_resources(2 * 10**9, 10**8)
    walls.append(sandbox.confine_calls(bool(options.compiler)))
    torch.set_num_threads(1)
    compiler = Compiler(least_gain=0.0)
    compiled = StageComputation(stage)
    compile_stage(compiled, compiler)
    params = {name: package.weights[name].clone().requires_grad_() for name in stage.params}

    def trained(computation: StageComputation) -> list[torch.Tensor]:
        """Loss, gradients and statistics after two micro-batches."""
        buffers = {name: package.weights[name].clone() for name in stage.buffers}
        for _ in range(2):
            (loss,) = computation.forward(params, buffers, (), {"x0": x, "y0": y}, 0)
            grads = torch.autograd.grad(loss, list(params.values()))
        return [loss, *grads, *buffers.values()]

    off = difference(trained(compiled), trained(StageComputation(stage)))
    more = {
        "leave the group": lambda: os.setsid(),
        "lead a group": lambda: os.setpgid(0, 0),
        "fork into other views": lambda: call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "start a shell": lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "true"], {}),
        "start what it wrote": lambda: spawn_own(rooms.job),
    }
    found = {
        "walls": "; ".join(walls),
        "compiled": compiler.compiled,
        "why_not": compiler.why_not,
        "off": off,
        "outcomes": outcomes(of_files(home, rooms.job)) | outcomes(of_calls(home, listener)) | outcomes(more),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
