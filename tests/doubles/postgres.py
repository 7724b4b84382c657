"""A real PostgreSQL of the test's own: a private folder, a port of 127.0.0.1, durable as in production.

with Postgres() as server:
    url = server.new_database()
    server.kill()       # as a power cut leaves it
    server.restart()
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import psycopg

from tests.doubles.certificates import Papers
from tests.doubles.children import lasting_port, start_child
from tests.doubles.servers import missing

PASSWORD = "plant-secret"
PATIENCE_S = 60.0


def _programs() -> Path:
    """The newest version's folder; Debian keeps it off the PATH."""
    found = shutil.which("postgres")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if not folders:
        missing("PostgreSQL", "apt-get install postgresql")
    return folders[-1].parent


def _account() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root, so root starts it as somebody else."""
    if os.geteuid() != 0:
        return None
    names = {each.pw_name for each in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _becoming(account: pwd.struct_passwd | None) -> list[str]:
    """The words before a command that is to run as that account; the kernel still ends it with its parent."""
    if account is None:
        return []
    return [
        *("setpriv", "--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups"),
        *("--pdeathsig", "KILL"),
    ]


class Postgres:
    """One server, started when it is entered. Databases are of its user 'inspectbus'.

    With `tls` it shows that certificate, and takes connections without TLS no more when it is entered.
    """

    def __init__(self, tls: Papers | None = None) -> None:
        self._tls = tls
        self._programs = _programs()
        self._account = _account()
        self._folder = Path(tempfile.mkdtemp(prefix="inspectbus-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._numbering = threading.Lock()
        self.port = lasting_port()

    def __enter__(self) -> Self:
        try:
            self._make_cluster()
            self.start()
        except BaseException:  # whatever it was, the folder must not stay
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """As an operator would write it."""
        return f"postgresql://inspectbus:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database that nobody has used."""
        with self._numbering:
            self._databases += 1
            name = f"test_{self._databases}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def start(self) -> None:
        """In the same folder and at the same port as before; answers when it takes connections."""
        assert self._process is None, "it runs already"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
            "shared_buffers": "32MB",
            # After a kill it brings every file to the disk before it answers. Hundreds of tests leave hundreds of
            # databases with hundreds of files each; by the file system at once takes a second, one by one a minute.
            "recovery_init_sync_method": "syncfs",
            # And it does again what it did since the last checkpoint, which after five minutes of tests takes as long.
            "checkpoint_timeout": "30s",
        }
        if self._tls is not None:
            settings |= {"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"}
        command: list[str | Path] = [*_becoming(self._account), self._programs / "postgres"]
        command += ["-D", self._folder / "data"]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = start_child(command, self._folder / "log", cwd=self._folder)
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")
            threading.Event().wait(0.05)

    def stop(self) -> None:
        """As `systemctl stop` does: connections are cut, everything is written down."""
        process = self._process
        assert process is not None, "it does not run"
        process.send_signal(signal.SIGINT)  # the fast shutdown
        process.wait(PATIENCE_S)
        self._process = None

    def kill(self) -> None:
        """SIGKILL for the server and each of its processes; does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _family(process.pid)
        process.kill()
        process.wait(PATIENCE_S)
        for each in family:
            if each.is_running():
                each.kill()
        psutil.wait_procs(family, timeout=PATIENCE_S)

    def restart(self) -> None:
        """Killed if it runs, then started again in the same folder."""
        self.kill()
        self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Every process of it stands still; its connections stay open and nobody answers."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *_family(self._process.pid)]
        for each in family:
            each.suspend()
        try:
            yield
        finally:
            for each in family:
                if each.is_running():
                    each.resume()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_cluster(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if self._account is not None:
            for path in (self._folder, password):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        subprocess.run(
            [
                *_becoming(self._account),
                self._programs / "initdb",
                *("--pgdata", self._folder / "data", "--username", "inspectbus", "--pwfile", password),
                # Nothing to lose yet: this is for the making alone, and spares its many small writes.
                *("--no-sync", "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S * 2,
            cwd=self._folder,
        )
        if self._tls is not None:
            self._make_tls(self._tls)

    def _make_tls(self, papers: Papers) -> None:
        data = self._folder / "data"
        for source, name in ((papers.certificate, "server.crt"), (papers.key, "server.key")):
            shutil.copy(source, data / name)
            (data / name).chmod(0o600)
            if self._account is not None:
                os.chown(data / name, self._account.pw_uid, self._account.pw_gid)
        rules = data / "pg_hba.conf"
        rules.write_text(re.sub(r"^host\b", "hostssl", rules.read_text(), flags=re.MULTILINE))


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
