"""The versions that judge: one, and beside it the one before until its last image is answered.

loader ── swap ──> current ──┐
                   before  ──┴── chosen, by preparation or version ──> a door holds it, admits images, lets it go

An image is judged by the version whose batcher took it. So a swap is one assignment, between two images, and none is
ever without a version.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from inspectbus.bus import Lane
from inspectbus.domain.model_version import ModelCard
from inspectbus.errors import NotPossibleNow
from inspectbus.imaging import Image
from inspectbus.inference.batcher import Batcher, Scored
from inspectbus.inference.choice import Choice
from inspectbus.inference.engine import Engine


class InHand:
    """How many images and doors still need a version. Apart from it, so that an old answer keeps no engine alive."""

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self._on_idle = on_idle
        self._lock = threading.Lock()
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    def add(self, count: int = 1) -> None:
        with self._lock:
            self._count += count

    def remove(self, _answered: Future[Scored] | None = None) -> None:
        with self._lock:
            self._count -= 1
            idle = not self._count
        if idle:
            self._on_idle()


class Serving:
    """A version with its warm engine and the batcher in front of it. Images are given to it only while it is held."""

    def __init__(
        self,
        card: ModelCard,
        alias: str,
        engine: Engine,
        batcher: Batcher,
        choice: Choice,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`alias` named it; empty where a folder was given, which answers to any. `on_idle` is called, on any thread,
        each time nobody needs it any more.
        """
        self.card = card
        self.alias = alias
        self.engine = engine
        self.batcher = batcher
        self.choice = choice
        """How the engine came to be the one."""
        self.loaded_at_s = time.time()
        """Seconds since the epoch."""
        self.in_hand = InHand(on_idle)

    def check_preparation(self, preparation_hash: str) -> None:
        """Raises NotPossibleNow when pixels were prepared otherwise than the version was trained and tested on."""
        if preparation_hash != self.card.preparation.hash:
            raise NotPossibleNow(
                f"the pixels went through preparation {preparation_hash or '(unnamed)'}; "
                f"{self.card.name} {self.card.version} expects {self.card.preparation.hash}",
                field="preparation_hash",
            )

    def call(self, image: Image, deadline_s: float) -> Future[Scored]:
        """As `Batcher.call`."""
        (future,) = self.call_all([image], deadline_s)
        return future

    def call_all(self, images: Sequence[Image], deadline_s: float) -> list[Future[Scored]]:
        """As `Batcher.call_all`."""
        return self._counted(self.batcher.call_all(images, deadline_s))

    def deliver(self, image: Image, lane: Lane) -> Future[Scored]:
        """As `Batcher.deliver`."""
        (future,) = self._counted([self.batcher.deliver(image, lane)])
        return future

    def _counted(self, futures: list[Future[Scored]]) -> list[Future[Scored]]:
        self.in_hand.add(len(futures))
        for future in futures:
            future.add_done_callback(self.in_hand.remove)
        return futures


class InService:
    """Thread-safe. At most two versions: `swap` is for when `before` is None, or the one that comes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._current: Serving | None = None
        self._before: Serving | None = None
        self._stands_s = 0.0
        self._stands_until_s = 0.0
        self._closed = False
        self._gone_s = 0.0
        """Of streams, that versions were given which have gone."""

    @property
    def current(self) -> Serving | None:
        return self._current

    @property
    def before(self) -> Serving | None:
        return self._before

    @property
    def waiting(self) -> int:
        """Images that wait for an engine."""
        return sum(serving.batcher.waiting for serving in self._both())

    @property
    def computed_s(self) -> float:
        """Seconds of streams that all its versions were given."""
        with self._lock:
            return self._gone_s + sum(serving.batcher.computed_s for serving in self._present())

    def judges(self, preparation_hash: str) -> bool:
        """Whether some version takes pixels that were prepared so."""
        with self._lock:
            return any(serving.card.preparation.hash == preparation_hash for serving in self._open_to_images())

    @contextmanager
    def chosen(self, *, preparation_hash: str = "", version: str = "") -> Iterator[Serving | None]:
        """Holds the current version, or the one before where only that is what is asked for and it still stands.

        Gives the current one where neither is, and None where there is none: whoever asks checks what was given.
        """
        with self._lock:
            serving = self._current
            for each in self._open_to_images():
                if preparation_hash in ("", each.card.preparation.hash) and version in ("", each.card.version):
                    serving = each
                    if preparation_hash and each is self._before:
                        self._stands_until_s = self._clock() + self._stands_s  # more of them may be on their way
                    break
            if serving is not None:
                serving.in_hand.add()
        try:
            yield serving
        finally:
            if serving is not None:
                serving.in_hand.remove()

    def swap(self, new: Serving, stands_s: float) -> bool:
        """`new` takes everything from now on; False once closed, when nothing is swapped any more.

        The one before stays beside it where its preparation is another, until no image that was prepared for it has
        come for `stands_s`; else it only finishes what it has.
        """
        with self._lock:
            if self._closed:
                return False
            old = self._current
            self._current, self._before = new, old
            if old is not None and old.card.preparation.hash == new.card.preparation.hash:
                stands_s = 0.0
            self._stands_s, self._stands_until_s = stands_s, self._clock() + stands_s
            return True

    def leaves_in_s(self) -> float | None:
        """Until the version before takes nothing more; 0 where it only finishes what it has, None without one."""
        with self._lock:
            return None if self._before is None else max(0.0, self._stands_until_s - self._clock())

    def let_go(self) -> Serving | None:
        """Closes the version before once it takes nothing more and its last image is answered; gives it then."""
        with self._lock:
            before = self._before
            # Taken and counted under this lock: who does not hold it now never will.
            if before is None or self._clock() < self._stands_until_s or before.in_hand.count:
                return None
            self._before = None
            self._gone_s += before.batcher.computed_s
        before.batcher.close()
        return before

    def close(self) -> None:
        """Takes nothing more, and finishes what is in hand as `Batcher.close` does."""
        with self._lock:
            self._closed = True
        for serving in self._both():
            serving.batcher.close()

    def forget(self) -> None:
        """Once closed: the versions, and their engines' memory with them, are nobody's any more."""
        with self._lock:
            self._current = self._before = None

    def _both(self) -> list[Serving]:
        with self._lock:
            return self._present()

    def _present(self) -> list[Serving]:
        """Under the lock."""
        return [serving for serving in (self._current, self._before) if serving is not None]

    def _open_to_images(self) -> list[Serving]:
        """Under the lock."""
        standing = self._before if self._clock() < self._stands_until_s else None
        return [serving for serving in (self._current, standing) if serving is not None]
