"""A survey: what a data set holds, and what would spoil a training or make its scores untrue.

Dataset ─> looks at every file ─> copies, likenesses ─> the split that training will use ─> Report
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath

from inspectbus.errors import BadField, NotPossibleNow
from inspectbus.stores.datasets.check.cuts import no_held_out, no_validation
from inspectbus.stores.datasets.check.files import NO_FILE, odd_manifest
from inspectbus.stores.datasets.check.likeness import MAX_PAIRS, MIN_PICTURES, alike
from inspectbus.stores.datasets.check.marks import half_marked
from inspectbus.stores.datasets.check.reading import Look, look_at_all
from inspectbus.stores.datasets.class_names import BESIDE, CLASS_NAMES, closest, plain
from inspectbus.stores.datasets.items import MAX_IMAGES, Dataset, Item, Label, images_in
from inspectbus.stores.datasets.manifests import SURE, manifest_of
from inspectbus.stores.datasets.splits import split

FEW = 30
"""Held-out defective images below which one of them moves the recall by more than three points."""
UNBALANCED = 10
"""Images of one class for one of the other, from which a training sees too little of the rare one."""

_SURE = 0.85
"""Likeness of a word to a class name from which it is told as that name misspelt: 'defectiv', but not 'defect-free'."""
_NAMED = 3
"""Items of a kind of trouble that its sentence names, where one does not show it; all are in the finding's files."""
_USUAL = 3
"""Images from which a size is one that a camera makes, and not one that somebody cut out by hand."""

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """Something to be mended."""

    about: str
    """One word: unreadable, manifest, groups, split, labels, copies, likeness, masks, folders, sizes."""
    says: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copies:
    """Files with the same bytes."""

    files: tuple[str, ...]
    labels: tuple[str, ...]
    """Those they have, each once."""
    astride: bool
    """Some are learnt from and some are held out."""


@dataclass(frozen=True)
class Alike:
    """Two files that show the same thing, or as good as the same."""

    files: tuple[str, str]
    labels: tuple[str, str]
    likeness: float
    turn: str
    """What to do with the second to see the first; empty where both stand alike."""
    same_group: bool
    astride: bool


@dataclass(frozen=True)
class Report:
    """What was counted, and what was found."""

    data: str
    root: str
    images: int
    labels: dict[str, int]
    kinds: dict[str, int]
    halves: dict[str, int]
    groups: int
    lots: int
    masks: int
    sizes: dict[str, dict[str, int]]
    """Images of each label by "<width>x<height>", in pixels."""
    split: dict[str, dict[str, int]]
    """Images of each label in "train" and "held out", as a training would have them; empty without labels."""
    split_words: str
    unreadable: dict[str, str]
    """Why, by file."""
    copies: list[Copies]
    alike: list[Alike]
    """Likest first; not more than a hundred thousand."""
    notes: list[str] = field(default_factory=list)
    """Worth knowing, and nothing to be mended."""
    findings: list[Finding] = field(default_factory=list)


def survey(dataset: Dataset, on_progress: OnProgress = lambda stage, done, total: None) -> Report:
    """Reads every image, and compares all with all. Files that cannot be read are findings, never an error."""
    looks = list(look_at_all(dataset.items, lambda done, total: on_progress("reading", done, total)))
    sides, words, trouble = _sides(dataset, {look.item.name for look in looks if look.trouble})
    report = Report(
        data=dataset.name,
        root=str(dataset.root),
        images=len(dataset.items),
        labels=_count(_word(item.label) for item in dataset.items),
        kinds=_count(item.kind for item in dataset.items if item.kind),
        halves=_count(item.half for item in dataset.items if item.half),
        groups=len({item.group for item in dataset.items if item.group}),
        lots=len({item.lot for item in dataset.items if item.lot}),
        masks=sum(item.mask is not None for item in dataset.items),
        sizes=_table((f"{look.width}x{look.height}", look.item) for look in looks if not look.trouble),
        split=_table((sides[item.name], item) for item in dataset.items) if sides else {},
        split_words=words,
        unreadable={look.item.name: look.trouble for look in looks if look.trouble},
        copies=_copies(looks, sides),
        alike=_alike(looks, sides, lambda done, total: on_progress("comparing", done, total)),
    )
    report.findings.extend(_findings(dataset, looks, report, trouble))
    report.notes.extend(_notes(dataset, report))
    return report


