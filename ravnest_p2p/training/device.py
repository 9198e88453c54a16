"""Which device a peer computes on, and how fast it is.

Problem: the planner balances stages by each peer's sustained speed, and a nominal figure says little about a
laptop. Solution: take the device that the owner names, or the best that torch can use, and time square
float32 matrix products on it for a fraction of a second, after a warm-up, counting only whole products; on
the CPU in processor time, since what else starts on a computer with a peer would halve its speed.
"""

from __future__ import annotations

import re
import time

import psutil
import torch

from ravnest_p2p.core.errors import ConfigError

AUTO = "auto"

WARMUP_S = 0.05
"""Clocks and thread pools are up by then."""


def choose_device(name: str = AUTO) -> torch.device:
    """The device to compute on.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps"; or "auto": CUDA, else Apple's MPS, else the CPU.
    Raises:
        ConfigError: it is none of these, or not there.
    """
    if name != AUTO:
        return _named(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _named(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name) is None:
        raise ConfigError(f"{name!r:.40} is no device: use auto, cpu, cuda, cuda:1 or mps")
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if int(number or 0) >= there:
        have = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        have += ["mps"] * torch.backends.mps.is_available()
        raise ConfigError(f"torch finds no device {name} here; it has {', '.join(have)}")
    return torch.device(name)


class DevicePeak:
    """Memory that torch took of a GPU at most since the object was made; 0 on others, which do not tell."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)

    def bytes(self) -> int:
        """The peak so far."""
        return 0 if self._device is None else int(torch.cuda.max_memory_reserved(self._device))


def start_device(device: torch.device, memory_bytes: int) -> None:
    """Have a GPU's driver make now what it makes at its first use, and take no more memory than that.

    Args:
        memory_bytes: of tensors; what the driver itself takes beside them, some 500 MB, does not count.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        # This function takes no device without a number.
        number = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), number)
    if device.type != "cpu":
        some = torch.ones(16, 16, device=device)
        (some @ some).cpu()


def works(device: torch.device) -> bool:
    """Whether the device can still be used by this process: an operation that failed on a GPU, such as an
    index out of range, leaves it without for good."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def memory_bytes(device: torch.device) -> int:
    """Memory of the device that tensors can have, bytes: of a GPU what is free, of others the machine's."""
    if device.type == "cuda":
        # Started, so that what its driver takes for a process is taken off already.
        torch.ones(1, device=device)
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().total)


@torch.no_grad()
def measure_flops(seconds: float = 0.2, device: torch.device | None = None) -> float:
    """Float32 operations a second of matrix products, as torch is set up in this process.

    Counted by the fastest quarter of the products: what else runs while a peer starts makes single ones slow,
    and equal machines should measure the same.

    Args:
        seconds: how long to measure, after the warm-up; at least one product is timed.
        device: default `choose_device()`.
    """
    device = device or choose_device()
    side = 512 if device.type == "cpu" else 4096
    left = torch.ones(side, side, device=device)
    right = torch.ones(side, side, device=device)
    out = torch.empty(side, side, device=device)
    _products(left, right, out, WARMUP_S)
    fastest = sorted(_products(left, right, out, seconds))
    counted = fastest[: -(-len(fastest) // 4)]
    return len(counted) * 2.0 * side**3 / sum(counted)


def _products(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, seconds: float) -> list[float]:
    """Multiply until `seconds` are over, waiting for the device each time; seconds of each product."""
    took: list[float] = []
    on_cpu = out.device.type == "cpu"
    clock, threads = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    while not took or sum(took) < seconds:
        begin = clock()
        torch.mm(left, right, out=out)
        synchronize(out.device)
        took.append((clock() - begin) / threads)
    return took


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
