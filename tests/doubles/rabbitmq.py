"""A real RabbitMQ of the test's own: private folders, ports of 127.0.0.1, limits small enough for a test machine.

    with Broker(folder) as broker:
        url = broker.new_vhost()    # broker.url(...) names one that exists
        broker.settle()             # after declaring queues, before any kill
        broker.kill()               # as a power cut leaves it
        broker.start()              # the same folders and the same ports

epmd (ours) <── node <── pika, erl_call, rabbitmqctl
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

from tests.doubles.children import lasting_port, start_child
from tests.doubles.servers import missing

PATIENCE_S = 60.0
"""For a start; it takes 4 to 9 s, and a loaded machine longer."""
MEMORY_BYTES = 1 << 30
"""At this the broker raises its memory alarm: publishers wait."""
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""Debian's. Those on the PATH change user and folder, and are of no use here."""
MANAGEMENT, PROMETHEUS = "rabbitmq_management", "rabbitmq_prometheus"


class Epmd:
    """The directory in which Erlang nodes find each other: one for us alone, so that no daemon is left behind."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("epmd") is None or shutil.which("erl_call") is None:
            missing("Erlang", "apt-get install rabbitmq-server")
        folder.mkdir(parents=True, exist_ok=True)
        self.port = lasting_port()
        self.cookie = secrets.token_hex(16)
        self._log = folder / "epmd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = start_child(["epmd", "-port", str(self.port), "-address", "127.0.0.1"], self._log)
        await_port(self.port, self._process)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


class Node:
    """One RabbitMQ process. Killed and started again it has the same name, ports and data."""

    def __init__(self, folder: Path, epmd: Epmd, plugins: Sequence[str] = (), config: Sequence[str] = ()) -> None:
        if not (PROGRAMS / "rabbitmq-server").exists():
            missing("RabbitMQ", "apt-get install rabbitmq-server")
        self.name = f"rabbit-{secrets.token_hex(4)}@localhost"
        self.port = lasting_port()
        self.management_port = lasting_port()
        self.metrics_port = lasting_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._write_files(epmd.cookie, plugins, config)
        self._environ = self._environment(epmd.port)

    def url(self, vhost: str = "/", user: str = "guest", password: str = "guest") -> str:
        return amqp_url([self.port], vhost, user, password)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        """What it told so far."""
        files = (self._folder / "output.log", self._folder / "node.log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def launch(self) -> None:
        """Starts without waiting."""
        assert self._process is None, f"{self.name} runs already"
        program = PROGRAMS / "rabbitmq-server"
        self._process = start_child([program], self._folder / "output.log", self._environ, self._folder)

    def await_ready(self) -> None:
        """Until it opens channels: its port first, then a handshake."""
        assert self._process is not None, f"{self.name} does not run"
        try:
            await_port(self.port, self._process)
            await_channel(self.port, self._process)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.log[-3000:]}") from None

    def start(self) -> None:
        self.launch()
        self.await_ready()

    def stop(self) -> None:
        """In order, as systemd would (SIGTERM)."""
        process = self._running()
        process.terminate()
        process.wait(PATIENCE_S)
        self._process = None

    def kill(self) -> None:
        """As a power cut would (SIGKILL), also when it stands still; does nothing when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE_S)

    def pause(self) -> None:
        """It stands still: connections stay open and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints. Takes most of a second: `evaluate` is for what is asked often."""
        return self._tell([str(PROGRAMS / "rabbitmqctl"), "--quiet", *arguments])

    def evaluate(self, erlang: str) -> str:
        """The value of an Erlang expression inside the node, as text. Takes 10 ms."""
        answer = self._tell(["erl_call", "-sname", self.name, "-e"], f"{erlang}.\n").strip()
        assert answer.startswith("{ok,"), f"{erlang}: {answer}"
        return answer.removeprefix("{ok,").removesuffix("}").strip()

    def settle(self) -> None:
        """Until it would know its newest queues again after SIGKILL: which it has, it writes down by and by."""
        self.evaluate("[ok = dets:sync(Table) || Table <- dets:all()]")

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    def _tell(self, command: Sequence[str], words: str = "") -> str:
        done = subprocess.run(
            command,
            input=words,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _write_files(self, cookie: str, plugins: Sequence[str], config: Sequence[str]) -> None:
        folder = self._folder
        for part in ("mnesia", "log", "generated", "schema", "plugins"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        secret = folder / ".erlang.cookie"
        secret.write_text(cookie)
        secret.chmod(0o400)
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "advanced.config").write_text("[].\n")
        lines = [
            f"vm_memory_high_watermark.absolute = {MEMORY_BYTES}",
            "disk_free_limit.absolute = 50MB",
            "raft.wal_max_size_bytes = 67108864",
            *config,
        ]
        if MANAGEMENT in plugins:
            lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.management_port}"]
        if PROMETHEUS in plugins:
            lines += ["prometheus.tcp.ip = 127.0.0.1", f"prometheus.tcp.port = {self.metrics_port}"]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")

    def _environment(self, epmd_port: int) -> dict[str, str]:
        folder = self._folder
        ours = {
            "HOME": folder,
            # The script then becomes the node: the pid we know is the node's own.
            "RUNNING_UNDER_SYSTEMD": "true",
            # Does not exist: otherwise the machine's own /etc/rabbitmq/rabbitmq-env.conf is read.
            "RABBITMQ_CONF_ENV_FILE": folder / "none.conf",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": lasting_port(),
            "RABBITMQ_MNESIA_BASE": folder / "mnesia",
            "RABBITMQ_MNESIA_DIR": folder / "mnesia" / "node",
            "RABBITMQ_LOG_BASE": folder / "log",
            "RABBITMQ_LOGS": folder / "node.log",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced.config",
            "RABBITMQ_GENERATED_CONFIG_DIR": folder / "generated",
            "RABBITMQ_SCHEMA_DIR": folder / "schema",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
            "RABBITMQ_PLUGINS_EXPAND_DIR": folder / "plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": folder / "feature_flags",
            "RABBITMQ_PID_FILE": folder / "pid",
            # Schedulers that wait for work sleep: tests, broker and services share few cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
            "ERL_EPMD_PORT": epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": 0,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {name: str(value) for name, value in ours.items()}


class Broker(Node):
    """One node with a directory of its own: the broker of a test session, or of a test that kills it."""

    def __init__(self, folder: Path, plugins: Sequence[str] = (), config: Sequence[str] = ()) -> None:
        """`config` is lines of rabbitmq.conf."""
        self._epmd = Epmd(folder)
        self._house = ExitStack()
        super().__init__(folder / "node", self._epmd, plugins, config)

    def __enter__(self) -> Self:
        self._house.enter_context(self._epmd)
        self._house.callback(self.kill)
        try:
            self.start()
        except BaseException:  # whatever it was, no process must stay
            self._house.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._house.close()

    @property
    def management_url(self) -> str:
        """Answers with the plugin MANAGEMENT alone."""
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def metrics_url(self) -> str:
        """Answers with the plugin PROMETHEUS alone."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def new_vhost(self) -> str:
        """The name of one that nobody has used, and where guest may do everything. Takes 15 ms."""
        vhost = f"test-{secrets.token_hex(6)}"
        self.evaluate(
            f'ok = rabbit_vhost:add(<<"{vhost}">>, <<"guest">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{vhost}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"guest">>)'
        )
        return vhost

    def drop_vhost(self, vhost: str) -> None:
        """With its queues, and the connections of whoever is still there."""
        self.evaluate(f'rabbit_vhost:delete(<<"{vhost}">>, <<"guest">>)')

    def import_definitions(self, definitions: Path | Mapping[str, Any]) -> None:
        """Users, vhosts, queues and policies, as `rabbitmqctl import_definitions` takes them."""
        if not isinstance(definitions, Path):
            path = self._folder / "definitions.json"
            path.write_text(json.dumps(definitions))
            definitions = path
        self.ctl("import_definitions", str(definitions))

    def memory_alarm(self, on: bool) -> None:
        """As if memory were short: while it is on, publishers wait."""
        limit = "0.0000001" if on else f"{{absolute, {MEMORY_BYTES}}}"
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")


def amqp_url(ports: Sequence[int], vhost: str, user: str, password: str) -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{hosts}/{quote(vhost, safe='')}"


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def connects() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
        except OSError:
            return False
        return True

    await_answer(connects, process)


def await_answer(asked: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not asked():
        assert process.poll() is None, f"it ended with {process.returncode} before it answered"
        assert time.monotonic() < deadline, f"no answer within {PATIENCE_S:.0f} s"
        pause.wait(0.05)


def await_channel(port: int, process: subprocess.Popen[bytes]) -> None:
    address = pika.ConnectionParameters("127.0.0.1", port, connection_attempts=1, socket_timeout=5)

    def opens() -> bool:
        try:
            with pika.BlockingConnection(address) as connection:
                connection.channel()
        except (AMQPError, AMQPConnectorException, OSError):
            return False
        return True

    await_answer(opens, process)
