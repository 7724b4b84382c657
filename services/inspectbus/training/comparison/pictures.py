"""Figures of a comparison as PNG. Drawn without a display and without matplotlib's global state, so in any thread.

Comparison ─> Figure ─> bytes
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from inspectbus.domain.thresholds import Thresholds
from inspectbus.imaging.decoding import decode
from inspectbus.imaging.overlay import overlaid
from inspectbus.stores.datasets import Item, Label
from inspectbus.training.calibration import Floats
from inspectbus.training.comparison.conductor import ALL_KEY, CNN_KEY, LIGHT_KEY, Comparison, Key
from inspectbus.training.comparison.heatmaps import Explained, Marked
from inspectbus.training.comparison.measures import FIXED_OVERKILL, calibration_error, figures, reliability
from inspectbus.training.comparison.record import ordered
from inspectbus.training.evaluation import confusion_of
from inspectbus.training.pointing import agreement

DPI = 110
COLOURS = {
    # Okabe and Ito's palette, which colour-blind readers tell apart.
    "cnn": "#d55e00",
    "svm": "#0072b2",
    "knn": "#009e73",
    "bpn": "#cc79a7",
    "mlp": "#e69f00",
    "light": "#7f7f7f",
    "all-defective": "#b0b0b0",
}
TITLES = {
    "cnn": "CNN",
    "svm": "SVM",
    "knn": "KNN",
    "bpn": "BPN",
    "mlp": "MLP",
    "light": "grey and spread",
    "all-defective": "all defective",
}
SUSPECTS = 12
COLUMNS = 6
"""Of a gallery."""
MARK = "#ff40ff"
"""What people marked: magenta, which no heatmap has and few parts."""
TILE = 160
"""Side of a picture in a gallery, pixels."""


def title(key: Key) -> str:
    """As tables and legends call it."""
    return TITLES[key.model] + (", raw pixels" if key.form == "raw" else "")


def draw_all(found: Comparison, subsets: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of every figure this comparison has something for. `subsets` is record.subset_figures'."""
    yield "scores.png", png(_scores(found))
    for number, measure in ((4, "precision"), (5, "recall"), (6, "f1")):
        yield f"figure_{number}_{measure}.png", png(_by_subset(subsets, measure))
    if found.points:
        floor = figures(found.exam.labels, *_first(found, LIGHT_KEY))["accuracy"]
        yield "figure_7_accuracy.png", png(_accuracy_over_width(found, floor))
        yield "figure_8_run_time.png", png(_time_over_width(found))
    yield "confusion.png", png(_confusions(found))
    yield "roc.png", png(_curves(found, _roc))
    yield "precision_recall.png", png(_curves(found, _precision_recall))
    yield "reliability.png", png(_reliability(found))
    if found.hardest:
        words = [f"{each.item.label}, score {each.score:.2f}" for each in found.hardest]
        looks = [each.explained for each in found.hardest if each.explained is not None]
        yield "hardest.png", png(_gallery([each.item for each in found.hardest], words, looks))
    if found.pointing is not None and found.pointing.shown:
        yield "pointing.png", png(_pointing(found.pointing.shown))
    if found.suspicion is not None:
        rows = found.suspicion.suspects[:SUSPECTS]
        words = [
            f"called {found.train.items[row].label}: {100 * found.suspicion.confidence[row]:.1f} % sure" for row in rows
        ]
        yield "suspects.png", png(_gallery([found.train.items[row] for row in rows], words))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _new(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=9)
    return figure, axes


def _first(found: Comparison, key: Key) -> tuple[Floats, float]:
    answers = found.figures[key].answers[0]
    return answers.scores, answers.threshold


