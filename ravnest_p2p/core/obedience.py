"""Fencing at the worker: one generation at a time, and never an older one.

Problem: after a partition two leaders may command the same worker, and frames of a dissolved cluster arrive
late. Solution: a worker obeys one `Generation`, only a higher (epoch, term) replaces it, and every message
that names another one is refused. The tag is compared for equality alone: two generations of one fence are
strangers, neither is higher.
"""

from __future__ import annotations

from .errors import StaleGenerationError
from .types import Fence, Generation


def fence_of(generation: Generation) -> Fence:
    """The fencing number of the plan that formed the generation."""
    return Fence(generation.epoch, generation.term)


class Obedience:
    """What one worker obeys.

    Args:
        floor: highest fence obeyed before a restart. A restarted worker has lost its state, so even the
            generation of this very fence is refused.
    """

    def __init__(self, floor: Fence | None = None) -> None:
        self._floor = floor
        self._generation: Generation | None = None

    @property
    def generation(self) -> Generation | None:
        """The generation obeyed now, or None."""
        return self._generation

    @property
    def floor(self) -> Fence | None:
        """Highest fence ever obeyed; to be kept over restarts."""
        return self._floor

    def obey(self, generation: Generation) -> bool:
        """Take up a generation if it is higher than any before.

        Returns:
            Whether the worker obeys it now; True again for the one that it obeys already.
        """
        if generation == self._generation:
            return True
        fence = fence_of(generation)
        if self._floor is not None and fence <= self._floor:
            return False
        self._generation, self._floor = generation, fence
        return True

    def check(self, generation: Generation) -> None:
        """Let a message of the obeyed generation pass.

        Raises:
            StaleGenerationError: it belongs to another generation (remote's fault).
        """
        if generation != self._generation:
            raise StaleGenerationError(
                f"message of generation {generation}, this worker obeys {self._generation}"
            )

    def stop(self) -> None:
        """Obey nothing until a higher generation comes; the floor stays."""
        self._generation = None
