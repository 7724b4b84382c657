"""What the client hands out: frozen values in plain words, one per message of the contract.

    message ─ read(kind) ─> value     enum ─> word, Timestamp ─> aware datetime, Duration ─> timedelta,
    unset ─> None

Fields carry the contract's names, so protos/inspectbus/api/v1 is their documentation; a test compares the two.
"""

from __future__ import annotations

import functools
import json
import types
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from inspectbus.errors import BadField


class Verdict(StrEnum):
    QUALIFIED = "QUALIFIED"
    DEFECTIVE = "DEFECTIVE"
    HOLD = "HOLD"
    UNKNOWN = "UNKNOWN"
    """A word of a service newer than this client. Treat it as HOLD."""


class HoldReason(StrEnum):
    UNUSABLE_IMAGE = "UNUSABLE_IMAGE"
    UNCERTAIN_SCORE = "UNCERTAIN_SCORE"
    ERROR = "ERROR"
    NO_MODEL = "NO_MODEL"
    UNKNOWN = "UNKNOWN"


class Label(StrEnum):
    GOOD = "GOOD"
    DEFECTIVE = "DEFECTIVE"
    UNKNOWN = "UNKNOWN"


class GateAction(StrEnum):
    PASS = "PASS"  # noqa: S105 - a word of the line, no password
    REJECT = "REJECT"
    DIVERT = "DIVERT"
    UNKNOWN = "UNKNOWN"


class GateReason(StrEnum):
    DECISION = "DECISION"
    DEADLINE = "DEADLINE"
    RESTART = "RESTART"
    UNKNOWN = "UNKNOWN"


class StationState(StrEnum):
    STOPPED = "STOPPED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    LISTENING = "LISTENING"
    UNKNOWN = "UNKNOWN"


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Hold:
    reason: HoldReason
    detail: str
    measure: str
    value: float
    limit: float


@dataclass(frozen=True)
class Quality:
    sharpness: float
    brightness: float
    glare: float
    noise: float


@dataclass(frozen=True)
class Timings:
    captured_at: datetime | None
    preparing_at: datetime | None
    prepared_at: datetime | None
    queued_at: datetime | None
    inferred_at: datetime | None
    decided_at: datetime | None


@dataclass(frozen=True)
class Evidence:
    original_key: str
    prepared_key: str
    heatmap_key: str


@dataclass(frozen=True)
class Decision:
    """The outcome for one frame. `score` and `threshold` are None when the frame never reached a network.

    A score below `qualified_below` is good; between it and `threshold` the part is held. None: the threshold divides.
    """

    frame_id: str
    line: str
    station: str
    run_id: str
    source_item: str
    sequence: int
    part_id: str
    lot_id: str
    product: str
    verdict: Verdict
    hold: Hold | None
    score: float | None
    threshold: float | None
    model: str
    model_version: str
    recipe: str
    recipe_version: int
    preparation_hash: str
    quality: Quality | None
    timings: Timings
    evidence: Evidence
    truth: Label | None
    revision: int
    image_key: str
    pixels_key: str
    qualified_below: float | None
    model_alias: str

    @property
    def latency_s(self) -> float | None:
        """Seconds from capture to decision; None where a hop did not say."""
        begun, ended = self.timings.captured_at, self.timings.decided_at
        return (ended - begun).total_seconds() if begun and ended else None


@dataclass(frozen=True)
class GateOutcome:
    """What the station did with the part. `waited_s` is None when the station had restarted meanwhile."""

    frame_id: str
    line: str
    station: str
    run_id: str
    action: GateAction | None
    reason: GateReason | None
    at: datetime | None
    waited_s: float | None
    verdict: Verdict | None
    part_id: str


@dataclass(frozen=True)
class Record:
    """A decision as the ledger holds it. `truth` is the newest label, `gate` None until its outcome is recorded."""

    cursor: int
    decision: Decision
    recorded_at: datetime | None
    truth: Label | None
    duplicates: int
    conflicts: int
    gate: GateOutcome | None
    late: bool
    revisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Confusion:
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    held_defective: int
    held_good: int


@dataclass(frozen=True)
class Scores:
    """Each is None where it is not defined (0/0)."""

    confusion: Confusion
    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    escape: float | None
    overkill: float | None


@dataclass(frozen=True)
class ScoresRow:
    group: str
    scores: Scores
    decisions: int
    """With and without known truth."""
    held: int
    """Of the decisions, with and without known truth; the confusion counts those whose truth is known."""


