"""Is every odd model captured right, or refused with its cause, and none captured wrongly?

"right" means bit-identical to eager over four steps, on data that the capture has not seen.
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import Goal
from benchmarks.zoo.odd import ODD, make_odd
from benchmarks.zoo.stepping import difference, train_eager, train_stages
from ravnest_p2p.core.errors import CaptureError
from ravnest_p2p.model import capture

STEPS = 4


def run(only: tuple[str, ...], quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    """Rows by odd model, and the goals over all."""
    rows = {name: verdict(name) for name in ODD if not only or name in only}
    verdicts = [row["verdict"] for row in rows.values()]
    return rows, [
        Goal("odd models captured wrongly", verdicts.count("WRONG"), "models", "<= 0"),
        Goal("odd models that crash capture", verdicts.count("CRASH"), "models", "<= 0"),
        Goal("odd models right or refused", len(verdicts), "models", f">= {min(28, len(rows))}"),
    ]


def verdict(name: str) -> dict[str, str]:
    """One odd model: right, refused, WRONG or CRASH, and what was said."""
    case = make_odd(name)
    try:
        package = capture(case.model, case.inputs, loss=case.loss, example_labels=case.labels)
    except CaptureError as error:
        return {"verdict": "refused", "message": str(error)}
    except Exception as error:
        return {"verdict": "CRASH", "message": f"{type(error).__name__}: {error}"}
    found = difference(
        train_stages(case, package, [], STEPS, reseed=False), train_eager(make_odd(name), STEPS)
    )
    return {"verdict": "WRONG" if found else "right", "message": found}
