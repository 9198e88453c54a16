"""Whether a batch has enough micro-batches for its pipeline, and what it costs where it has not.

A pipeline of P stages keeps busy where its first stage runs ahead of an update by τ₀ ≥ P−1 micro-batches.
With m < 2τ₀ most of a batch, or all of it, is computed before the update of the batch before it is complete,
on weights that the optimizer has guessed. A bound below τ₀ prevents that, and stages idle instead.

Source: docs/guide, "m ≥ 2τ", and docs/design, "Asynchronous training that loses nothing" (the figures).
"""

from __future__ import annotations


def half_of(m: int) -> int:
    """The bound on τ of a job that states none."""
    return max(1, m // 2)


def batch_advice(m: int, bound: int | None, wanted: int, whose: str) -> list[str]:
    """What to say of m: nothing, or a line for each thing that is amiss.

    Args:
        m: micro-batches per update.
        bound: the job's on τ; None stands for half of m.
        wanted: τ that keeps the first stage busy.
        whose: what needs it, such as "the first of 4 stages".
    """
    limit = half_of(m) if bound is None else bound
    ahead, larger = min(wanted, limit, m), f"microbatches_per_update={2 * wanted}"
    lines = []
    if m < 2 * ahead:
        lines.append(
            f"{whose} runs {ahead} micro-batch{'es' * (ahead > 1)} ahead, more than half of m = {m}, which "
            "trains worse (a small GPT: 1.9 to 4.4 % more loss at m = stages, about 0.2 % at m ≥ 2τ); "
            f"{larger} would do"
        )
    if ahead < wanted:
        idle = 100 * (1 - (ahead + 1) / (wanted + 1))
        what = f"m = {m}" if m < limit else f"staleness_bound = {limit}{' (half of m)' * (bound is None)}"
        wider = "" if bound is None else f"staleness_bound={wanted}"
        changes = [change for change in (wider, larger if m < 2 * wanted else "") if change]
        lines.append(
            f"{whose} needs {wanted + 1} micro-batches in flight, and {what} allows {ahead + 1}: stages "
            f"would idle about {idle:.0f} % of the time; with {' and '.join(changes)} they would not"
        )
    return lines


def pipeline_advice(m: int, bound: int | None, stages: int) -> list[str]:
    """The same before anything is measured: of so many stages, on links without latency."""
    return batch_advice(m, bound, max(0, stages - 1), f"the first of {stages} stages")
