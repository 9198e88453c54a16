"""A planning problem from the JSON of `ravnest-cluster-instance/1`, with every number checked.

Problem: files come from anybody, and a number that is missing, of another kind or out of bounds must not
become a plan. Solution: each field is read once, by a check that names it where it is wrong. What the
format's first readers do not know has a default under which it means nothing. `docs/planning.md` lists
all fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from ravnest_p2p.core.errors import PlanningProblemError
from ravnest_p2p.core.planning.problem import Layers, Peer, Problem, Rules

FORMAT = "ravnest-cluster-instance/1"

MAX_PEERS = 100_000
MAX_LAYERS = 4096
MAX_REGIONS = 1024

MBPS = 125_000.0
"""Bytes a second."""

LEAST, MOST = 1e-12, 1e30
"""Of a number that is not 0: what is beyond would not stay finite in sums and quotients."""

REACHED = ("public", "punched", "symmetric", "relayed")


class Discounts(NamedTuple):
    """What counts for less than it says: see the module."""

    relayed_share: float
    relayed_s: float
    symmetric_share: float
    doubt: float

    def line_share(self, reached: str) -> float:
        return {"relayed": self.relayed_share, "symmetric": self.symmetric_share}.get(reached, 1.0)


def parse_problem(text: Any) -> Problem:
    """A problem from the JSON value of `ravnest-cluster-instance/1`.

    Raises:
        PlanningProblemError: names the field, and what it should be.
    """
    top = _object(text, "the instance")
    if "format" in top and top["format"] != FORMAT:
        raise PlanningProblemError(f"format is {top['format']!r}, not {FORMAT!r}")
    hyper = _object(_get(top, "hyper"), "hyper")
    rules, discounts = _rules(hyper, _get(top, "cold_start")), _discounts(hyper)
    layers = _layers(_object(_get(top, "model"), "model"), rules)
    net = _object(_get(top, "net"), "net")
    latency_ms = _square(_get(net, "latency_ms"), "net.latency_ms", _not_negative)
    flow_mbps = _square(_get(net, "flow_cap_mbps"), "net.flow_cap_mbps", _positive)
    if len(latency_ms) != len(flow_mbps):
        raise PlanningProblemError("net.latency_ms and net.flow_cap_mbps differ in size")
    peers = _list(_get(top, "peers"), "peers", MAX_PEERS)
    return Problem(
        layers,
        rules,
        tuple(tuple(way / 1000.0 for way in row) for row in latency_ms),
        tuple(tuple(flow * MBPS for flow in row) for row in flow_mbps),
        tuple(
            _peer(value, f"peers[{n}]", len(latency_ms), layers.count, discounts)
            for n, value in enumerate(peers)
        ),
    )


def _rules(hyper: Mapping[str, Any], cold_start: Any) -> Rules:
    def number(name: str, check: Callable[[Any, str], float] = _positive) -> float:
        return check(_get(hyper, name, "hyper"), f"hyper.{name}")

    def whole(name: str, default: int | None = None) -> int:
        value = default if default is not None and name not in hyper else _get(hyper, name, "hyper")
        return _whole(value, f"hyper.{name}", 1, MAX_PEERS)

    round_s = number("sync_interval_s")
    return Rules(
        microbatch=number("microbatch"),
        window=number("window"),
        round_s=round_s,
        epoch_s=number("epoch_s"),
        least_stages=whole("min_stages", 1),
        most_stages=whole("max_stages"),
        least_clusters=whole("min_clusters"),
        most_clusters=whole("max_clusters", MAX_PEERS),
        slowest_s=round_s / number("min_local_iters"),
        stage_discount=number("stale_gamma", _not_negative),
        spread_discount=number("similarity_w", _not_negative),
        failover_s=number("failover_s", _not_negative),
        recover_s=number("recover_s", _not_negative),
        standby_quota=_share(hyper.get("standby_quota", 0.0), "hyper.standby_quota"),
        moves_are_free=_flag(cold_start, "cold_start"),
    )


def _discounts(hyper: Mapping[str, Any]) -> Discounts:
    def share(name: str) -> float:
        return _positive(_share(hyper.get(name, 1.0), f"hyper.{name}"), f"hyper.{name}")

    return Discounts(
        share("relayed_share"),
        _not_negative(hyper.get("relayed_ms", 0.0), "hyper.relayed_ms") / 1000.0,
        share("symmetric_share"),
        _not_negative(hyper.get("doubt", 0.0), "hyper.doubt"),
    )


def _layers(model: Mapping[str, Any], rules: Rules) -> Layers:
    count = _whole(_get(model, "layers", "model"), "model.layers", 1, MAX_LAYERS)

    def column(name: str) -> list[float]:
        values = _list(_get(model, name, "model"), f"model.{name}", MAX_LAYERS)
        if len(values) != count:
            raise PlanningProblemError(
                f"model.{name} has {len(values)} numbers, not one for each of {count} layers"
            )
        return [_not_negative(value, f"model.{name}[{n}]") for n, value in enumerate(values)]

    work, state, held = column("flops_per_sample"), column("state_bytes"), column("act_bytes_per_microbatch")
    if not any(work):
        raise PlanningProblemError("model.flops_per_sample: no layer costs anything")
    b = rules.microbatch
    return Layers(
        count,
        _sums([b * flops for flops in work]),
        _sums(column("sync_bytes")),
        _sums(column("move_bytes")),
        _sums(state),
        _sums([bytes_ + rules.window * each for bytes_, each in zip(state, held, strict=True)]),
        (0.0, *(b * out for out in column("out_bytes_per_sample")[:-1]), 0.0),
    )


def _sums(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(accumulate(values, initial=0.0))


def _peer(value: Any, where: str, regions: int, layers: int, discounts: Discounts) -> Peer:
    peer = _object(value, where)

    def number(name: str, check: Callable[[Any, str], float] = _positive) -> float:
        return check(_get(peer, name, where), f"{where}.{name}")

    held = peer.get("prev")
    lo, hi = (0, 0) if held is None else _range(held, f"{where}.prev", layers)
    reached = peer.get("reached", "public")
    if reached not in REACHED:
        raise PlanningProblemError(f"{where}.reached is {reached!r}, not one of {', '.join(REACHED)}")
    sure = 1.0 / (1.0 + discounts.doubt * _not_negative(peer.get("spread", 0.0), f"{where}.spread"))
    line = MBPS * sure * discounts.line_share(reached)
    detour_s = discounts.relayed_s if reached == "relayed" else 0.0
    return Peer(
        name=str(peer.get("id", where))[:200],
        region=_whole(_get(peer, "region", where), f"{where}.region", 0, regions - 1),
        memory_bytes=number("mem_bytes", _not_negative),
        host_bytes=_not_negative(peer.get("host_mem_bytes", 0.0), f"{where}.host_mem_bytes"),
        flops=number("flops") * sure,
        up_bytes_s=number("up_mbps") * line,
        down_bytes_s=number("down_mbps") * line,
        access_s=number("access_ms", _not_negative) / 1000.0 + detour_s,
        fails_per_s=number("fail_per_h", _not_negative) / 3600.0,
        uptime=number("uptime", _share),
        held=(lo, hi),
    )


def _range(value: Any, where: str, layers: int) -> tuple[int, int]:
    ends = _list(value, where, 2)
    if len(ends) != 2:
        raise PlanningProblemError(f"{where} is not [lo, hi)")
    lo, hi = (_whole(end, where, 0, layers) for end in ends)
    if lo > hi:
        raise PlanningProblemError(f"{where} is [{lo}, {hi}), which ends before it begins")
    return lo, hi


def _square(value: Any, where: str, check: Callable[[Any, str], float]) -> list[list[float]]:
    rows = [
        _list(row, f"{where}[{n}]", MAX_REGIONS) for n, row in enumerate(_list(value, where, MAX_REGIONS))
    ]
    if not rows or any(len(row) != len(rows) for row in rows):
        raise PlanningProblemError(f"{where} is no table of a row and a column for each region")
    return [[check(cell, f"{where}[{n}][{k}]") for k, cell in enumerate(row)] for n, row in enumerate(rows)]


def _get(value: Mapping[str, Any], name: str, where: str = "") -> Any:
    if name not in value:
        raise PlanningProblemError(f"{f'{where}.' if where else ''}{name} is missing")
    return value[name]


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PlanningProblemError(f"{where} is no object")
    return value


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise PlanningProblemError(f"{where} is no list")
    if len(value) > most:
        raise PlanningProblemError(f"{where} has {len(value)} items, more than {most}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PlanningProblemError(f"{where} is {value!r}, not a number")
    if value and not LEAST <= abs(value) <= MOST:
        raise PlanningProblemError(f"{where} is {value!r}, beyond {LEAST:g} to {MOST:g}")
    return float(value)


def _positive(value: Any, where: str) -> float:
    number = _number(value, where)
    if number <= 0.0:
        raise PlanningProblemError(f"{where} is {value!r}, not above 0")
    return number


def _not_negative(value: Any, where: str) -> float:
    number = _number(value, where)
    if number < 0.0:
        raise PlanningProblemError(f"{where} is {value!r}, not 0 or above")
    return number


def _share(value: Any, where: str) -> float:
    number = _not_negative(value, where)
    if number > 1.0:
        raise PlanningProblemError(f"{where} is {value!r}, not a share from 0 to 1")
    return number


def _whole(value: Any, where: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise PlanningProblemError(f"{where} is {value!r}, not a whole number from {least} to {most}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise PlanningProblemError(f"{where} is {value!r}, not true or false")
    return value
