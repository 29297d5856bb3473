"""A picture of the figures: what we and the best peer reach, under the processor's ceiling."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastconv.bench.contender import BenchError
from fastconv.bench.report import BEST, grouped, ratios
from fastconv.bench.suite import Results, Row
from fastconv.train.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LAYERS = 40  # that have a bar of their own


class Bar(NamedTuple):
    """Gigaflops per second; ``best`` is the best peer's, if there is one."""

    label: str
    ours: float
    best: float | None


def bars(results: Results) -> list[Bar]:
    """One for each layer where they are few, otherwise for each workload and direction."""
    rows = [row for row in results["rows"] if row["flops"]]
    if len(rows) <= MOST_LAYERS:
        return [_bar(row["label"], [row], results) for row in rows]
    return [_bar(group, members, results) for group, members in grouped(rows).items()]


def _bar(label: str, rows: list[Row], results: Results) -> Bar:
    """All operations of the rows over all their time, each as often as its network has it."""
    mine = results["ours"][0]
    flops = sum(row["repeats"] * row["flops"] for row in rows)
    ours = sum(row["repeats"] * row["seconds"][mine] for row in rows)
    best = [
        ratio * row["repeats"] * row["seconds"][mine]
        for row in rows
        if (ratio := ratios(row, results).get(BEST)) is not None
    ]
    complete = len(best) == len(rows)
    return Bar(label, flops / ours / 1e9, flops / sum(best) / 1e9 if complete else None)


def require_matplotlib() -> type[Figure]:
    """Matplotlib's figure; raises `ImportError` with what installs it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastconv[bench]'") from error
    return Figure


def draw(results: Results, path: Path) -> None:
    """Writes a bar chart as PNG.

    Raises
    ------
    BenchError
        If no row has floating-point operations, as with pooling alone.
    ImportError
        If matplotlib is missing.
    """
    figure_class = require_matplotlib()
    found = bars(results)
    if not found:
        raise BenchError(f"{path}: there is nothing to draw, pooling has no rate of operations")
    ours, arguments = results["ours"][0], results["arguments"]
    figure = figure_class(figsize=(9, 1.3 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    compared = [(place, bar.best) for place, bar in enumerate(found) if bar.best is not None]
    for label, shift, pairs in (
        (ours, -0.2, [(place, bar.ours) for place, bar in enumerate(found)]),
        ("best peer of each layer", 0.2, compared),
    ):
        if pairs:
            drawn = axes.barh(
                [place + shift for place, _ in pairs], [rate for _, rate in pairs], 0.38, label=label
            )
            axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=2)
    if results["ceiling"] is not None:
        axes.axvline(
            results["ceiling"] / 1e9, color="black", linewidth=1, linestyle="--", label="multiply-adds alone"
        )
    axes.set_yticks(range(len(found)), [bar.label.replace("_", " ") for bar in found], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel("GF/s, as many as direct summation takes (Winograd's algorithm takes fewer)")
    axes.set_title(
        f"batch {arguments['batch']}, {arguments['threads']} threads, {arguments['dtype']}, "
        f"{results['machine']['processor']}",
        fontsize=9,
    )
    figure.legend(fontsize=8, ncols=3, frameon=False, loc="outside lower center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
