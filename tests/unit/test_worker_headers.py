"""Frames' headers: what is written is read, and a stranger's is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ravnest_p2p.core.errors import ChunkMismatchError
from ravnest_p2p.core.pipeline.window import Echo
from ravnest_p2p.daemon.worker.headers import (
    echo_from,
    echo_header,
    microbatch_from,
    slowest_from,
    slowest_header,
)


def test_what_is_written_is_read() -> None:
    echo = Echo(1.25, 0.5, 0.75, 3.5)
    assert echo_from(echo_header(echo)) == echo
    assert slowest_from(slowest_header(0.125)) == 0.125
    assert microbatch_from({"i": 7}) == 7


def test_what_is_too_large_is_written_as_the_largest() -> None:
    assert echo_from(echo_header(Echo(math.inf, -1.0, 1e9, 1e30))) == Echo(86_400, 0, 86_400, 1 << 20)


@pytest.mark.parametrize("value", [None, -1, True, 1.5, "1", 1 << 80, [1], math.nan])
@pytest.mark.parametrize("key", ["h", "p", "t", "w"])
def test_no_number_is_refused(key: str, value: Any) -> None:
    header = {**echo_header(Echo(1.0, 1.0, 1.0, 1.0)), key: value}
    with pytest.raises(ChunkMismatchError, match=f"says {key} = "):
        echo_from(header)
    if key == "t":
        with pytest.raises(ChunkMismatchError, match="says t = "):
            slowest_from(header)


@pytest.mark.parametrize("value", [None, -1, True, 1.5, "1"])
def test_no_micro_batch_is_refused(value: Any) -> None:
    with pytest.raises(ChunkMismatchError, match="names micro-batch"):
        microbatch_from({"i": value})
