"""Connections to PostgreSQL that notice a dead, paused or unplugged server in seconds.

    statement ─> the server ends it after STATEMENT_S ─> else we hang up after ANSWER_S
    no packets ─> the kernel hangs up after SILENCE_S
    we stall inside a transaction ─> the server ends it after STATEMENT_S, and with it our locks

A stopped server process is the case that no keepalive sees: its kernel goes on acknowledging packets. So whoever waits
for an answer looks at the clock himself.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

from psycopg import Connection, OperationalError, ProgrammingError
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Engine, create_engine, event

from inspectbus.errors import BadField

CONNECT_S = 5
STATEMENT_S = 15.0
"""As long as SQLite waits for a lock. Recording a batch takes milliseconds; scores over everything take the longest."""
GRACE_S = 2.0
"""How much longer than its own limit a server may take to say that it was reached."""
SILENCE_S = 10
POOL_SIZE = 8
"""Connections of one service: more work waits here, so that the server's hundred last for a plant's replicas."""
POOL_PATIENCE_S = 10.0

_LOOK_S = 0.25

T = TypeVar("T")


def postgresql_engine(url: URL, application: str, statement_s: float | None = None) -> Engine:
    """Quiet: connects when it is first used. What the URL says of a connection wins over what is said here.

    `application` is the name the server's own views show. No statement takes longer than statement_s, STATEMENT_S
    where it is not given. Raises BadField for an option that no connection has.
    """
    try:
        make_conninfo("", **{name: str(value) for name, value in url.query.items()})
    except ProgrammingError as error:
        raise BadField(f"the database URL: {str(error).strip()}", field="database_url") from None
    statement_s = statement_s or STATEMENT_S
    limits = {"statement_timeout": statement_s, "idle_in_transaction_session_timeout": STATEMENT_S}
    options = " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in limits.items())
    told = {
        "connect_timeout": CONNECT_S,
        "application_name": application,
        "keepalives": 1,
        "keepalives_idle": SILENCE_S // 2,
        "keepalives_interval": 1,
        "keepalives_count": SILENCE_S // 2,
        "tcp_user_timeout": SILENCE_S * 1000,
    }
    arguments: dict[str, object] = {name: value for name, value in told.items() if name not in url.query}
    # Of two settings of one name the later counts.
    arguments["options"] = f"{options} {url.query.get('options', '')}".strip()
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_PATIENCE_S,
        pool_pre_ping=True,
        # Errors end in logs, and parameters may be whole messages.
        hide_parameters=True,
    )

    def connect(_dialect: object, _record: object, args: Any, named: Any) -> _Impatient:
        connection = _Impatient.connect(*args, **named)
        connection.answer_s = statement_s + GRACE_S
        return connection

    event.listen(engine, "do_connect", connect)
    return engine


class _Impatient(Connection[Any]):
    """Hangs up on a server that does not answer."""

    answer_s = STATEMENT_S + GRACE_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **named: Any) -> T:
        try:
            return super().wait(self._bounded(gen), *args, **{**named, "interval": _LOOK_S})
        except _NoAnswer:
            # Whatever the server says later belongs to a statement nobody waits for.
            self.pgconn.finish()
            raise

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Psycopg's own conversation, which is also woken while nothing happens; then it looks at the clock."""
        deadline = time.monotonic() + self.answer_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    raise _NoAnswer(f"no answer within {self.answer_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result


class _NoAnswer(OperationalError):
    pass
