"""Tests marked `slow` run only where they are asked for: `pytest -m slow tests/sim`."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with -m slow")


def pytest_collection_modifyitems(config, items):
    if "slow" in config.getoption("markexpr", ""):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with -m slow"))
