"""A job from a Python file of the user's own: `train.py`, or `train.py:function`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ravnest_p2p.client.request import JobRequest
from ravnest_p2p.core.errors import ConfigError

_MODULE = "ravnest_job_file"


def load_request(argument: str) -> JobRequest:
    """Run the file, call its function (by default `job`), and return the request that it gives.

    Raises:
        ConfigError: no such file or function, the file fails, or the function returns something else.
    """
    if Path(argument).expanduser().is_dir():
        raise ConfigError(
            f"{argument} is a folder; a saved package holds no data to train on: write a Python file whose "
            "function returns JobRequest(model=Package.load(…), data=…)"
        )
    where, request = load_made(argument, "write one that returns a JobRequest")
    if not isinstance(request, JobRequest):
        raise ConfigError(f"{where} returned {type(request).__name__}, not a JobRequest")
    return request


def load_made(argument: str, wanted: str) -> tuple[str, Any]:
    """Run the file, call its function, and return ("function() of FILE", what it made).

    Args:
        wanted: what to tell a user whose file lacks the function.
    Raises:
        ConfigError: no such file or function, or the file fails.
    """
    name, separator, function = argument.rpartition(":")
    if not separator or not name.endswith(".py"):
        name, function = argument, "job"
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if not callable(make):
            raise ConfigError(f"{name} has no function {function}(); {wanted}")
        made = make()
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise ConfigError(f"{name} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return f"{function}() of {name}", made
