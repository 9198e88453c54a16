"""The losses of a job as this peer's last stage reported them, kept over restarts.

Problem: a run of weeks outlives workers and daemons, and its loss curve is what people judge it by.
Solution: a text file of batches and losses beside the job's folder, where no worker can reach it: appended to
as losses come, and written anew (temporary file, renamed) where training is taken up at an earlier batch, or
where it is long: then one point stays of each 2, 4, 8, … batches. It is no state that training needs: a disk
that cannot be written costs the curve alone.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ravnest_p2p.core.types import JobId

log = logging.getLogger(__name__)

MAX_POINTS = 20_000
MAX_BATCH = 1 << 53
MAX_FILE_BYTES = 64 * MAX_POINTS
RECENT_BATCHES = 20
"""One batch's loss alone jumps about."""

_LINE = re.compile(r"([0-9]{1,16}),([-+0-9.e]{1,32})\n", re.ASCII)


def curve_path(jobs_folder: Path, job: JobId) -> Path:
    """Where a job's curve lies."""
    return jobs_folder / f"losses-{job[:16]}.csv"


class LossCurve:
    """Loss by batch.

    Args:
        path: is read, where it is there; what is no point in it is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._points = _read(path)
        self._newest = dict(sorted(self._points.items())[-RECENT_BATCHES:])
        self._stride = 1

    def add(self, points: Iterable[tuple[int, float]]) -> None:
        """Take what a worker reported; what is no loss of a batch is left out."""
        sound = {b: loss for b, loss in points if 0 <= b < MAX_BATCH and math.isfinite(loss)}
        if not sound:
            return
        self._newest = dict(sorted({**self._newest, **sound}.items())[-RECENT_BATCHES:])
        new = _one_of_each(sound, self._stride, {batch // self._stride for batch in self._points})
        self._points |= new
        if len(self._points) <= MAX_POINTS:
            self._write("a", new)
            return
        while len(self._points) > MAX_POINTS // 2:
            self._stride *= 2
            self._points = _one_of_each(self._points, self._stride, set())
        self._write_anew()

    def cut(self, batch: int) -> None:
        """Forget what is about to be trained again: `batch` and those after."""
        self._newest = {b: loss for b, loss in self._newest.items() if b < batch}
        kept = {b: loss for b, loss in self._points.items() if b < batch}
        if len(kept) < len(self._points):
            self._points = kept
            self._write_anew()

    def shown(self, most: int) -> tuple[tuple[int, float], ...]:
        """At most so many points, evenly spread."""
        return thinned({**self._points, **dict(list(self._newest.items())[-1:])}, most)

    @property
    def recent(self) -> float | None:
        """Mean over the newest batches, None for an empty curve."""
        return sum(self._newest.values()) / len(self._newest) if self._newest else None

    def _write_anew(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        if self._write("w", self._points, temporary):
            temporary.replace(self._path)

    def _write(self, mode: str, points: Mapping[int, float], path: Path | None = None) -> bool:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (path or self._path).open(mode) as file:
                file.writelines(f"{batch},{loss!r}\n" for batch, loss in points.items())
        except OSError as error:
            log.warning("the losses in %s cannot be written: %s", self._path.name, error)
            return False
        return True


def _one_of_each(points: Mapping[int, float], stride: int, taken: set[int]) -> dict[int, float]:
    """The first point of each `stride` batches that are not taken."""
    found: dict[int, float] = {}
    for batch, loss in sorted(points.items()):
        if batch // stride not in taken:
            taken.add(batch // stride)
            found[batch] = loss
    return found


def thinned(curve: Mapping[int, float], most: int) -> tuple[tuple[int, float], ...]:
    """At most `most` points of a curve, evenly spread, the newest always among them."""
    points = sorted(curve.items())
    stride = max(1, -(-len(points) // most))
    kept = points[::-1][::stride][::-1]
    return tuple(kept)


def _read(path: Path) -> dict[int, float]:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            lines = file.read(MAX_FILE_BYTES).splitlines(keepends=True)
    except OSError:
        return {}
    points = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        loss = _number(found[2]) if found else math.nan
        if found and math.isfinite(loss):
            points[int(found[1])] = loss
    return points


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