def _sides(dataset: Dataset, unreadable: Collection[str]) -> tuple[dict[str, str], str, str]:
    """On which side of the split each item stands, by name; how it was split; why a training cannot cut the set."""
    if not any(item.label for item in dataset.items):
        return {}, "", ""
    try:
        parts = split(dataset)
        trouble = no_validation(parts.train, unreadable)
    except BadField as error:
        return _own_halves(dataset), "", error.message if _astride(dataset) else no_held_out(dataset, error)
    except NotPossibleNow as error:  # no scikit-learn: copies are found all the same
        return _own_halves(dataset), f"not known: {error.message}", ""
    sides = {item.name: "train" for item in parts.train.items}
    sides |= {item.name: "held out" for item in parts.held_out.items}
    return sides, parts.held_out.words.partition(" of ")[2], trouble


def _own_halves(dataset: Dataset) -> dict[str, str]:
    if {item.half for item in dataset.items} != {"train", "test"}:
        return {}
    return {item.name: "held out" if item.half == "test" else "train" for item in dataset.items}


def _copies(looks: Sequence[Look], sides: dict[str, str]) -> list[Copies]:
    same: defaultdict[str, list[Item]] = defaultdict(list)
    for look in looks:
        if look.content:
            same[look.content].append(look.item)
    return [
        Copies(
            tuple(item.name for item in items),
            tuple(sorted({_word(item.label) for item in items})),
            len({sides.get(item.name) for item in items}) > 1,
        )
        for items in same.values()
        if len(items) > 1
    ]


def _alike(looks: Sequence[Look], sides: dict[str, str], on_progress: Callable[[int, int], None]) -> list[Alike]:
    """Of files with the same bytes only the first is compared: the others are copies, and told as such."""
    first = {look.content: look for look in reversed(looks) if look.sketch is not None}
    chosen = [look for look in looks if first.get(look.content) is look]
    found = []
    for pair in alike([look.sketch for look in chosen if look.sketch is not None], on_progress=on_progress):
        one, other = chosen[pair.first].item, chosen[pair.second].item
        found.append(
            Alike(
                (one.name, other.name),
                (_word(one.label), _word(other.label)),
                round(pair.likeness, 4),
                pair.turn,
                one.group is not None and one.group == other.group,
                sides.get(one.name) != sides.get(other.name),
            )
        )
    return found


def _findings(dataset: Dataset, looks: Sequence[Look], report: Report, trouble: str) -> Iterator[Finding]:
    if report.unreadable:
        name, why = next(iter(report.unreadable.items()))
        yield Finding(
            "unreadable",
            f"{len(report.unreadable)} of {report.images} files are no usable picture, such as {name}: {why}",
            tuple(report.unreadable),
        )
    if trouble:
        astride = _astride(dataset)
        yield Finding("groups" if astride else "split", trouble, astride)
    if manifest := odd_manifest(dataset):
        yield Finding("manifest", f"{dataset.root / manifest} {NO_FILE}", (manifest,))
    if marks := half_marked(dataset):
        yield Finding("split", marks, tuple(item.name for item in dataset.items if item.half))
    yield from _of_doubts(dataset)
    yield from _of_copies(report)
    yield from _of_likeness(report)
    yield from _of_masks(looks)
    yield from _of_folders(dataset)
    yield from _of_sizes(report)


