"""Is each architecture captured as it is, and trained alike on one stage and on two, three and four?"""

from __future__ import annotations

from typing import Any

from benchmarks.common import Goal
from benchmarks.zoo import ARCHITECTURES, UNTIED, make
from benchmarks.zoo.stepping import difference, train_eager, train_stages
from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import Package, capture

STEPS = 2
STAGES = (2, 3, 4)
IDENTICAL = "identical"


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by architecture, and the goals over the 18; variants with an untied head are rows only."""
    rows = {name: check(name) for name in [*ARCHITECTURES, *UNTIED] if not only or name in only}
    counted = [row for name, row in rows.items() if name in ARCHITECTURES]
    cut = [row["stages"].get(str(s), "") for row in rows.values() for s in STAGES]
    whole = sum(row["captured"] == IDENTICAL for row in counted)
    everywhere = sum(all(row["stages"].get(str(s)) == IDENTICAL for s in STAGES) for row in counted)
    wrong = sum(text.startswith("differs") for text in cut)
    wanted = f">= {len(counted)}"
    return rows, [
        Goal("architectures captured bit-identical to eager", whole, "architectures", wanted),
        Goal("architectures bit-identical in 2, 3 and 4 stages", everywhere, "architectures", wanted),
        Goal("splits that differ from the unsplit program", wrong, "splits", "<= 0"),
    ]


def check(name: str) -> dict[str, Any]:
    """One architecture: sizes, and "identical", what differs, or why it cannot be cut so."""
    case = make(name)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in case.model.parameters())}
    try:
        package = capture(
            case.model, case.inputs, loss=case.loss, example_labels=case.labels, evaluation=False
        )
    except CaptureError as error:
        return row | {"nodes": 0, "layers": 0, "captured": f"refused: {error}", "stages": {}}
    layers = len(package.layers)
    found = difference(train_stages(case, package, [], STEPS, reseed=False), train_eager(make(name), STEPS))
    row |= {"nodes": len(package.program.nodes), "layers": layers}
    row["captured"] = f"differs: {found}" if found else IDENTICAL
    whole = train_stages(case, package, [], STEPS)
    row["stages"] = {}
    for count in STAGES:
        if layers < count:
            row["stages"][str(count)] = _why(package)
            continue
        cuts = [layers * s // count for s in range(1, count)]
        found = difference(train_stages(case, package, cuts, STEPS), whole)
        row["stages"][str(count)] = f"differs: {found}" if found else IDENTICAL
    return row


def _why(package: Package) -> str:
    names = package.program.cut_map.holding()
    held = {group[0]: " = ".join(group) for group in package.tied}
    kept = f", kept together by {held.get(names[0], names[0])}" if names else ""
    return f"{len(package.layers)} layers{kept}"
