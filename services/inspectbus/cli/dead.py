"""`inspectbus dead`: messages that could not be worked on, and what becomes of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inspectbus.cli import keeping
from inspectbus.cli.brokers import EMBEDDED, IS_EMBEDDED, BusUrl, addresses_of
from inspectbus.cli.printing import AsJson, json_line, plain, sheet, table

if TYPE_CHECKING:
    from google.protobuf.message import Message as ProtoMessage

    from inspectbus.bus.rabbitmq.dead import DeadLetters
    from inspectbus.bus.rabbitmq.letter import Letter
    from inspectbus.errors import NotPossibleNow

EXAMPLES = """Examples:

  inspectbus dead list

  inspectbus dead show 3f2a91c04d7e --save part.png

  inspectbus dead replay --all --queue inspectbus.inference.live"""

REASON_CHARS = 100
"""Of a reason in the table; `show` and --json have all of it."""
SHOWN_BYTES = 64
"""A field of bytes that is longer is told by its length: a hash is shown, an image is not."""

app = typer.Typer(no_args_is_help=True, help="List, show, replay and drop dead letters.")

Which = Annotated[str, typer.Argument(metavar="[ID]", help="A letter's id, or a frame's for all its letters.")]
All = Annotated[bool, typer.Option("--all", help="Every letter there is.")]
Queue = Annotated[str, typer.Option(help="Only letters that died in this queue.")]


@app.command("list", epilog="Example: inspectbus dead list --limit 20 --json")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the oldest first.")] = 100,
    queue: Queue = "",
    bus_url: BusUrl = EMBEDDED,
    as_json: AsJson = False,
) -> None:
    """List dead letters, and leave them as they are."""
    with _dead_letters(bus_url) as letters:
        total = letters.total
        found = [_facts(letter) for letter in letters.browse(limit, _chosen("", True, queue))]
    if as_json:
        for facts in found:
            json_line(facts)
    else:
        rows = [
            (
                facts["id"],
                facts["frame_id"],
                f"{facts['line']}/{facts['station']}",
                facts["queue"],
                _short(facts["reason"]),
                facts["attempts"],
                facts["first_failed"],
                facts["last_failed"],
                facts["size"],
            )
            for facts in found
        ]
        table(("id", "frame", "station", "queue", "reason", "attempts", "first failure", "last failure", "bytes"), rows)
    typer.echo(f"{len(found)} of {total} dead letters", err=True)


@app.command("show", epilog="Example: inspectbus dead show 3f2a91c04d7e --save part.png")
def show_letter(
    id: Annotated[str, typer.Argument(metavar="ID", help="A letter's id, or its frame's.")],
    save: Annotated[Path | None, typer.Option(help="Write the original image here.")] = None,
    config: keeping.Config = None,
    bus_url: BusUrl = EMBEDDED,
    as_json: AsJson = False,
) -> None:
    """Print one letter: why it died, and its message without the image's bytes."""
    from inspectbus.errors import NotFound

    with _dead_letters(bus_url) as letters:
        found = letters.browse(1, _chosen(id, False, ""))
    if not found:
        raise NotFound(f"there is no dead letter {id[:80]}", field="id")
    (letter,) = found
    facts = {**_facts(letter), "key": ".".join(letter.key), "message": _readable(letter)}
    if save is not None:
        keeping.save(save, _original(letter, config))
    if as_json:
        json_line(facts)
        return
    message = facts.pop("message")
    sheet([(name.replace("_", " "), value) for name, value in facts.items() if value != ""])
    typer.echo(json.dumps(message, indent=2))


@app.command("replay", epilog="Example: inspectbus dead replay --all --queue inspectbus.inference.live")
def replay_letters(
    id: Which = "",
    every: All = False,
    queue: Queue = "",
    unchanged: Annotated[bool, typer.Option(help="Also what cannot be read, as it is.")] = False,
    bus_url: BusUrl = EMBEDDED,
    as_json: AsJson = False,
) -> None:
    """Send letters again, to where they were first sent, as a revision one higher.

    Exit code 1 when a letter could not be sent again, and stays.
    """
    left = 0
    sent = 0

    def told(letter: Letter, problem: NotPossibleNow | None) -> None:
        nonlocal left, sent
        left += problem is not None
        sent += problem is None
        word = "replayed" if problem is None else problem.message
        if as_json:
            json_line({**_facts(letter), "replayed": problem is None, "problem": problem.message if problem else ""})
        else:
            typer.echo(plain(f"{letter.id}  {letter.frame_id or '-'}  {word}"))

    with _dead_letters(bus_url) as letters:
        letters.replay(_chosen(id, every, queue), told, unchanged=unchanged)
    _expect(sent + left, id)
    typer.echo(f"{sent} replayed, {left} left", err=True)
    if left:
        raise typer.Exit(1)


