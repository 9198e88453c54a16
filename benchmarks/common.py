"""What every benchmark shares: its goals, its machine, its two kinds of output and its exit status."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """One figure and what it should be.

    Attributes:
        goal: such as "<= 1.05".
    """

    name: str
    value: float
    unit: str
    goal: str

    @property
    def holds(self) -> bool:
        relation, bound = self.goal.split()
        return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)


def machine() -> dict[str, Any]:
    """Cores, versions and threads that the figures belong to."""
    import torch

    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """Short hash of the checked-out commit, with "+" where files differ from it; "" outside of git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def report(benchmark: str, results: Mapping[str, Any], goals: Sequence[Goal], as_json: bool) -> int:
    """Print the report; returns the exit status, 0 where every goal holds, else 1."""
    if as_json:
        document = {
            "benchmark": benchmark,
            "commit": commit(),
            "machine": machine(),
            "results": results,
            "goals": [{**asdict(goal), "holds": goal.holds} for goal in goals],
        }
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        console = Console(soft_wrap=True)
        for section, rows in results.items():
            console.print(_table(section, rows))
        table = Table("goal", "value", "unit", "wanted", "", title="goals")
        for goal in goals:
            table.add_row(
                goal.name, f"{goal.value:g}", goal.unit, goal.goal, "ok" if goal.holds else "MISSED"
            )
        console.print(table)
    return 0 if all(goal.holds for goal in goals) else 1


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        table.add_row(name, *(_shown(row.get(column, "")) for column in columns))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return str(value)
