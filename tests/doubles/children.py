"""Child processes of a test session: however the session ends, they end too.

start ─> a guard asks the kernel to kill it with its parent ─> becomes the program (same pid)
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

PR_SET_PDEATHSIG, SIGKILL = 1, 9
GUARD = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {SIGKILL}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvpe(sys.argv[2], sys.argv[2:], os.environ)
"""

# To the kernel the parent is the thread that starts a child: this one lasts as long as the session, a test's may not.
_STARTER = ThreadPoolExecutor(1, "children")


def start_child(
    command: Sequence[str | Path],
    log: Path | None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    *,
    own_group: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a program whose output is appended to `log`, or read from its stdout. A session that is killed takes it
    along. With `own_group` it leads a process group of its pid, in which its own children are too.
    """
    guarded = [sys.executable, "-ISc", GUARD, str(os.getpid()), *map(str, command)]
    with ExitStack() as files:
        return _STARTER.submit(
            subprocess.Popen,
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=files.enter_context(log.open("ab")) if log else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            process_group=0 if own_group else None,
        ).result()


def lasting_port() -> int:
    """A port for a server that dies and comes back.

    Below those the kernel lends to outgoing connections: one of these could be lent while the server is away, and a
    client that tries again and again can even reach itself there.
    """
    lent_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(min(10000, lent_from - 5000), lent_from), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free on 127.0.0.1")