def _scores(found: Comparison) -> Figure:
    """F1 and AP of every model with their intervals."""
    keys = ordered(found)
    figure, axes = _new(9, 0.7 + 0.32 * len(keys), columns=2)
    for axis, measure, words in zip(axes, ("f1", "average_precision"), ("F1", "average precision"), strict=True):
        for row, key in enumerate(keys):
            interval = found.draws.interval(key.name, measure)
            colour = COLOURS[key.model]
            axis.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
            face = "white" if key.form == "raw" else colour
            axis.plot(interval.mean, row, "o", color=colour, markerfacecolor=face, markersize=7)
        axis.set_yticks(range(len(keys)), [title(key) for key in keys] if axis is axes[0] else [""] * len(keys))
        axis.invert_yaxis()
        axis.set_xlim(0, 1.02)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel(f"{words}, with 95 % interval", fontsize=9)
    return figure


def _by_subset(subsets: Mapping[str, Any], measure: str) -> Figure:
    models = [each for each in subsets["models"] if each["form"] != "raw"]
    names = [*subsets["images"], "average"]
    figure, (axis,) = _new(max(8.0, 0.9 * len(names)), 3.2)
    width = 0.8 / len(models)
    for number, each in enumerate(models):
        places = np.arange(len(names)) + (number - (len(models) - 1) / 2) * width
        heights = [each["subsets"][name][measure] for name in names]
        axis.bar(places, heights, 0.92 * width, color=COLOURS[each["model"]], label=TITLES[each["model"]])
    axis.axvline(len(names) - 1.5, color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(names)), names, rotation=20 if len(names) > 6 else 0)
    axis.set_ylim(0, 1)
    axis.set_ylabel({"f1": "F1"}.get(measure, measure))
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(models), fontsize=8, frameon=False)
    return figure


def _accuracy_over_width(found: Comparison, floor: float) -> Figure:
    figure, (axis,) = _new(8, 3.6)
    _over_width(found, axis, lambda point: point.accuracy)
    axis.axhline(floor, color=COLOURS["light"], linestyle=":", label=TITLES["light"])
    axis.set_ylabel("accuracy")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _time_over_width(found: Comparison) -> Figure:
    figure, axes = _new(9, 3.4, columns=2)
    _over_width(found, axes[0], lambda point: max(point.fit_s, 1e-9))
    axes[0].set_ylabel("seconds to fit")
    _over_width(found, axes[1], lambda point: max(1000 * point.predict_ms, 1e-9))
    axes[1].set_ylabel("microseconds per image, from features")
    for axis in axes:
        axis.set_yscale("log")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _over_width(found: Comparison, axis: Axes, value: Callable[[Any], float]) -> None:
    for model in dict.fromkeys(point.model for point in found.points):
        points = [point for point in found.points if point.model == model]
        axis.plot(
            [point.dimension for point in points],
            [value(point) for point in points],
            "o-",
            color=COLOURS[model],
            label=TITLES[model],
            markersize=4,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda width, _: f"{width:g}")
    axis.set_xlabel("feature dimension d")
    axis.grid(alpha=0.3)


def _confusions(found: Comparison) -> Figure:
    """Of the first seed."""
    keys = ordered(found)
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure, axes = _new(2.4 * columns, 2.3 * rows, rows, columns)
    for axis, key in zip(axes, keys, strict=False):
        scores, threshold = _first(found, key)
        found_here = confusion_of(found.exam.labels, scores, Thresholds(threshold, threshold))
        counts = np.array(
            [
                [found_here.true_negatives, found_here.false_positives],
                [found_here.false_negatives, found_here.true_positives],
            ]
        )
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.5
            axis.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
        axis.set_title(title(key), fontsize=9)
        axis.set_xticks([0, 1], ["passed", "rejected"])
        axis.set_yticks([0, 1], ["good", "defective"], rotation=90, va="center")
        axis.tick_params(length=0, labelsize=8)
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    return figure


