"""Of a batch that is too small for its pipeline it is said what that costs, and what would do."""

from __future__ import annotations

import pytest

from ravnest_p2p.core.pipeline.batch_advice import batch_advice, pipeline_advice


@pytest.mark.parametrize(
    ("m", "bound", "stages"),
    [(4, None, 1), (4, None, 2), (4, None, 3), (6, None, 4), (6, 3, 4), (16, 8, 4), (1, None, 1), (1, 0, 1)],
)
def test_nothing_is_said_where_all_is_well(m: int, bound: int | None, stages: int) -> None:
    assert pipeline_advice(m, bound, stages) == []


def test_a_small_batch_is_named_with_its_price_and_a_larger_one() -> None:
    (line,) = pipeline_advice(4, 8, 4)
    assert line.startswith("the first of 4 stages runs 3 micro-batches ahead, more than half of m = 4")
    assert "1.9 to 4.4 % more loss at m = stages, about 0.2 % at m ≥ 2τ" in line
    assert line.endswith("microbatches_per_update=6 would do")
    (line,) = pipeline_advice(1, None, 2)
    assert "runs 1 micro-batch ahead" in line


@pytest.mark.parametrize(
    ("m", "bound", "stages", "words", "remedy"),
    [
        (4, None, 4, "needs 4 micro-batches in flight, and staleness_bound = 2 (half of m) allows 3",
         "about 25 % of the time; with microbatches_per_update=6 they would not"),
        (4, 0, 3, "staleness_bound = 0 allows 1",
         "about 67 % of the time; with staleness_bound=2 they would not"),
        (4, 1, 5, "staleness_bound = 1 allows 2",
         "about 60 % of the time; with staleness_bound=4 and microbatches_per_update=8 they would not"),
    ],
)  # fmt: skip
def test_a_bound_that_keeps_staleness_low_is_named_with_the_time_that_it_costs(
    m: int, bound: int | None, stages: int, words: str, remedy: str
) -> None:
    (line,) = pipeline_advice(m, bound, stages)
    assert words in line
    assert line.endswith(remedy)


def test_both_may_be_amiss() -> None:
    worse, idle = pipeline_advice(4, 8, 7)
    assert "runs 4 micro-batches ahead" in worse
    assert "m = 4 allows 5: stages would idle about 29 %" in idle
    assert idle.endswith("with staleness_bound=6 and microbatches_per_update=12 they would not")


@pytest.mark.parametrize("bound", [None, *range(8)])
def test_what_is_proposed_is_enough(bound: int | None) -> None:
    for m in range(1, 12):
        for wanted in range(8):
            lines = batch_advice(m, bound, wanted, "it")
            better = max(m, 2 * wanted) if lines else m
            wider = bound if bound is None or not lines else max(bound, wanted)
            assert batch_advice(better, wider, wanted, "it") == []
