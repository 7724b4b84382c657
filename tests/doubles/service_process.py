"""A service as a process that dies and is started again, as a cluster would.

start ─> its log, line by line: serving? ─> dies ─> its children die too ─> a pause ─> start
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.doubles.children import start_child

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0
"""Between a death and the next start; doubles with each death."""
PATIENCE_S = 60.0


class ServiceProcess:
    """Thread-safe. Use as a context: entering starts it without waiting, leaving ends it."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command, self._env = command, env
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._exits: list[int] = []
        self._events: Counter[str] = Counter()
        """Log events of the process that runs now, by name."""
        self._door: Mapping[str, Any] = {}
        self._dead_cpu_s = 0.0
        self._wanted, self._over = True, False
        self._keeper = threading.Thread(target=self._keep, name=f"keeper-{name}", daemon=True)

    def __enter__(self) -> Self:
        self._keeper.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._send(signal.SIGKILL)
        self._keeper.join(PATIENCE_S)

    @property
    def pid(self) -> int:
        with self._changed:
            assert self._process is not None, f"{self.name} does not run"
            return self._process.pid

    @property
    def starts(self) -> int:
        return self._starts

    @property
    def exits(self) -> Sequence[int]:
        """How each process ended: its exit code, or the signal's number below zero."""
        with self._changed:
            return tuple(self._exits)

    @property
    def cpu_s(self) -> float:
        """Of processor time, over all its lives, children that ended included."""
        with self._changed:
            living_s = 0.0
            if self._process is not None:
                living_s = sum(psutil.Process(self._process.pid).cpu_times()[:4])
            return self._dead_cpu_s + living_s

    @property
    def memory_mb(self) -> float:
        """Resident, of the process that runs now."""
        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    def metrics_url(self) -> str:
        """Of the process that runs now; another one has another."""
        self.await_event("serving")
        return f"http://{self._door['metrics']}/metrics"

    def await_event(self, event: str, patience_s: float = PATIENCE_S) -> None:
        """Until the process that runs now has logged it."""
        self._await(lambda: self._events[event] > 0, f"to log {event!r}", patience_s)

    def await_start(self, number: int, event: str = "serving", patience_s: float = PATIENCE_S) -> None:
        """Until it was started so many times, the first included, and has logged the event."""
        self._await(lambda: self._starts >= number and self._events[event] > 0, f"to start ({number})", patience_s)

    def await_exit(self, number: int, patience_s: float = PATIENCE_S) -> int:
        """Until it ended so many times; how it did the last time."""
        self._await(lambda: len(self._exits) >= number, f"to end ({number})", patience_s)
        return self.exits[number - 1]

    def kill(self) -> None:
        """SIGKILL for it and its children; it is started again."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM; it drains, and is started again."""
        self._send(signal.SIGTERM, group=False)

    def retire(self) -> None:
        """SIGTERM; it drains, and is not started again until `bring_up`."""
        with self._changed:
            self._wanted = False
        self.terminate()

    def pause(self) -> None:
        """It stands still with its children; connections stay open."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def keep_down(self, patience_s: float = PATIENCE_S) -> None:
        """Killed, and not started until `bring_up`."""
        with self._changed:
            self._wanted = False
        self._send(signal.SIGKILL)
        self._await(lambda: self._process is None, "to end", patience_s)

    def bring_up(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify_all()

    def _send(self, number: signal.Signals, group: bool = True) -> None:
        with self._changed:
            # Under the lock, which the keeper needs to reap: the pid is ours, if only a zombie's.
            if self._process is not None:
                (os.killpg if group else os.kill)(self._process.pid, number)

    def _await(self, condition: Callable[[], bool], what: str, patience_s: float) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, patience_s):
                tail = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
                raise AssertionError(f"waited {patience_s:.0f} s for {self.name} {what}; its log ends: {tail}")

    def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._over)
                if self._over:
                    return
                process = self._process = start_child(self._command, None, self._env, own_group=True)
                self._starts += 1
                self._events.clear()
                self._changed.notify_all()
            reader = threading.Thread(target=self._read, args=(process,), name=f"log-{self.name}", daemon=True)
            reader.start()
            self._bury(process, reader)
            with self._changed:
                self._changed.wait_for(lambda: self._over or not self._wanted, pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _bury(self, process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._changed:
            # Still a zombie, so its group is still its own. A container's end is the end of all that is in it.
            os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._dead_cpu_s += usage.ru_utime + usage.ru_stime
            self._exits.append(process.returncode)
            self._process = None
            self._changed.notify_all()
        # Its children held the pipe too, and are gone.
        reader.join(PATIENCE_S)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout, self.log.open("ab") as log:
            log.write(f"--- pid {process.pid}, {time.strftime('%H:%M:%S')}\n".encode())
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith(b"{"):
                    self._notice(process, line)

    def _notice(self, process: subprocess.Popen[bytes], line: bytes) -> None:
        try:
            words = json.loads(line)
        except ValueError:  # cut off by a death
            return
        with self._changed:
            # Children log into the same pipe, and what was read late is of a process that is gone.
            if self._process is process and isinstance(words, dict):
                self._events[str(words.get("event"))] += 1
                if words.get("event") == "serving" and self._events["serving"] == 1:
                    self._door = words
                self._changed.notify_all()
