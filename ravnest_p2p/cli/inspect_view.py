"""The report of a model as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ravnest_p2p.cli.live import bytes_text
from ravnest_p2p.core.planning.memory import StageMemory
from ravnest_p2p.model.report import Report

_STAGES_A_TABLE = 5
_ROWS = {"speculative": "early step ŵ", "carried": "shared weights", "averaging": "rounds of averaging"}


def print_report(report: Report, name: str, console: Console | None = None) -> None:
    """Headline, blocks, split, and what the numbers mean."""
    console = console or Console()
    console.print(_headline(report, name))
    console.print()
    console.print(_blocks(report))
    if report.stages:
        console.print()
        console.print(_split(report))
        console.print()
        for first in range(0, len(report.stages), _STAGES_A_TABLE):
            console.print(_memory(report, first))
        carried = dict.fromkeys(name for stage in report.stages for name in stage.need.carried)
        if carried:
            console.print(Text(_carried(list(carried)), style="dim"))
        console.print(Text(_footnote(report), style="dim"))
        for line in report.advice:
            console.print(Text(f"note: {line}", style="yellow"))


def count_text(count: float) -> str:
    """A number of parameters or operations with its unit's letter."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} P"


def _headline(report: Report, name: str) -> Text:
    terms = report.terms
    text = Text.assemble((name, "bold"), f"  {count_text(report.params)} parameters")
    text.append(f", {len(report.layers)} layers ({report.nodes} operations)")
    text.append(f", {count_text(report.whole.flops)}FLOP a micro-batch of {report.microbatch_size}\n")
    text.append(
        f"{terms.optimizer.name}, {terms.precision}, {terms.microbatches_per_update} micro-batches an"
    )
    text.append(f" update; on one peer: {bytes_text(report.whole.memory.needed)}")
    if report.exact:
        text.append("\ncaptured; two steps equal eager PyTorch to the last bit", style="green")
    elif report.checked:
        text.append("\ncaptured; two steps equal eager PyTorch but for rounding", style="green")
    else:
        text.append("\nby shapes or a saved package alone: not compared with eager PyTorch", style="yellow")
    if report.evaluation_nodes:
        text.append(f"\nevaluation: a second graph of {report.evaluation_nodes} operations")
    else:
        why = report.evaluation_refusal or "the package was saved without"
        text.append(f"\nno evaluation: {why}", style="yellow")
    return text


def _blocks(report: Report) -> Table:
    table = _table("layers", "block", right=("parameters", "work", "activations", "sends"))
    whole = max(report.whole.flops, 1.0)
    for group in report.groups:
        needs = report.layers[group.lo : group.hi]
        times = f"{group.repeats} × " if group.repeats > 1 else ""
        table.add_row(
            _range(group.lo, group.hi),
            Text(f"{times}{group.name or '(no parameters)'}"),
            count_text(sum(need.params for need in needs)),
            f"{100 * sum(need.flops for need in needs) / whole:.1f} %",
            bytes_text(sum(need.memory.activations for need in needs)),
            bytes_text(needs[-1].out_bytes),
        )
    return table


def _split(report: Report) -> Table:
    table = _table("stage", "peer", "layers", "part", right=("parameters", "work", "busy", "τ", "sends"))
    whole = max(report.whole.flops, 1.0)
    for number, stage in enumerate(report.stages):
        need = stage.need
        table.add_row(
            str(number),
            Text(stage.peer),
            _range(need.lo, need.hi),
            Text(need.name),
            count_text(need.params),
            f"{100 * need.flops / whole:.1f} %",
            f"{100 * stage.busy:.0f} %",
            str(stage.staleness),
            bytes_text(need.out_bytes),
        )
    return table


def _memory(report: Report, first: int) -> Table:
    stages = report.stages[first : first + _STAGES_A_TABLE]
    table = _table("memory", right=tuple(f"stage {first + n}" for n in range(len(stages))))
    if any(stage.need.recompute for stage in report.stages):
        again = ["recomputed" if stage.need.recompute else "kept" for stage in stages]
        table.add_row("activations are", *again)
    for kind in StageMemory._fields:
        counts = [getattr(stage.need.memory, kind) for stage in stages]
        if kind in ("carried", "averaging") and not any(counts):
            continue
        sizes = [bytes_text(count) for count in counts]
        table.add_row(_ROWS.get(kind, kind), *sizes)
    table.add_row("peak, exact", *(bytes_text(stage.need.peak_bytes) for stage in stages))
    needed = [Text(bytes_text(stage.need.memory.needed), style="bold") for stage in stages]
    table.add_row(Text("needed", style="bold"), *needed)
    offers = [stage.offered_bytes for stage in stages]
    if any(offer is not None for offer in offers):
        table.add_row("offered", *(bytes_text(offer or 0) for offer in offers))
    return table


def _carried(names: list[str]) -> str:
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return (
        f"shared weights: {listed}, used by several stages; it goes to the later ones once for each version, "
        "and its gradient comes back with every micro-batch."
    )


def _footnote(report: Report) -> str:
    return (
        f"balance {100 * report.balance:.0f} %: mean of the stages' times over the slowest. "
        "peak: of these and of what a backward needs beside. "
        "needed: these × 1.6 (resident size), and 315 MB for the worker."
    )


def _range(lo: int, hi: int) -> str:
    return str(lo) if hi == lo + 1 else f"{lo}–{hi - 1}"


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table
