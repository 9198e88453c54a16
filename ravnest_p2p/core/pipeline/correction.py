"""What is done about micro-batches that start before an update and end after it, by name.

Problem: the weights of their forward are gone when their backward comes, and both are older than the batch
that their gradients go into. Three answers, from the best to the cheapest:

* "speculative": forward and backward on the optimizer's own next step, computed early;
* "stash": forward and backward on a copy of the weights before the update. The gradient is a true one, of
  weights one update old;
* "none": no copy at all. Forward before the update, backward through the weights after it; what comes out is
  the gradient of neither.
"""

from __future__ import annotations

SPECULATIVE, STASH, NONE = "speculative", "stash", "none"
CORRECTIONS = (SPECULATIVE, STASH, NONE)


def correction_bytes(correction: str, param_bytes: int, carried_bytes: int = 0) -> int:
    """Bytes of one copy of a stage's weights that the correction keeps.

    Args:
        param_bytes: of the parameters, in float32.
        carried_bytes: those of them, at most, that also cross a cut; they are kept in full.
    """
    match correction:
        case "none":
            return 0
        case "stash":
            return param_bytes
    return (param_bytes + min(param_bytes, carried_bytes) + 1) // 2