@dataclass(frozen=True)
class ScoresTable:
    overall: ScoresRow
    rows: tuple[ScoresRow, ...]


@dataclass(frozen=True)
class VerdictPair:
    """So many frames were decided one way, and the shadow said the other."""

    decided: Verdict
    shadow: Verdict
    frames: int


@dataclass(frozen=True)
class Agreement:
    """Two versions at one station, over the frames that both judged."""

    line: str
    station: str
    model_version: str
    shadow_version: str
    frames: int
    agreeing: int
    pairs: tuple[VerdictPair, ...]


@dataclass(frozen=True)
class Disagreement:
    """A frame on which the two verdicts differ."""

    frame_id: str
    line: str
    station: str
    model_version: str
    shadow_version: str
    decided: Verdict
    shadow: Verdict
    decided_score: float | None
    shadow_score: float
    truth: Label | None
    recorded_at: datetime | None


@dataclass(frozen=True)
class Station:
    line: str
    station: str
    recipe: str
    source: str
    state: StationState
    detail: str
    run_id: str
    accepted: int
    unreadable: int
    in_flight: int
    last_frame_at: datetime | None
    fps: float
    spooled: int
    spooled_bytes: int
    behind: timedelta | None
    dropped: int
    pending: int
    outcomes: int
    late: int
    deadline: timedelta | None
    fail_safe: GateAction | None


@dataclass(frozen=True)
class RecipeVersion:
    name: str
    version: int
    yaml: str
    sha256: str
    created_at: datetime | None


@dataclass(frozen=True)
class StoredRecipe:
    recipe: RecipeVersion
    created: bool


@dataclass(frozen=True)
class Pixels:
    """uint8, row-major, channels last, RGB: `numpy.frombuffer(p.data, "uint8").reshape(p.height, p.width, -1)`."""

    height: int
    width: int
    channels: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, array: Any) -> Pixels:
        """From anything with a buffer, such as a NumPy array of uint8 (height, width, channels)."""
        view = memoryview(array)
        if view.format != "B" or view.ndim != 3:
            raise BadField("pixels are uint8 of shape (height, width, channels)", field="pixels")
        assert view.shape is not None
        height, width, channels = view.shape
        return cls(height, width, channels, view.tobytes())


@dataclass(frozen=True)
class Prepared:
    """`hold` is set when the recipe's limits call the image unusable; the pixels are there all the same."""

    pixels: Pixels
    quality: Quality
    hold: Hold | None
    recipe: str
    recipe_version: int
    model: str
    model_alias: str
    preparation_hash: str


@dataclass(frozen=True)
class Judgement:
    score: float
    threshold: float
    verdict: Verdict
    model: str
    model_version: str
    qualified_below: float | None
    model_alias: str


@dataclass(frozen=True)
class EngineCandidate:
    name: str
    chosen: bool
    reason: str
    images_per_s: float | None
    deviation: float | None


@dataclass(frozen=True)
class ServedModel:
    """A model by one of its aliases; `detail` says why it does not judge."""

    model: str
    alias: str
    ready: bool
    detail: str
    model_version: str
    preparation_hash: str
    engine: str
    device: str
    loaded_at: datetime | None
    waiting: int
    computed_s: float


@dataclass(frozen=True)
class Engine:
    ready: bool
    detail: str
    engine: str
    device: str
    model: str
    model_version: str
    preparation_hash: str
    threshold: float
    loaded_at: datetime | None
    batches: dict[int, int]
    waiting: int
    queue_limit: int
    qualified_below: float | None
    candidates: tuple[EngineCandidate, ...]
    measured_at: datetime | None
    streams: int
    served: tuple[ServedModel, ...]


@dataclass(frozen=True)
class Model:
    name: str
    version: str
    aliases: tuple[str, ...]
    card_json: str = field(repr=False)
    registered_at: datetime | None

    @property
    def card(self) -> dict[str, Any]:
        """The model card: architecture, preparation, threshold, validation_scores, files."""
        return cast("dict[str, Any]", json.loads(self.card_json))


@dataclass(frozen=True)
class AliasChange:
    """An alias was pointed at `version`; `previous` is empty when it was new."""

    name: str
    alias: str
    version: str
    previous: str
    changed_at: datetime | None
    by: str
    reason: str
    forced: bool
    rollback: bool


