"""Optimizers as names and numbers: what a peer accepts, the learning rate of an update, what decays.

Problem: the numbers come from a stranger, and every peer of a job has to take them the same way, however the
model is cut. Solution: one check of all of them, which the requester makes before submitting and every peer
on arrival; a rate that is a pure function of the update's number; and a decay that depends on nothing but a
parameter's name and rank.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.core.types import OptimizerSpec

OPTIMIZERS = ("sgd", "adam", "adamw", "muon", "lamb")
SCHEDULES = ("constant", "linear", "cosine", "step")
CLIP_STAGE, CLIP_MODEL = "stage", "model"
PRECISIONS = ("fp32", "bf16")

MAX_NUMBER = 1e6
"""No training uses larger ones, and products of such still fit into a float32."""

MAX_PATTERNS = 32
MAX_PATTERN_CHARS = 128


def check_optimizer(spec: OptimizerSpec) -> None:
    """Refuse numbers with which no peer would train.

    Raises:
        ConfigError: an unknown name, or a number out of its bounds; the message says which bounds.
    """
    _one_of("optimizer", spec.name, OPTIMIZERS)
    _one_of("schedule", spec.schedule, SCHEDULES)
    _bounded("the learning rate", spec.lr)
    _bounded("the learning rate adamw_lr", spec.adamw_lr)
    _bounded("eps", spec.eps)
    _bounded("weight_decay", spec.weight_decay)
    for name, value in (("momentum", spec.momentum), *(("betas", beta) for beta in spec.betas)):
        _need(0.0 <= value < 1.0, f"{name} must be at least 0 and below 1, not {value}")
    _need(
        0.0 <= spec.schedule_factor <= 1.0, f"schedule_factor must be in [0, 1], not {spec.schedule_factor}"
    )
    if spec.clip_norm is not None:
        _bounded("clip_norm", spec.clip_norm)
        _need(spec.clip_norm > 0.0, "clip_norm must be above 0; None does not clip")
    _one_of("clip_scope", spec.clip_scope, (CLIP_STAGE, CLIP_MODEL))
    _need(spec.clip_norm is not None or spec.clip_scope == CLIP_STAGE, "clip_scope needs clip_norm")
    _need(min(spec.warmup_updates, spec.schedule_updates) >= 0, "numbers of updates must not be negative")
    if spec.schedule in ("linear", "cosine"):
        _need(
            spec.schedule_updates > spec.warmup_updates,
            f"schedule {spec.schedule!r} needs schedule_updates above warmup_updates, "
            f"not {spec.schedule_updates} and {spec.warmup_updates}",
        )
    if spec.schedule == "step":
        _need(spec.schedule_updates > 0, "schedule 'step' needs schedule_updates: from one step to the next")
    _need(len(spec.no_decay) <= MAX_PATTERNS, f"no_decay has at most {MAX_PATTERNS} patterns")
    _need(
        all(0 < len(pattern) <= MAX_PATTERN_CHARS for pattern in spec.no_decay),
        f"a pattern of no_decay has from 1 to {MAX_PATTERN_CHARS} characters",
    )


def check_momentum(spec: OptimizerSpec, averaged: bool) -> None:
    """Whether there is a mean gradient, if clusters are to average it; raises as `check_optimizer`."""
    _need(
        not averaged or spec.name != "sgd" or spec.momentum > 0.0,
        "average_momentum needs an optimizer that has one: SGD's is 0",
    )


def scheduled(spec: OptimizerSpec, base: float, version: int) -> float:
    """A learning rate `base` at the update that turns weights of `version` into `version` + 1.

    It rises linearly over `warmup_updates` (the first update already has a share of it). Then it is
    constant; or falls to 0 at update `schedule_updates`, linearly or as half a cosine; or is multiplied by
    `schedule_factor` once every `schedule_updates` updates after the warm-up.

    Args:
        spec: as `check_optimizer` lets pass.
    """
    if version < spec.warmup_updates:
        return base * (version + 1) / spec.warmup_updates
    if spec.schedule == "constant":
        return base
    gone = version - spec.warmup_updates
    if spec.schedule == "step":
        return base * float(spec.schedule_factor ** (gone // spec.schedule_updates))
    progress = min(1.0, gone / (spec.schedule_updates - spec.warmup_updates))
    if spec.schedule == "linear":
        return base * (1.0 - progress)
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))


def learning_rate(spec: OptimizerSpec, version: int) -> float:
    """`lr` as scheduled for the update that turns weights of `version` into `version` + 1."""
    return scheduled(spec, spec.lr, version)


def decays(spec: OptimizerSpec, name: str, rank: int) -> bool:
    """Whether `weight_decay` is for the parameter of that name and number of dimensions."""
    if rank < 2 and not spec.decay_vectors:
        return False
    return not any(fnmatchcase(name, pattern) for pattern in spec.no_decay)


def _one_of(what: str, name: str, known: tuple[str, ...]) -> None:
    _need(name in known, f"unknown {what} {name!r:.40}; use {', '.join(known[:-1])} or {known[-1]}")


def _bounded(what: str, value: float) -> None:
    _need(0.0 <= value <= MAX_NUMBER, f"{what} must be from 0 to {MAX_NUMBER:g}, not {value}")


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
