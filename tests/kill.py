"""Kill processes at random moments, a thousand times: `python -m tests.kill`; `--help` says what can be chosen."""

from __future__ import annotations

from .killing import main

if __name__ == "__main__":
    main()
