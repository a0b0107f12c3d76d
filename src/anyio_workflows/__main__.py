"""`python -m anyio_workflows`: the command line, as `anyio-workflows` starts it too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ._cli.main import main as _main


def main(argv: Sequence[str] | None = None, backend_options: dict[str, Any] | None = None) -> int:
    """Run the command and return the exit status.

    Args:
        argv: The arguments; `None` for those of the process.
        backend_options: Passed to `anyio.run()`, so that a command can run on another clock.
    """
    return _main(argv, backend_options, prog="python -m anyio_workflows")


if __name__ == "__main__":
    sys.exit(main())
