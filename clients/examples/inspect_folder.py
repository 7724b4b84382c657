"""Judge every image of a folder and sort the names by verdict.

python clients/examples/inspect_folder.py photos/ --acquisition 127.0.0.1:50051

With TLS and tokens set INSPECTBUS_TLS_CA and INSPECTBUS_TOKEN_FILE, as for the commands, and where doors ask for a
certificate INSPECTBUS_TLS_CERTIFICATE and INSPECTBUS_TLS_KEY.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from inspectbus.errors import InspectBusError
from inspectbus_client import Access, Client


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--acquisition", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--recipe", default="", help="how to prepare and judge; empty: the service's own choice")
    options = parser.parse_args(arguments)

    images = sorted(path for path in options.folder.iterdir() if path.is_file())
    by_verdict: dict[str, list[str]] = defaultdict(list)
    with Client(acquisition=options.acquisition, access=Access.from_environment()) as client:
        # Eight are under way at a time; they come back as they are decided.
        for inspected in client.inspect_many(images, recipe=options.recipe):
            name = Path(str(inspected.shot.image)).name
            if inspected.decision is None:
                by_verdict["refused"].append(f"{name} ({inspected.error})")
            else:
                by_verdict[inspected.decision.verdict].append(name)

    for verdict, names in sorted(by_verdict.items()):
        print(f"{verdict}: {len(names)}")
        for name in sorted(names):
            print(f"  {name}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except InspectBusError as error:
        raise SystemExit(f"error: {error}") from None