@dataclass(frozen=True)
class BoundedShare:
    """Of parts, 0 to 1: among the validation images, and the upper 95 % bound for all parts like them."""

    seen: float
    at_most: float


@dataclass(frozen=True)
class ThresholdAdvice:
    """Two thresholds, equal where nothing is held. Escape and held_defective count defective parts, the rest good."""

    qualified_below: float
    threshold: float
    escape: BoundedShare
    overkill: BoundedShare
    held: BoundedShare
    held_defective: float


@dataclass(frozen=True)
class AdvisedThreshold:
    """`curve` has what other escape limits would give, from the lowest that the images can show upward."""

    name: str
    version: str
    advice: ThresholdAdvice
    curve: tuple[ThresholdAdvice, ...]
    good: int
    defective: int


@dataclass(frozen=True)
class TrainingPlan:
    data: str
    model: str
    backbone: str
    epochs: int
    seed: int | None
    input_size: int
    depth: str
    batch: int
    precision: str
    views: int
    dropout: float | None
    augmentation: Augmentation | None


@dataclass(frozen=True)
class Augmentation:
    """How images are varied while a network learns from them; None is the service's default."""

    flips: bool | None = None
    """Left-right mirror images; up-down ones too where turns are allowed."""
    turns: bool | None = None
    """Right angles; not for parts that have an up."""
    light: float | None = None
    """Brightness and contrast change by at most this share."""
    blur: float | None = None
    """Sigma of a Gaussian blur, pixels, at most."""
    noise: float | None = None
    """Standard deviation of noise, grey levels, at most."""
    perspective: float | None = None
    """Corners move by at most this share of the side."""


@dataclass(frozen=True)
class ComparisonPlan:
    data: str
    models: tuple[str, ...]
    seeds: int | None
    quick: bool
    images: int
    backbone: str
    epochs: int
    input_size: int
    depth: str
    turns: bool | None


@dataclass(frozen=True)
class Progress:
    stage: str
    done: int
    total: int
    figures: dict[str, float]
    step: int
    steps: int


@dataclass(frozen=True)
class Job:
    job_id: str
    state: JobState
    plan: TrainingPlan
    progress: Progress | None
    error: str
    model: str
    model_version: str
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    not_promoted: str
    attempts: int
    comparison: ComparisonPlan | None
    """None for a training."""


V = TypeVar("V")


def read(kind: type[V], message: Message) -> V:
    """The value a message says."""
    hints = _hints(kind)  # type: ignore[arg-type] # mypy takes type[V] for unhashable
    return kind(**{name: _plain(message, name, hint) for name, hint in hints.items()})


def number(message: Message, field_name: str, word: str) -> int:
    """The enum number a word stands for in a field. Raises BadField with the words there are."""
    descriptor = message.DESCRIPTOR.fields_by_name[field_name].enum_type
    words = _words(descriptor)
    for value, known in words.items():
        if known == word.upper().replace("-", "_"):
            return value
    raise BadField(f"{word!r} is not one of {', '.join(words.values())}", field=field_name)


def timestamp(moment: datetime, field_name: str) -> Timestamp:
    """Raises BadField for a time without a zone: guessing one would shift records by hours, silently."""
    if moment.tzinfo is None:
        raise BadField(f"{moment.isoformat()} has no time zone", field=field_name)
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _plain(message: Message, name: str, hint: Any) -> Any:
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if get_origin(hint) is dict:
        return dict(value)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(read(item, each) if isinstance(each, Message) else each for each in value)
    optional = get_origin(hint) in (Union, types.UnionType)
    if optional and descriptor.has_presence and not message.HasField(name):
        return None
    if descriptor.enum_type is not None:
        kind = get_args(hint)[0] if optional else hint
        return None if optional and value == 0 else kind(_words(descriptor.enum_type).get(value, "UNKNOWN"))
    if isinstance(value, Timestamp):
        return value.ToDatetime(tzinfo=UTC)
    if isinstance(value, Duration):
        return value.ToTimedelta()
    if isinstance(value, Message):
        return read(get_args(hint)[0] if optional else hint, value)
    return value


@functools.cache
def _words(descriptor: EnumDescriptor) -> dict[int, str]:
    """3 -> 'HOLD' for VERDICT_HOLD; the unspecified zero has no word."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in descriptor.values if value.number != 0}
