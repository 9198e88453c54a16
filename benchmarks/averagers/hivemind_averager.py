"""One member of hivemind's DecentralizedAverager; talks as `ravnest_p2p.testing.ring_member` does.

Hears {"rank", "members", "elements", "address"}.
"""

from __future__ import annotations

import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import hivemind
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.averaging.partition import AllreduceException
from hivemind.utils import get_dht_time

from ravnest_p2p.testing.ring_member import FEW, hear, say

MATCHED_S, LOOK_S = 2.0, 0.02
"""When the group that formed meanwhile is to begin, and how often to look whether it waits to be told."""

MOST_S = 60.0
"""A round that has not ended by then counts as one that took so long and gave no result, and members begin
anew. Seen once in some twenty rounds over lines with a delay. Where they have not found a group by then, they
begin anew before the time is taken; seen once in some hundred rounds."""


def main() -> None:
    torch.set_num_threads(1)
    told = hear()
    tensor = torch.zeros(told["elements"])
    dht = hivemind.DHT(
        initial_peers=told["initial"], start=True, host_maddrs=[f"/ip4/{told['address']}/tcp/0"]
    )
    if not told["initial"]:
        say(addresses=[str(a) for a in dht.get_visible_maddrs()])
    members = hear()["members"]
    averager: Any = hivemind.averaging.DecentralizedAverager(
        [tensor],
        dht,
        prefix="bench",
        target_group_size=members,
        min_group_size=members,
        min_matchmaking_time=1.0,
        request_timeout=0.9,
        part_size_bytes=2**19,
        start=True,
    )
    say(ready=True)
    while hear():
        with averager.get_tensors() as tensors:
            tensors[0].fill_(2.0 ** told["rank"])
        control = averager.step(
            wait=False, scheduled_time=get_dht_time() + MATCHED_S, require_trigger=True, timeout=MOST_S
        )
        until_s = time.monotonic() + MOST_S
        while control.stage is not AveragingStage.AWAITING_TRIGGER and time.monotonic() < until_s:
            time.sleep(LOOK_S)
        say(filled=control.stage is AveragingStage.AWAITING_TRIGGER)
        hear()
        begun_s = time.perf_counter()
        control.allow_allreduce()
        try:
            control.result(MOST_S)
        except (FutureTimeoutError, AllreduceException):
            say(seconds=time.perf_counter() - begun_s, values=[])
            continue
        took_s = time.perf_counter() - begun_s
        with averager.get_tensors() as tensors:
            values = tensors[0].unique()[:FEW].tolist()
        say(seconds=took_s, values=values)
    averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
