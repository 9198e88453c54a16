"""What clusters send each other to average, and what is done with the mean: what a job may say of it.

Problem: parameters as they are need no state and no trust in a codec, but four bytes each; differences since
the last mean take a quarter of that and less, and allow an outer optimizer, but need the last mean to the
bit. Solution: a job names one way, which all members know before the first round, so that no frame has to.
"""

from __future__ import annotations

import math

from ravnest_p2p.core.compression import FP16, INT4, INT8, encoded_bytes
from ravnest_p2p.core.compression import NONE as EXACT
from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.robust import MEAN, MEANS

PARAMETERS, DIFFERENCES, SPARSE = "parameters", "differences", "sparse"
AVERAGINGS = (PARAMETERS, DIFFERENCES, FP16, INT8, INT4, SPARSE)
"""Parameters in float32; differences in float32, and in codecs of ever fewer bytes."""
AUTO = "auto"
"""What a job wants that leaves the choice to `chosen`."""

NONE, SGD, NESTEROV = OUTERS = ("none", "sgd", "nesterov")
"""What is done with the mean difference: taken as it is, or as a gradient."""

FIXED, ADAPTIVE = KAPPAS = ("fixed", "adaptive")
"""Whether every round is averaged, or as often as `core.kappa` finds while clusters train."""

MAX_OUTER_LR = 100.0

SPARSE_SHARE = 1 / 110
"""Of float32's bytes."""


def chosen(wanted: str, kappa: str, outer: str) -> str:
    """What clusters send each other, of `AVERAGINGS`, where a job wants that or `AUTO`.

    Parameters, as the paper has it. Differences in 8 bits for an outer optimizer, which steps with
    differences, and where κ is adaptive: they cost no loss, and with a quarter of the bytes a smaller κ
    serves.
    """
    if wanted != AUTO:
        return wanted
    return INT8 if outer != NONE or kappa == ADAPTIVE else PARAMETERS


def check_averaging(
    averaging: str,
    outer: str,
    lr: float,
    momentum: float,
    kappa: str = FIXED,
    means: str = MEAN,
    moments: bool = False,
) -> None:
    """Whether a job's words and numbers of averaging belong together.

    Raises:
        ConfigError: they do not; it says what to do.
    """
    if averaging not in AVERAGINGS:
        raise ConfigError(f"unknown averaging {averaging!r:.40}; use {', '.join(AVERAGINGS)}")
    if kappa not in KAPPAS:
        raise ConfigError(
            f"kappa must be {' or '.join(KAPPAS)}, not {kappa!r:.40}; its number is updates_per_round"
        )
    if means not in MEANS:
        raise ConfigError(f"unknown means {means!r:.40}; use {', '.join(MEANS)}")
    if means != MEAN and averaging == SPARSE:
        raise ConfigError(f"means={means!r} compares all values, of which {SPARSE!r} sends few; use {INT8!r}")
    if moments and (averaging == SPARSE or outer != NONE):
        raise ConfigError(
            "average_momentum goes with parameters, or with differences in 8 or 4 bits and more, "
            "and without an outer optimizer"
        )
    if outer not in OUTERS:
        raise ConfigError(f"unknown outer optimizer {outer!r:.40}; use {', '.join(OUTERS)}")
    if not (math.isfinite(lr) and 0 < lr <= MAX_OUTER_LR and 0 <= momentum < 1):
        raise ConfigError(
            f"outer_lr must be above 0 and at most {MAX_OUTER_LR:g}, outer_momentum in [0, 1), "
            f"not {lr!r:.40} and {momentum!r:.40}"
        )
    if outer == NONE and (lr != 1.0 or momentum):
        raise ConfigError(f"outer_lr and outer_momentum need an outer optimizer: {SGD!r} or {NESTEROV!r}")
    if outer != NONE and averaging == PARAMETERS:
        raise ConfigError(
            f"an outer optimizer steps with differences: set averaging to {DIFFERENCES!r}, or a codec of them"
        )


def has_owners(averaging: str, means: str) -> bool:
    """Whether each chunk goes to an owner and back, and not along a ring: where it loses by being encoded
    again, or where all parts have to be seen side by side."""
    return averaging != PARAMETERS or means != MEAN


def bytes_share(averaging: str, moments: bool) -> float:
    """Bytes of a round, as a share of those of parameters in float32.

    Args:
        moments: of the optimizer are averaged too.
    """
    if averaging == SPARSE:
        return SPARSE_SHARE
    many = 1 << 20
    codec = EXACT if averaging in (PARAMETERS, DIFFERENCES) else averaging
    return (1 + moments) * encoded_bytes(codec, many) / encoded_bytes(EXACT, many)


def copies(averaging: str, outer_momentum: float, moments: bool) -> int:
    """Of a stage's parameters, that its rounds work in: the copy that becomes the mean; for differences the
    last mean and what is owed, too; and an outer optimizer's momentum. As many of moments."""
    return (1 + moments) * (1 if averaging == PARAMETERS else 3 + bool(outer_momentum))