def _curves(found: Comparison, curve: Callable[[Axes, Comparison, Key], None]) -> Figure:
    figure, axes = _new(9, 4.2, columns=2)
    for axis, forms, words in zip(
        axes, ((None, "frozen", "light"), (None, "raw", "light")), ("frozen features", "raw pixels"), strict=True
    ):
        for key in ordered(found):
            if key.form in forms:
                curve(axis, found, key)
        axis.set_title(f"others on {words}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.01)
        axis.legend(fontsize=8, frameon=False, loc="lower center" if curve is _precision_recall else "lower right")
    return figure


def _roc(axis: Axes, found: Comparison, key: Key) -> None:
    overkill, recall, _ = roc_curve(found.exam.labels, _first(found, key)[0])
    axis.plot(overkill, recall, color=COLOURS[key.model], label=TITLES[key.model], linewidth=1.6)
    axis.axvline(FIXED_OVERKILL, color="0.7", linewidth=0.8, linestyle=":")
    axis.set_xlabel("overkill")
    axis.set_ylabel("recall")


def _precision_recall(axis: Axes, found: Comparison, key: Key) -> None:
    precision, recall, _ = precision_recall_curve(found.exam.labels, _first(found, key)[0])
    axis.plot(
        recall, precision, drawstyle="steps-post", color=COLOURS[key.model], label=TITLES[key.model], linewidth=1.6
    )
    axis.set_xlabel("recall")
    axis.set_ylabel("precision")


def _reliability(found: Comparison) -> Figure:
    figure, (axis,) = _new(5, 4.6)
    axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    for key in ordered(found):
        if key.form == "raw" or key == ALL_KEY:
            continue
        scores, _ = _first(found, key)
        bins = reliability(found.exam.labels, scores)
        axis.plot(
            [score for score, _, _ in bins],
            [share for _, share, _ in bins],
            "o-",
            color=COLOURS[key.model],
            label=f"{TITLES[key.model]}, ECE {100 * calibration_error(found.exam.labels, scores):.1f} %",
            markersize=4,
            linewidth=2 if key == CNN_KEY else 1,
        )
    axis.set_xlabel("mean score of the images in a tenth")
    axis.set_ylabel("share of them defective")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _gallery(items: Sequence[Item], words: Sequence[str], looks: Sequence[Explained] = ()) -> Figure:
    """`looks`, where there are any, has one for each item: its heatmap stands below it."""
    columns = min(COLUMNS, len(items))
    each = 2 if looks else 1
    rows = -(-len(items) // columns) * each
    figure, axes = _new(1.9 * columns, 2.35 * rows, rows, columns)
    for axis in axes:
        axis.set_axis_off()
    for number, (item, said) in enumerate(zip(items, words, strict=True)):
        band, column = divmod(number, columns)
        axis = axes[band * each * columns + column]
        axis.imshow(_thumbnail(item))
        _entitle(axis, item, said)
        if looks:
            _look(axes[(band * each + 1) * columns + column], looks[number])
    return figure


def _pointing(shown: Sequence[Marked]) -> Figure:
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = _new(1.9 * columns, 2.35 * rows, rows, columns)
    for axis in axes:
        axis.set_axis_off()
    for axis, marked in zip(axes, shown, strict=False):
        alone = agreement([(marked.explained.heatmap, marked.mask)])
        _look(axis, marked.explained)
        axis.contour(marked.mask, levels=[0.5], colors=MARK, linewidths=1)
        _entitle(
            axis, marked.explained.item, f"{'hit' if alone.hits.mean else 'miss'}, {100 * alone.heat.mean:.0f} % inside"
        )
    return figure


def _entitle(axis: Axes, item: Item, said: str) -> None:
    axis.set_title(
        f"{item.name.rpartition('/')[2][-24:]}\n{said}",
        fontsize=6.5,
        color="#b00020" if item.label is Label.DEFECTIVE else "#1b5e20",
    )


def _look(axis: Axes, look: Explained) -> None:
    """In the proportions of the image as it was read, and in its coordinates."""
    axis.imshow(overlaid(look.picture, look.heatmap), extent=(-0.5, look.width - 0.5, look.height - 0.5, -0.5))


def _thumbnail(item: Item) -> NDArray[np.uint8]:
    picture = decode(item.read())
    step = max(1, max(picture.shape[:2]) // (2 * TILE))
    return picture[::step, ::step]
