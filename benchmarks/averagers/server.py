"""One member of averaging by a parameter server, which is the first member; over gloo's sends.

Talks as `ravnest_p2p.testing.ring_member` does. Hears what `gloo` hears.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, distributed

from ravnest_p2p.testing.ring_member import FEW, hear, say


def main() -> None:
    torch.set_num_threads(1)
    told = hear()
    rank, members = told["rank"], told["members"]
    distributed.init_process_group("gloo", rank=rank, world_size=members)
    tensor = torch.empty(told["elements"])
    others = [torch.empty_like(tensor) for _ in range(members - 1)] if rank == 0 else []
    say(ready=True)
    while hear():
        tensor.fill_(2.0**rank)
        distributed.barrier()
        say(filled=True)
        hear()
        begun_s = time.perf_counter()
        if rank == 0:
            _serve(tensor, others)
        else:
            distributed.send(tensor, 0)
            distributed.recv(tensor, 0)
        took_s = time.perf_counter() - begun_s
        say(seconds=took_s, values=tensor.unique()[:FEW].tolist())
    distributed.destroy_process_group()


def _serve(tensor: Tensor, others: list[Tensor]) -> None:
    """Take everybody's, at once, and give everybody the mean, at once."""
    arriving = [distributed.irecv(other, rank) for rank, other in enumerate(others, 1)]
    for arrival, other in zip(arriving, others, strict=True):
        arrival.wait()
        tensor += other
    tensor /= len(others) + 1
    for leaving in [distributed.isend(tensor, rank) for rank in range(1, len(others) + 1)]:
        leaving.wait()


if __name__ == "__main__":
    main()