def _astride(dataset: Dataset) -> tuple[str, ...]:
    """Files of the groups that stand in both of the set's own halves."""
    halves: defaultdict[str, set[str]] = defaultdict(set)
    for item in dataset.items:
        if item.group and item.half:
            halves[item.group].add(item.half)
    return tuple(item.name for item in dataset.items if item.group and len(halves[item.group]) > 1)


def _lots_astride(dataset: Dataset) -> list[str]:
    train, test = ({item.lot for item in dataset.items if item.lot and item.half == half} for half in ("train", "test"))
    return sorted(train & test)


def _of_doubts(dataset: Dataset) -> Iterator[Finding]:
    """Labels that the item's own probability speaks against: a slip, or people who overruled others."""
    told = ((item, item.probability) for item in dataset.items if item.label)
    odd = [
        (item, said) for item, said in told if said is not None and (said >= SURE) != (item.label is Label.DEFECTIVE)
    ]
    if odd:
        first = ", ".join(f"{item.name} ({item.label} at {said:g})" for item, said in odd[:_NAMED])
        yield Finding(
            "labels",
            f"{_times(len(odd), 'image')} labelled against the probability of a defect, such as {first}: correct one "
            "of the two, or keep both where people overruled others; a training aims between them",
            tuple(item.name for item, _ in odd),
        )


def _of_copies(report: Report) -> Iterator[Finding]:
    conflicts = [each for each in report.copies if len(each.labels) > 1]
    if conflicts:
        yield Finding(
            "labels",
            f"{_times(len(conflicts), 'picture')} stored with two labels, such as {' = '.join(conflicts[0].files[:2])}",
            _files(conflicts),
        )
    if leaks := [each for each in report.copies if each.astride]:
        yield Finding(
            "copies",
            f"{_times(len(leaks), 'picture')} both learnt from and held out, as copies byte for byte, "
            f"such as {' = '.join(leaks[0].files[:2])}",
            _files(leaks),
        )
    if others := [each for each in report.copies if not each.astride]:
        yield Finding(
            "copies",
            f"{_times(len(others), 'picture')} there more than once{_on_one_side(report)}, byte for byte, "
            f"such as {' = '.join(others[0].files[:2])}",
            _files(others),
        )


def _of_likeness(report: Report) -> Iterator[Finding]:
    leaks = [each for each in report.alike if each.astride and not each.same_group]
    if not leaks:
        return
    files = sorted({name for each in leaks for name in each.files})
    first = leaks[0]
    turn = f", {first.turn}" if first.turn else ""
    yield Finding(
        "likeness",
        f"{_pairs(len(leaks))} of near duplicates on both sides of the split ({len(files)} images), such as "
        f"{first.files[0]} and {first.files[1]}{turn} (likeness {first.likeness:.2f}): scores may be too good. Give "
        "both of a pair one group in a manifest",
        tuple(files),
    )


def _of_masks(looks: Sequence[Look]) -> Iterator[Finding]:
    if bad := [look for look in looks if look.mask_trouble]:
        yield Finding(
            "masks",
            f"{len(bad)} masks do not fit, such as {bad[0].mask_trouble}",
            tuple(look.item.name for look in bad),
        )


def _of_folders(dataset: Dataset) -> Iterator[Finding]:
    """Folders inside a class that sound like the other class, and folders the data set does not reach into."""
    inside: defaultdict[str, list[Item]] = defaultdict(list)
    for item in dataset.items:
        for part in PurePosixPath(item.name).parts[:-1]:
            inside[part].append(item)
    odd: dict[str, tuple[Label, str, list[str]]] = {}
    for part, items in inside.items():
        word = closest(part, CLASS_NAMES, _SURE)
        for item in items:
            if item.label and word and CLASS_NAMES[word] is not item.label:
                odd.setdefault(part, (item.label, word, []))[2].append(item.name)
    for part, (label, word, names) in odd.items():
        likely = "which is a name for" if plain(part) == word else f"perhaps {word!r} misspelt, a name for"
        yield Finding(
            "folders",
            f"{len(names)} images in a folder {part!r}, {likely} {CLASS_NAMES[word]} parts, are labelled {label}, "
            f"such as {names[0]}",
            tuple(names),
        )
    left = [] if manifest_of(dataset.root) else _left_out(dataset)
    if left:
        yield Finding(
            "folders",
            f"{len(left)} images below {dataset.root} do not belong to the data set, such as {left[0]}",
            tuple(left),
        )


