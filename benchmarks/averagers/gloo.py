"""One member of torch's all-reduce over gloo, which is a ring; talks as `benchmarks.averagers.ours` does.

Hears {"rank", "members", "elements"}; MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME are in the environment.
"""

from __future__ import annotations

import time

import torch
from torch import distributed

from benchmarks.averagers.talk import hear, say


def main() -> None:
    torch.set_num_threads(1)
    told = hear()
    distributed.init_process_group("gloo", rank=told["rank"], world_size=told["members"])
    tensor = torch.empty(told["elements"])
    say(ready=True)
    while hear():
        tensor.fill_(told["rank"] + 1.0)
        distributed.barrier()
        say(armed=True)
        hear()
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        distributed.all_reduce(tensor)
        tensor /= told["members"]
        took_s = time.perf_counter() - begun_s
        right = torch.allclose(tensor, torch.tensor((told["members"] + 1) / 2))
        say(seconds=took_s, right=bool(right), cpu=time.process_time() - cpu_s)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
