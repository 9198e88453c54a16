"""How long does a peer need to read and check a stranger's program?"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.common import Goal
from benchmarks.zoo import ARCHITECTURES, make
from ravnest_p2p.model import Program, capture

MIN_NODES = 100
"""Programs below have too few nodes for a figure per node; they count in the sum only."""


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by architecture; goals: seconds per 1,000 nodes over all of them, and for the slowest."""
    rows: dict[str, Any] = {}
    for name in ARCHITECTURES:
        if only and name not in only:
            continue
        case = make(name)
        package = capture(
            case.model, case.inputs, loss=case.loss, example_labels=case.labels, evaluation=False
        )
        data, nodes = package.program.to_json(), len(package.program.nodes)
        spent = median(_seconds(data) for _ in range(1 if quick else 5))
        rows[name] = {
            "nodes": nodes,
            "bytes": len(data),
            "load_cpu_s": spent,
            "per_1000_s": 1000 * spent / nodes,
        }
    total = 1000 * sum(r["load_cpu_s"] for r in rows.values()) / sum(r["nodes"] for r in rows.values())
    worst = max((r["per_1000_s"] for r in rows.values() if r["nodes"] >= MIN_NODES), default=total)
    return rows, [
        Goal("load and validate, all together", total, "s per 1000 nodes", "<= 1"),
        Goal(f"load and validate, slowest with {MIN_NODES} nodes or more", worst, "s per 1000 nodes", "<= 1"),
    ]


def _seconds(data: bytes) -> float:
    started = time.process_time()
    Program.from_json(data)
    return time.process_time() - started
