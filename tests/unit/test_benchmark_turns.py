"""Turns of a benchmark's sides: what is counted, and that a side that began anew is not compared."""

import subprocess
import sys

import pytest

from benchmarks.pipelines.turns import BeganAnew, End, Side, Turn, done_in, ratios

TURNS = [Turn("ours" if n % 2 == 0 else "other", float(n), n + 1.0) for n in range(20)]
OURS = TURNS[::2]


def marks(rate: float, turns: list[Turn]) -> list[tuple[float, float]]:
    """Four in each turn."""
    return [
        (turn.begin_s + part / 4, rate * (n + part / 4)) for n, turn in enumerate(turns) for part in range(4)
    ]


def end(*processes: list[tuple[float, float]]) -> End:
    return End(100.0, [{"marks": found} for found in processes])


def test_what_is_done_counts_only_while_a_side_runs() -> None:
    done = done_in(marks(3.0, OURS), OURS, 100.0)
    assert done[:-1] == pytest.approx([3.0] * 9)
    assert done[-1] != done[-1], "the last one was not counted to its end"


def test_what_is_done_before_and_after_the_turns_tells_of_the_first_and_the_last() -> None:
    few = [(-3.0, 0.0), (-0.5, 16.0), (8.5, 32.0), (102.0, 48.0)]
    done = done_in(few, OURS, 100.0)
    assert done[:4] == pytest.approx([16 / 4.5] * 4)
    assert done[5:] == pytest.approx([16 / 7.5] * 5)


def test_sides_are_compared_by_their_rates() -> None:
    ends = {"ours": end(marks(3.0, OURS)), "other": end(*[marks(1.0, TURNS[1::2])] * 2)}
    assert ratios(TURNS, ends)["other"] == pytest.approx((2.0, 3.0))


def test_a_side_that_began_anew_is_not_compared() -> None:
    late = marks(3.0, OURS)[28:]
    with pytest.raises(RuntimeError, match="began anew"):
        ratios(TURNS, {"ours": end(late), "other": end(marks(1.0, TURNS[1::2]))})


STARTS_ANOTHER = f"""
import subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
other = subprocess.Popen([{sys.executable!r}, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print("started", flush=True)
sys.stdin.readline()
"""


def test_a_side_that_starts_a_process_is_found_out() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS_ANOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        side = Side(lambda: [process])
        side.check()
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "started\n"
        with pytest.raises(BeganAnew):
            side.check()
