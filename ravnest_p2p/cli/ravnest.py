"""`ravnest`: ask a swarm to train, watch, and fetch the result, from the command line.

Exit codes: 0 well, 1 a fault of ours, 2 the user's, 3 the swarm's, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ravnest_p2p.cli import inspecting, planning, tracing
from ravnest_p2p.core.averaging import AUTO, AVERAGINGS
from ravnest_p2p.core.compression import COMPRESSIONS
from ravnest_p2p.core.planning.overlap import OVERLAPS

if TYPE_CHECKING:
    from ravnest_p2p.client.swarm import Swarm

_EPILOG = """examples:
  ravnest peers
  ravnest epoch
  ravnest inspect examples/cnn/train.py --stages 2
  ravnest plan instance.json --out plan.json --explain
  ravnest submit examples/cnn/train.py --follow
  ravnest jobs --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…
  ravnest fetch 5aafd19aa8bd --out model.safetensors

Without --peer the ravnestd on this computer is asked. A job may be named by the beginning of its id.
Exit codes: 0 well, 1 a fault of ours, 2 of the user, 3 of the swarm, 130 interrupted.
"""


_CHOOSABLE = ("name", "passes", "stages", "clusters", "seed", "compression", "averaging", "overlap")
"""Settings of a job that flags replace."""

_WITHOUT_SWARM = {"inspect": inspecting, "plan": planning}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    from ravnest_p2p.cli import output  # after --help, which should not wait for torch

    try:
        return _run(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("RAVNEST_DEBUG"):
            raise
        return output.fail(error)


def _run(options: argparse.Namespace) -> int:
    if options.command in _WITHOUT_SWARM:
        code: int = _WITHOUT_SWARM[options.command].run(options)
        return code
    from ravnest_p2p.client.swarm import connect

    if options.command == "submit":
        from ravnest_p2p.cli.job_file import load_request

        options.request = load_request(options.file)
    with connect(*options.peer) as swarm:
        work: Callable[[Swarm, argparse.Namespace], None] = options.work
        work(swarm, options)
    return 0


def _peers(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import output

    peers = swarm.peers()
    output.print_json(peers) if options.json else output.print_peers(_console(), peers)


def _epoch(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import output
    from ravnest_p2p.cli.epoch_view import print_epoch

    epoch = swarm.epoch()
    output.print_json(epoch) if options.json else print_epoch(_console(), epoch)


def _jobs(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import output

    jobs = swarm.jobs()
    if options.json:
        output.print_json([job.model_dump(mode="json") for job in jobs])
    else:
        output.print_jobs(_console(), jobs)


def _submit(swarm: Swarm, options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ravnest_p2p.cli import output

    chosen = {name: getattr(options, name) for name in _CHOOSABLE}
    request = replace(options.request, **{name: value for name, value in chosen.items() if value is not None})
    job = swarm.submit_request(request, say=_say(options))
    if options.json:
        output.print_json({"job": job.id, "advice": list(job.advice)})
    else:
        print(job.id, flush=True)
    if options.follow:
        _follow(swarm, job.id, options)


def _status(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import live, output

    job = swarm.job(options.job)
    if options.follow:
        _follow(swarm, job.id, options)
    elif options.json:
        output.print_json(job.status().model_dump(mode="json"))
    elif options.losses:
        for batch, loss in job.status().losses:
            print(f"{batch},{loss}")
    else:
        _console().print(live.render(job.status()))


def _follow(swarm: Swarm, name: str, options: argparse.Namespace) -> None:
    """Show news until the job is over, and raise if it ended badly."""
    from rich.live import Live

    from ravnest_p2p.cli import live, output
    from ravnest_p2p.core.errors import JobError
    from ravnest_p2p.core.types import JobPhase

    job, console = swarm.job(name), _console()
    progress = job.status()
    if console.is_terminal and not options.json:
        with Live(live.render(progress), console=console, refresh_per_second=4) as screen:
            for progress in job.follow():
                screen.update(live.render(progress))
    else:
        for progress in job.follow():
            if options.json:
                output.print_json(progress.model_dump(mode="json"))
            else:
                print(live.line(progress), flush=True)
    if progress.phase is not JobPhase.DONE:
        raise JobError(
            f"job {job.id[:12]} ended {progress.phase.value}: {progress.reason or 'no reason was given'}"
        )


def _logs(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import output

    source = swarm.job(options.job) if options.job else swarm
    lines = source.logs(after=options.after, limit=options.limit)
    output.print_json(lines) if options.json else output.print_logs(_console(), lines)


def _cancel(swarm: Swarm, options: argparse.Namespace) -> None:
    from ravnest_p2p.cli import output

    job = swarm.job(options.job)
    job.cancel()
    output.print_json({"job": job.id, "cancelled": True}) if options.json else print(f"cancelled {job.id}")


def _fetch(swarm: Swarm, options: argparse.Namespace) -> None:
    from pathlib import Path

    from ravnest_p2p.cli import output
    from ravnest_p2p.training.tensorfile import write_tensors

    job, path = swarm.job(options.job), Path(options.out).expanduser()
    if not path.parent.is_dir():
        from ravnest_p2p.core.errors import ConfigError

        raise ConfigError(f"there is no folder {path.parent}")
    state = job.result(options.timeout, say=_say(options))
    write_tensors(path, state, {"format": "pt", "job": job.id})
    size_bytes = path.stat().st_size
    if options.json:
        output.print_json({"job": job.id, "file": str(path), "tensors": len(state), "size_bytes": size_bytes})
    else:
        print(f"{path}: {len(state)} tensors, {size_bytes} bytes")


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    """Steps go to the error stream, so that the output stays what was asked for."""
    if options.json:
        return lambda line: None
    return lambda line: print(line, file=sys.stderr, flush=True)


def _console() -> Any:
    from rich.console import Console

    return Console()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ravnest",
        description="Have PyTorch models trained by a swarm of ordinary PCs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a peer to enter by, /ip4/…/tcp/…/p2p/…; may be given several times "
        "(default: the ravnestd on this computer)",
    )
    common.add_argument("--json", action="store_true", help="answer in JSON")

    def add(name: str, work: Callable[[Any, argparse.Namespace], None], text: str, example: str) -> Any:
        command = commands.add_parser(
            name,
            parents=[common],
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(work=work)
        return command

    add("peers", _peers, "list the peers of the swarm", "ravnest peers --json")
    add("epoch", _epoch, "show who leads, what is planned, and who refused what", "ravnest epoch --json")
    add("jobs", _jobs, "list the jobs of the swarm", "ravnest jobs")
    for asks_no_swarm in _WITHOUT_SWARM.values():
        asks_no_swarm.add_to(commands)
    submit = add("submit", _submit, "submit a job", "ravnest submit examples/cnn/train.py --follow")
    submit.add_argument(
        "file",
        metavar="FILE[:FUNCTION]",
        help="Python file whose function (default: job) returns a JobRequest",
    )
    submit.add_argument("--follow", action="store_true", help="show the job until it is over")
    submit.add_argument("--name", help="shown to people")
    for name in ("passes", "stages", "clusters", "seed"):
        submit.add_argument(
            f"--{name}", type=int, metavar="N", help=f"instead of the {name} that the file asks for"
        )
    submit.add_argument(
        "--compression",
        choices=COMPRESSIONS,
        help="of what crosses between stages, instead of what the file asks for",
    )
    submit.add_argument(
        "--averaging",
        choices=(AUTO, *AVERAGINGS),
        help="what clusters send each other to average, instead of what the file asks for",
    )
    submit.add_argument(
        "--overlap",
        choices=OVERLAPS,
        help="whether clusters train while they average, instead of what the file asks for",
    )
    status = add("status", _status, "show a job", "ravnest status 5aafd19aa8bd --follow")
    status.add_argument("job", help="its id, or the beginning of it")
    status.add_argument("--follow", action="store_true", help="go on showing it until it is over")
    status.add_argument(
        "--losses",
        action="store_true",
        help="show the loss curve alone, batch,loss on each line, at most 1000 of them evenly spread",
    )
    logs = add(
        "logs",
        _logs,
        "show log lines of a job, or of the peer itself",
        "ravnest logs 5aafd19aa8bd --after 120",
    )
    logs.add_argument("job", nargs="?", help="a job's id, or the beginning of it")
    logs.add_argument("--after", type=int, default=0, metavar="SEQ", help="only lines with a higher number")
    logs.add_argument(
        "--limit", type=int, default=200, metavar="N", help="at most so many lines (default: 200)"
    )
    tracing.add_flags(
        add(
            "trace",
            tracing.trace,
            "show what each stage of a job did and when",
            "ravnest trace 5aafd19aa8bd --out trace.json --last 5",
        )
    )
    cancel = add("cancel", _cancel, "stop a job that you submitted", "ravnest cancel 5aafd19aa8bd")
    cancel.add_argument("job", help="its id, or the beginning of it")
    fetch = add(
        "fetch", _fetch, "save a job's trained model", "ravnest fetch 5aafd19aa8bd --out model.safetensors"
    )
    fetch.add_argument("job", help="its id, or the beginning of it")
    fetch.add_argument("--out", required=True, metavar="FILE", help="safetensors file to write")
    fetch.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="wait so long for the job to be done (default: 10)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
