"""The user's own folder: who they are as a requester, and where the local ravnestd listens.

`~/.ravnest`, or the folder that the environment variable RAVNEST_HOME names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ravnest_p2p.core.errors import ConfigError
from ravnest_p2p.network.identity import Identity

_MAX_LOCAL_BYTES = 64 * 1024


def home_folder() -> Path:
    """The folder; it need not exist."""
    return Path(os.environ.get("RAVNEST_HOME") or Path.home() / ".ravnest").expanduser()


def requester_identity() -> Identity:
    """The requester's key, made at the first use; several processes may use it at once."""
    return Identity.load_or_create(home_folder() / "requester.key", exclusive=False)


def local_addresses() -> list[str]:
    """Addresses of the ravnestd on this computer, as it wrote them to `local.json`.

    Raises:
        ConfigError: there is no such file, or it is damaged.
    """
    path = home_folder() / "local.json"
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_LOCAL_BYTES))
        addresses = value["addresses"]
    except FileNotFoundError:
        raise ConfigError(
            f"no ravnestd runs on this computer ({path} is missing); "
            "start one, or name a peer: /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restart ravnestd, or name a peer") from None
    if (
        not isinstance(addresses, list)
        or not all(isinstance(item, str) for item in addresses)
        or not addresses
    ):
        raise ConfigError(f"{path} holds no addresses; restart ravnestd, or name a peer")
    return addresses
