"""One member of torch's all-reduce over gloo, a ring; talks as `ravnest_p2p.testing.ring_member` does.

Hears {"rank", "members", "elements"}; MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME are in the environment.
"""

from __future__ import annotations

import time

import torch
from torch import distributed

from ravnest_p2p.testing.ring_member import FEW, hear, say


def main() -> None:
    torch.set_num_threads(1)
    told = hear()
    distributed.init_process_group("gloo", rank=told["rank"], world_size=told["members"])
    tensor = torch.empty(told["elements"])
    say(ready=True)
    while hear():
        tensor.fill_(2.0 ** told["rank"])
        distributed.barrier()
        say(filled=True)
        hear()
        begun_s = time.perf_counter()
        distributed.all_reduce(tensor)
        tensor /= told["members"]
        took_s = time.perf_counter() - begun_s
        say(seconds=took_s, values=tensor.unique()[:FEW].tolist())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
