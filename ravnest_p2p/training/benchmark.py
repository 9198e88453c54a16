"""What this machine's device is worth: `python -m ravnest_p2p.training.benchmark [--json]`.

The daemon runs it in a process of its own, so that measuring loads no torch, and holds no device, in the
control plane.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ravnest_p2p.training.device import AUTO, choose_device, measure_flops, memory_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; as JSON: {"kind", "memory_bytes", "flops"}, the fields of `core.types.Device`."""
    parser = argparse.ArgumentParser(prog="python -m ravnest_p2p.training.benchmark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long to measure")
    parser.add_argument("--device", default=AUTO, help="the device to measure (default: %(default)s)")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    # First, since measuring takes memory and keeps it.
    memory, flops = memory_bytes(device), measure_flops(options.seconds, device)
    if options.json:
        print(json.dumps({"kind": device.type, "memory_bytes": memory, "flops": flops}))
    else:
        print(f"{device.type}: {flops / 1e9:.1f} GFLOP/s float32, {memory / 2**30:.1f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