@app.command("drop", epilog="Example: inspectbus dead drop 3f2a91c04d7e")
def drop_letters(
    id: Which = "",
    every: All = False,
    queue: Queue = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bus_url: BusUrl = EMBEDDED,
    as_json: AsJson = False,
) -> None:
    """Delete letters for ever. The decisions about their frames stay."""
    with _dead_letters(bus_url) as letters:
        chosen = _chosen(id, every, queue)
        if not yes:
            what = "all dead letters" + (f" of {queue}" if queue else "") if every else f"dead letter {id}"
            _ask(plain(f"Delete {what} for ever?"))
        dropped = letters.drop(chosen)
    _expect(len(dropped), id)
    if as_json:
        for letter in dropped:
            json_line(_facts(letter))
    typer.echo(f"{len(dropped)} dropped", err=True)


def _dead_letters(url: str) -> DeadLetters:
    from inspectbus.errors import NotPossibleNow

    addresses = addresses_of(url)
    if addresses is None:
        raise NotPossibleNow(IS_EMBEDDED, field="bus_url")
    from inspectbus.bus.rabbitmq.dead import DeadLetters

    return DeadLetters(addresses)


def _chosen(id: str, every: bool, queue: str) -> Callable[[Letter], bool]:
    """Which letters a command means. Raises BadField when that is not clear."""
    from inspectbus.errors import BadField

    if bool(id) == every:
        raise BadField("name a letter's id, or --all: one of the two", field="id")
    if queue:
        from inspectbus.bus.rabbitmq.naming import letter_queues

        if queue not in letter_queues():
            raise BadField(f"no queue {queue[:80]!r}: there are {', '.join(letter_queues())}", field="queue")
    return lambda letter: (every or id in letter.names) and queue in ("", letter.queue)


def _ask(question: str) -> None:
    """Goes on after a yes only. Raises NotPossibleNow where nobody can answer."""
    from inspectbus.errors import NotPossibleNow

    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        raise NotPossibleNow("nothing is deleted without a yes: without a terminal, add --yes", field="yes") from None


def _expect(count: int, id: str) -> None:
    from inspectbus.errors import NotFound

    if id and not count:
        raise NotFound(f"there is no dead letter {id[:80]}", field="id")


def _facts(letter: Letter) -> dict[str, Any]:
    names = ("id", "frame_id", "line", "station", "topic", "queue", "reason", "attempts", "first_failed", "last_failed")
    return {name: getattr(letter, name) for name in (*names, "size")}


def _short(reason: str) -> str:
    return reason if len(reason) <= REASON_CHARS else reason[: REASON_CHARS - 1] + "…"


def _readable(letter: Letter) -> dict[str, Any] | None:
    """The body as JSON, its long bytes told by their number; None when it cannot be read."""
    if letter.content is None:
        return None
    from google.protobuf.json_format import MessageToDict

    try:
        told = MessageToDict(letter.content, preserving_proto_field_name=True)
    except ValueError as error:
        # A time beyond what a calendar holds, for one.
        return {"cannot be shown": plain(str(error))}
    _tell_long_bytes(letter.content, told)
    return told


def _tell_long_bytes(message: ProtoMessage, told: dict[str, Any]) -> None:
    for field, value in message.ListFields():
        if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
            told[field.name] = f"{len(value)} bytes"
        elif field.message_type is not None and isinstance(told.get(field.name), dict):
            _tell_long_bytes(value, told[field.name])


def _original(letter: Letter, config: Path | None) -> bytes:
    """The image file as the camera gave it. Raises NotFound, CorruptObject, NotPossibleNow."""
    from inspectbus.bus.rabbitmq.letter import image_of
    from inspectbus.errors import NotPossibleNow

    frame = image_of(letter.content)
    if frame is None:
        raise NotPossibleNow(f"dead letter {letter.id} carries no image", field="save")
    if not frame.HasField("claim"):
        return frame.image
    return keeping.open_frame_store(config).fetch(frame.claim)