def _left_out(dataset: Dataset) -> list[str]:
    known = {item.path for item in dataset.items} | {item.mask for item in dataset.items}
    left = []
    for path in islice(images_in(dataset.root, deep=True), MAX_IMAGES):
        name = path.relative_to(dataset.root)
        if path not in known and not any(plain(part) in BESIDE for part in name.parts[:-1]):
            left.append(name.as_posix())
    return left


def _of_sizes(report: Report) -> Iterator[Finding]:
    usual = {size: labels for size, labels in report.sizes.items() if sum(labels.values()) >= _USUAL}
    good, defective = ({size for size, labels in usual.items() if labels.get(label)} for label in Label)
    if good and defective and not good & defective:
        yield Finding(
            "sizes",
            f"no good image has the size of a defective one ({min(good)} and {min(defective)}): a model may learn the "
            "size and not the defect",
        )


def _notes(dataset: Dataset, report: Report) -> Iterator[str]:
    if not dataset.labelled:
        yield f"{report.labels.get('none', 0)} images have no label: they can be judged, and nothing learnt from them"
    counts = [dataset.count(label) for label in Label]
    if min(counts) and max(counts) >= UNBALANCED * min(counts):
        yield f"one class is {max(counts) / min(counts):.0f} times as large as the other"
    held_out = report.split.get("held out", {}).get(Label.DEFECTIVE, 0)
    if 0 < held_out < FEW:
        yield f"{held_out} defective images are held out: one of them moves the recall by {100 / held_out:.0f} points"
    if lots := _lots_astride(dataset):
        yield (
            f"{_times(len(lots), 'lot')} in both of the set's own halves, such as {lots[0]!r}: scores on the test half "
            "may not hold for the next lot"
        )
    near = [each for each in report.alike if not each.same_group and not each.astride]
    if near:
        yield (
            f"{_pairs(len(near))} of near duplicates{_on_one_side(report)}, such as {near[0].files[0]} and "
            f"{near[0].files[1]}: a part cut by image may have them on both of its sides"
        )
    if odds := [each for each in report.alike if each.labels[0] != each.labels[1]]:
        one, other = odds[0].files
        yield f"{_pairs(len(odds))} of near duplicates with two labels, such as {one} and {other}"
    if len(report.alike) >= MAX_PAIRS:
        yield f"the search for near duplicates ended at {MAX_PAIRS} pairs: there may be more"
    if report.images - len(report.unreadable) < MIN_PICTURES:
        yield f"near duplicates were not looked for: that takes {MIN_PICTURES} images"
    if manifest_of(dataset.root) and (left := _left_out(dataset)):
        yield f"{len(left)} images in the folder are not named by the manifest, such as {left[0]}"
    if dataset.labelled and not report.groups and not report.lots:
        yield "no groups are known: if a part was photographed several times, name it in a manifest's column 'group'"


def _count(words: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _table(cells: Iterator[tuple[str, Item]]) -> dict[str, dict[str, int]]:
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row, item in cells:
        rows[row][_word(item.label)] += 1
    return {row: dict(sorted(counts.items())) for row, counts in sorted(rows.items())}


def _word(label: Label | None) -> str:
    return str(label) if label else "none"


def _times(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _on_one_side(report: Report) -> str:
    return " on one side of the split" if report.split else ""


def _files(found: Sequence[Copies]) -> tuple[str, ...]:
    return tuple(name for each in found for name in each.files)
