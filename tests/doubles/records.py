"""What a line has recorded, read straight from the ledger's tables: nothing of the services is trusted with it.

database ─> Records ─> lost? twice? wrong? acted otherwise than decided?
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Self

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

from inspectbus.api.v1.decision_pb2 import VERDICT_DEFECTIVE, VERDICT_HOLD, VERDICT_QUALIFIED, Decision
from inspectbus.api.v1.gate_pb2 import GateOutcome
from inspectbus.domain.gate import action_for, is_late


@dataclass(frozen=True)
class Records:
    """One moment of a ledger. All keys are frame ids."""

    decisions: dict[str, Decision]
    outcomes: dict[str, GateOutcome]
    duplicates: int
    """Decisions that came again and were only counted."""
    conflicts: int
    """Of these: not the same as the first."""

    @classmethod
    def read(cls, database_url: str) -> Self:
        url = make_url(database_url)
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                tables = inspect(connection).get_table_names()
                decisions, outcomes = {}, {}
                duplicates = conflicts = 0
                if "decisions" in tables:
                    for row in connection.execute(text("SELECT * FROM decisions")):
                        decisions[row.frame_id] = Decision.FromString(row.decision)
                        duplicates += row.duplicates
                        conflicts += row.conflicts
                if "outcomes" in tables:
                    for row in connection.execute(text("SELECT * FROM outcomes")):
                        outcomes[row.frame_id] = GateOutcome.FromString(row.outcome)
        finally:
            engine.dispose()
        return cls(decisions, outcomes, duplicates, conflicts)

    def lost(self, accepted: Collection[str]) -> set[str]:
        """Accepted frames without a decision."""
        return set(accepted) - set(self.decisions)

    def missing(self, station: str, frames: int) -> set[int]:
        """Places in a run of so many frames without a decision."""
        return set(range(frames)) - {each.sequence for each in self.decisions.values() if each.station == station}

    def twice(self) -> list[tuple[str, str, int]]:
        """Places of a station's run that were recorded under more than one frame id."""
        places = Counter((each.station, each.run_id, each.sequence) for each in self.decisions.values())
        return [place for place, count in places.items() if count > 1]

    def held(self) -> dict[str, str]:
        """HOLD decisions, by the item they came from: why."""
        return {each.source_item: each.hold.detail for each in self.decisions.values() if each.verdict == VERDICT_HOLD}

    def held_ids(self) -> set[str]:
        return {frame_id for frame_id, each in self.decisions.items() if each.verdict == VERDICT_HOLD}

    def wrong(self) -> list[str]:
        """Items that were judged otherwise than their name says."""
        meant = {"bright": VERDICT_DEFECTIVE, "dark": VERDICT_QUALIFIED}
        return [
            each.source_item
            for each in self.decisions.values()
            if each.verdict != meant.get(each.source_item.removesuffix(".png").rpartition("-")[2], each.verdict)
        ]

    def without_outcome(self) -> set[str]:
        return set(self.decisions) - set(self.outcomes)

    def late(self) -> set[str]:
        """Parts the station acted on without a decision."""
        return {frame_id for frame_id, outcome in self.outcomes.items() if is_late(outcome)}

    def disobeyed(self) -> set[str]:
        """Parts the station acted on in time, and otherwise than was decided."""
        return {
            frame_id
            for frame_id, outcome in self.outcomes.items()
            if not is_late(outcome)
            and (frame_id not in self.decisions or outcome.action != action_for(self.decisions[frame_id].verdict))
        }


def await_records(database_url: str, enough: Callable[[Records], bool], patience_s: float) -> Records:
    """The records as soon as they are enough."""
    deadline_s = time.monotonic() + patience_s
    pause = threading.Event()
    while not enough(records := Records.read(database_url)):
        if time.monotonic() > deadline_s:
            raise AssertionError(
                f"after {patience_s:.0f} s there are {len(records.decisions)} decisions and "
                f"{len(records.outcomes)} outcomes, and that is not enough"
            )
        pause.wait(0.1)
    return records
