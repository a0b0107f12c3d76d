"""What the servers of all sides share: a channel through which their process says what it has used.

It runs in an environment that holds a peer and nothing else, so it imports the standard library only. A
program is told its options as JSON. Each line on its standard input is a question, each line on its
standard output an answer as JSON; the first says where it listens. Where the input ends, the process does.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
"""How this server is configured."""


def listening(url: str) -> None:
    """Say where the server listens, and answer questions from now on."""
    say({"url": url})
    threading.Thread(target=_answer, daemon=True).start()


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _answer() -> None:
    for question in sys.stdin:
        if question.strip() == "begin":  # with nothing to collect from what was before
            gc.collect()
        elif question.strip() == "memory":
            say({"memory": _memory(), "peak": _peak()})
            continue
        say({"cpu": time.process_time()})
    os._exit(0)


def _memory() -> int:
    """Return the resident memory of this process in bytes, without what is free in its heap."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    """Return the most resident memory there has been, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
