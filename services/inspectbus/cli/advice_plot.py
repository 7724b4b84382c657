"""What `inspectbus advise --plot` draws: overkill and held parts over the escape limit, with their bounds."""

from __future__ import annotations

from pathlib import Path

from inspectbus.errors import NotPossibleNow
from inspectbus_client import AdvisedThreshold


def draw(found: AdvisedThreshold, file: Path) -> None:
    """Writes a PNG. Raises NotPossibleNow where matplotlib is not installed, OSError where nothing can be written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotPossibleNow("a plot needs matplotlib: pip install 'inspectbus[training]'", field="plot") from None
    curve, advice = found.curve, found.advice
    limits = [each.escape.at_most * 1e6 for each in curve]
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for share, word, colour in (("overkill", "rejected (overkill)", "C3"), ("held", "held", "C1")):
        seen, at_most = ([100 * getattr(getattr(each, share), end) for each in curve] for end in ("seen", "at_most"))
        if share == "held" and not any(each.qualified_below < each.threshold for each in curve):
            continue
        axes.plot(limits, seen, color=colour, marker=".", label=f"good parts {word}, seen")
        label = f"good parts {word}, at most (95 %)"
        axes.plot(limits, at_most, color=colour, marker="_", linestyle="--", label=label)
    at = advice.escape.at_most * 1e6
    axes.axvline(at, color="C0", label=f"advice: threshold {advice.threshold:.6f}")
    if advice.qualified_below < advice.threshold:
        axes.plot([], [], " ", label=f"qualified below {advice.qualified_below:.6f}")
    axes.axvspan(
        limits[0] / 2, limits[0], color="0.9", label=f"cannot be shown with {found.defective:,} defective images"
    )
    axes.set(
        xscale="log",
        xlim=(limits[0] / 2, max(limits[-1], at) * 1.1),
        ylim=(0, None),
        xlabel="defective parts that pass, at most (ppm, 95 % confidence)",
        ylabel="good parts, %",
        title=f"{found.name}/{found.version}, {found.good:,} good and {found.defective:,} defective validation images",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(file, format="png")
