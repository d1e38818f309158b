"""A command as a child of `hisob run`: the command itself, which ends when its parent is gone, killed even.

`python -m hisob.supervised …` is `python -m hisob …`, but for that. The parent holds the other end of standard input, which
closes with it; so nothing is left behind on any system, and no command needs to know of it.
"""

from __future__ import annotations

import os
import signal
import time

from hisob.cli import main
from streams.cluster import end_with_parent

GRACE_S = 10.0


def end() -> None:
    """End in order; if that takes too long, at once."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent(end)
    main()
