"""Follow the decisions of a line as they fall, and remember where you stood.

    python clients/examples/watch_line.py --line line-1 --cursor-file seen.txt

Started again with the same cursor file it goes on where it stopped: nothing is skipped and nothing comes twice.

With TLS and tokens set INSPECTBUS_TLS_CA and INSPECTBUS_TOKEN_FILE, as for the commands, and where doors ask for a
certificate INSPECTBUS_TLS_CERTIFICATE and INSPECTBUS_TLS_KEY.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from inspectbus.errors import InspectBusError
from inspectbus_client import Access, Client, Verdict


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="127.0.0.1:50055", metavar="HOST:PORT")
    parser.add_argument("--line", default="", help="only of this line")
    parser.add_argument("--cursor-file", type=Path, help="where to remember the last decision seen")
    parser.add_argument("--limit", type=int, help="leave after this many")
    options = parser.parse_args(arguments)

    file: Path | None = options.cursor_file
    after = int(file.read_text()) if file and file.exists() else None
    with (
        Client(results=options.results, access=Access.from_environment()) as client,
        client.watch_decisions(line=options.line, after=after) as watch,
    ):
        for record in islice(watch, options.limit):
            decision = record.decision
            words = [f"#{record.cursor}", f"{decision.line}/{decision.station}", decision.source_item, decision.verdict]
            if decision.score is not None:
                words.append(f"score {decision.score:.3f}")
            if decision.verdict is Verdict.HOLD and decision.hold is not None:
                words.append(f"({decision.hold.reason}: {decision.hold.detail})")
            print("  ".join(words), flush=True)
            if file:
                file.write_text(str(record.cursor))
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InspectBusError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
