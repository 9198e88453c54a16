"""Files of a stranger, taken in without being hurt by them.

Problem: before anybody looks at what a file says, opening it can hang (a pipe) or lead elsewhere (a link).
Solution: only ordinary files that lie where they are said to, read up to a limit.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ravnest_p2p.core.errors import PackageError


def read_ordinary(path: str | os.PathLike[str], limit: int, *, head_only: bool = False) -> bytes:
    """At most `limit` bytes of an ordinary file that lies at this very place.

    Args:
        head_only: a longer file is cut at the limit instead of refused.
    Raises:
        PackageError: it is missing, unreadable, no ordinary file, a link, or too long.
    """
    name = Path(path).name[:100]
    try:
        # Without O_NONBLOCK, opening a pipe waits for whoever writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise PackageError(f"file {name!r} cannot be read: {error}") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise PackageError(f"{name!r} is not an ordinary file")
    with os.fdopen(handle, "rb") as file:
        if not head_only and found.st_size > limit:
            raise PackageError(f"file {name!r} has {found.st_size} bytes, over the limit of {limit}")
        return file.read(limit)
