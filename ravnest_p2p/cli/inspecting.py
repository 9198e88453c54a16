"""`ravnest inspect`: what a model needs and how it would be split, before any swarm is asked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ravnest_p2p.core.planning.recompute import CHECKPOINTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ravnest_p2p.core.types import Capability
    from ravnest_p2p.model.package import Package
    from ravnest_p2p.model.report import Report
    from ravnest_p2p.model.requirements import Terms

EXAMPLES = """examples:
  ravnest inspect examples/cnn/train.py --stages 2
  ravnest inspect big.py:llama --without-weights --memory 24GB --memory 16GB --memory 16GB
  ravnest peers --json > peers.json && ravnest inspect train.py --peers peers.json --svg split.svg

The function returns a JobRequest, as for `ravnest submit`, or a tuple
(model, example_inputs, loss, example_labels); inputs and labels are tuples of tensors, one micro-batch each.
A folder that `Package.save` wrote is only read: nothing in it runs.

--without-weights builds the model on torch's meta device: shapes without numbers, so that a model of any size
can be looked at. Nothing is compared with eager then.
"""

WANTED = "write one that returns a JobRequest, or a tuple (model, example_inputs, loss, example_labels)"


def add_to(commands: Any) -> None:
    """Register the command."""
    command = commands.add_parser(
        "inspect",
        help="show what a model needs and how it would be split",
        description="Show what a model needs of its peers and how it would be split; asks no swarm.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "file",
        metavar="FILE[:FUNCTION]",
        help="Python file and function (default: job), or folder of a saved package",
    )
    over = command.add_mutually_exclusive_group()
    over.add_argument("--stages", type=int, metavar="N", help="split over N equal peers (default: 2)")
    over.add_argument("--peers", metavar="FILE", help="split over these: what `ravnest peers --json` prints")
    over.add_argument(
        "--memory", action="append", metavar="SIZE", help="split over peers of equal speed with this memory; "
        "repeat it for each peer",
    )  # fmt: skip
    command.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="default: %(default)s")
    command.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default=None,
        help="which stages recompute their activations in the backward pass instead of keeping them "
        "(default: what the job says, else auto: those that do not fit otherwise)",
    )  # fmt: skip
    command.add_argument(
        "--without-weights", action="store_true", help="build the model by shapes alone, whatever its size"
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="time one layer of each kind here, rather than count operations",
    )
    command.add_argument("--svg", metavar="FILE", help="draw the split into this file")
    command.add_argument("--json", action="store_true", help="answer in JSON")
    command.set_defaults(work=None)


def run(options: argparse.Namespace) -> int:
    """Do what was asked.

    Raises:
        ConfigError, CaptureError, PlanningError: the user's fault, with its cause and fix.
    """
    from ravnest_p2p.cli import output
    from ravnest_p2p.cli.inspect_view import print_report

    job = load(options.file, without_weights=options.without_weights)
    report = _report(job, options)
    if options.svg:
        from ravnest_p2p.model.report_svg import svg_of

        output.write_text(options.svg, svg_of(report, job.name))
    if options.json:
        output.print_json({"name": job.name, **report.as_dict()})
    else:
        print_report(report, job.name)
    return 0


@dataclass(frozen=True)
class Inspected:
    """What the user's function gave."""

    name: str
    model: nn.Module | Package
    inputs: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    loss: Callable[..., Tensor] | None
    terms: Terms
    stages: int = 0

    def captured(self, *, without_weights: bool) -> Package:
        """The model as a package; without weights where it has none."""
        from ravnest_p2p.model import Package, capture, capture_without_weights, is_weightless

        if isinstance(self.model, Package):
            return self.model
        by = capture_without_weights if without_weights or is_weightless(self.model) else capture
        return by(self.model, self.inputs, loss=self.loss, example_labels=self.labels)


