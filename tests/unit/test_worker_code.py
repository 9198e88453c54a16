"""Nothing that a worker imports from us can turn a stranger's data into running code."""

from __future__ import annotations

import pytest

from tests.unit.code_ways import LOADERS, closure, ways_to_code

ENTRY = "ravnest_p2p.daemon.worker.__main__"

EXCEPTIONS = {
    # Loads the SDK's own modules at first use, by a fixed table of names.
    "ravnest_p2p": {"importlib.import_module"},
    # Prototypes of calls in the C library that is loaded already.
    "ravnest_p2p.daemon.worker.guard": {"ctypes.CDLL"},
    "ravnest_p2p.daemon.worker.resident": {"ctypes.CDLL"},
    "ravnest_p2p.daemon.worker.sandbox_syscalls": {"ctypes.CDLL"},
    # Start p2pd and its watcher, for `ravnestd`; a worker behind its walls can start no program.
    "ravnest_p2p.network.janitor": {"subprocess"},
    "ravnest_p2p.network.p2pd": {"asyncio.create_subprocess_exec", "ctypes.CDLL"},
}


def test_the_walk_reaches_what_the_worker_runs() -> None:
    found = closure(ENTRY)
    for part in ("model.parse", "model.package", "training.snapshot", "network.links", "core.pipeline"):
        assert f"ravnest_p2p.{part}" in found
    assert not any(name.startswith(("ravnest_p2p.cli", "ravnest_p2p.client")) for name in found)


@pytest.mark.parametrize("name", sorted(closure(ENTRY)))
def test_a_module_of_the_worker_has_no_way_to_code(name: str) -> None:
    found = ways_to_code(closure(ENTRY)[name].read_text())
    found = {"subprocess" if way.startswith("subprocess.") else way for way in found}
    assert found == EXCEPTIONS.get(name, set())


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as harmless",
        "from pickle import loads as harmless",
        "import marshal",
        "import shelve",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load as json\njson('x')",
        "import torch\nlater = torch.load",
        "import torch.export\ntorch.export.load('x')",
        "from torch.export import load",
        "from torch import export\nexport.load('x')",
        "import torch\ntorch.jit.load('x')",
        "from torch import jit",
        "import torch.hub",
        "from torch.hub import load_state_dict_from_url",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "exec('1')",
        "run = eval",
        "compile('1', '', 'exec')",
        "__import__(name)",
        "import builtins\nbuiltins.exec('1')",
        "import builtins\ngetattr(builtins, 'eval')('1')",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "import subprocess",
        "from subprocess import run",
        "import os\nos.system('true')",
        "from os import execv",
        "import os as o\no.popen('true')",
        "import asyncio\nasyncio.create_subprocess_shell('true')",
        "import runpy",
        "import yaml\nyaml.load(text)",
        "import multiprocessing",
        "def f():\n    import pickle",
        "try:\n    pass\nfinally:\n    exec('1')",
        "thing.load(path)",
        "open_model().loads(data)",
        "import ctypes\nctypes.CDLL('libevil.so')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import pickle",
    ],
)
def test_a_way_to_code_is_found(source: str) -> None:
    assert ways_to_code(source)


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads(text)",
        "from safetensors import safe_open\nsafe_open(path, framework='pt')",
        "import re\nre.compile('a')",
        "model.eval()",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pickle",
        "from ravnest_p2p.model import Package\nPackage.load(path)",
        "import torch\ntorch.zeros(3).load_state = 1",
    ],
)
def test_what_is_harmless_is_not_found(source: str) -> None:
    assert not ways_to_code(source)


def test_json_and_safetensors_are_the_only_loaders_of_packages() -> None:
    model = {name for name in LOADERS if name.split(".")[0] != "msgpack"}
    assert {name.split(".")[0] for name in model} == {"json", "safetensors"}
    for name, path in closure(ENTRY).items():
        if name.startswith(("ravnest_p2p.model", "ravnest_p2p.training")):
            assert "msgpack" not in path.read_text()
