"""`inspectbus` and `python -m inspectbus`."""

from __future__ import annotations

import sys
import traceback


def main() -> None:
    """Ends the process with the command's exit code: what the product refused is 2, and so is a fault of ours.

    Python's own code for a fault is 1, which `inspectbus inspect` promises to mean "some parts are defective".
    """
    from inspectbus.cli.app import FAILED, app

    try:
        app(prog_name="inspectbus")
    except Exception:  # the edge of the process: shown whole, and given the right code
        traceback.print_exc()
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