def load(argument: str, *, without_weights: bool = False) -> Inspected:
    """Call the user's function and look at what it gives, or read a saved package, which runs nothing.

    Raises:
        ConfigError: no such file or function, or it gives something else than what is wanted.
        PackageError: the folder is no package, or one that is refused.
    """
    import torch
    from torch import nn

    from ravnest_p2p.cli.job_file import load_made
    from ravnest_p2p.client.request import JobRequest
    from ravnest_p2p.core.errors import ConfigError
    from ravnest_p2p.model.package import Package
    from ravnest_p2p.model.requirements import Terms

    if Path(argument).expanduser().is_dir():
        return Inspected(Path(argument).name, Package.load(argument), (), (), None, Terms())
    with torch.device("meta") if without_weights else nullcontext():
        where, made = load_made(argument, WANTED)
    if isinstance(made, JobRequest):
        inputs, labels = _examples(made)
        terms = Terms(
            made.optimizer,
            "fp32",
            made.microbatches_per_update,
            made.staleness_bound,
            made.checkpoint_word,
        )
        return Inspected(_named(made), made.model, inputs, labels, made.loss, terms, made.stages)
    if not isinstance(made, tuple) or len(made) != 4 or not isinstance(made[0], nn.Module):
        got = f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__
        raise ConfigError(f"{where} returned {got}; {WANTED}")
    model, inputs, loss, labels = made
    return Inspected(
        type(model).__name__, model, _tensors(inputs, where), _tensors(labels, where), loss, Terms()
    )


def peers_from(path: Path) -> list[Capability]:
    """Peers from a JSON file: a list of objects with "memory_bytes" or "memory", and what else is known.

    Raises:
        ConfigError: no such file, or an entry that makes no sense.
    """
    from ravnest_p2p.core.errors import ConfigError

    try:
        entries = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} is not a list of peers; `ravnest peers --json` prints one")
    return [_peer(entry, n, path) for n, entry in enumerate(entries)]


def _peer(entry: Any, n: int, path: Path) -> Capability:
    from ravnest_p2p.cli.ravnestd import parse_size
    from ravnest_p2p.core.capability import checked
    from ravnest_p2p.core.errors import ConfigError, RecordFormatError
    from ravnest_p2p.model.fitting import a_peer

    wanted = (
        f"peer {n} of {path}: write an object such as " + '{"memory": "4GB", "flops": 2e10, "up_bps": 2e7}'
    )
    if not isinstance(entry, dict) or not entry.keys() & {"memory", "memory_bytes"}:
        raise ConfigError(wanted)
    memory = entry.get("memory_bytes")
    known = {key: entry[key] for key in ("flops", "up_bps", "down_bps") if entry.get(key) is not None}
    try:
        size = parse_size(str(entry["memory"])) if memory is None else memory
        return checked(a_peer(str(entry.get("peer") or f"peer {n}"), memory_bytes=size, **known))
    except (RecordFormatError, ConfigError) as error:
        raise ConfigError(f"{wanted} ({error})") from None


def _report(job: Inspected, options: argparse.Namespace) -> Report:
    from ravnest_p2p.cli.ravnestd import parse_size
    from ravnest_p2p.model.fitting import a_peer
    from ravnest_p2p.model.profile import measured_layers

    package = job.captured(without_weights=options.without_weights)
    checkpoint = options.checkpoint or job.terms.checkpoint
    terms = replace(job.terms, precision=options.precision, checkpoint=checkpoint)
    layers = measured_layers(package.program) if options.measure else None
    if options.peers:
        return package.report(terms, peers=peers_from(Path(options.peers).expanduser()), layers=layers)
    if options.memory:
        sizes = map(parse_size, options.memory)
        peers = [a_peer(f"peer {n}", memory_bytes=size) for n, size in enumerate(sizes)]
        return package.report(terms, peers=peers, layers=layers)
    stages = options.stages or job.stages or min(2, len(package.layers))
    return package.report(terms, stages=stages, layers=layers)


def _examples(request: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One micro-batch of the request's data; of shapes without numbers, zeros."""
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset, Subset

    from ravnest_p2p.client.prepare import columns_of

    size = request.microbatch_size
    data = request.data
    if isinstance(data, Dataset):
        data = Subset(data, range(min(size, len(data))))  # type: ignore[arg-type]
    elif isinstance(data, (tuple, list)):
        rows = [column[:size] for column in data]
        data = tuple(
            torch.zeros_like(r, device="cpu") if isinstance(r, Tensor) and r.is_meta else r for r in rows
        )
    columns = tuple(column[:size] for column in columns_of(replace(request, data=data), lambda line: None))
    return columns[: len(columns) - request.labels], columns[len(columns) - request.labels :]


def _named(request: Any) -> str:
    return request.name or type(request.model).__name__


def _tensors(values: Any, where: str) -> tuple[Tensor, ...]:
    from torch import Tensor

    from ravnest_p2p.core.errors import ConfigError

    held = (values,) if isinstance(values, Tensor) else values
    if not isinstance(held, (tuple, list)) or not all(isinstance(value, Tensor) for value in held):
        raise ConfigError(f"{where}: inputs and labels are no tuples of tensors; {WANTED}")
    return tuple(held)
