"""Fixtures of the tests that run whole swarms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def requester_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the requester's own, named by RAVNEST_HOME; one torch thread, as the peers have."""
    home = tmp_path_factory.mktemp("requester")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAVNEST_HOME", str(home))
        yield home
