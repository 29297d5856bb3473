"""What is made of measured rows: tables, means, sums, Markdown.

A ratio is the other's time over ours: above 1 we are faster.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from fastconv.bench.peers import PEERS
from fastconv.bench.suite import Results, Row
from fastconv.bench.workloads import NETWORKS

Ratios = dict[str, float]  # of each contender
BEST = "best"  # the column of the fastest peer of each row
_LABEL, _CELL = 48, 11


def rivals(results: Results) -> list[str]:
    """Everyone beside the first of ours: other backends of ours, then peers."""
    return [*results["ours"][1:], *results["peers"]]


def ratios(row: Row, results: Results) -> Ratios:
    """The row's ratio to each rival that has a time, and to the best peer."""
    mine = row["seconds"][results["ours"][0]]
    found = {name: seconds / mine for name, seconds in row["seconds"].items() if name in rivals(results)}
    peers = [found[name] for name in results["peers"] if name in found]
    return {**found, BEST: min(peers)} if peers else found


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each workload and direction, by name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return groups


def geometric_means(results: Results) -> dict[str, Ratios]:
    """Of each group's ratios, over the rows that have one."""
    means = {}
    for group, rows in grouped(results["rows"]).items():
        found = [ratios(row, results) for row in rows]
        means[group] = {
            name: math.exp(statistics.fmean(math.log(row[name]) for row in found if name in row))
            for name in dict.fromkeys(name for row in found for name in row)
        }
    return means


def network_sums(results: Results) -> dict[str, tuple[float, Ratios]]:
    """Of each whole network and direction, our seconds, and the ratios of sums where a rival has every layer.

    The best peer's sum is made of the best of each layer.
    """
    mine = results["ours"][0]
    sums = {}
    for group, rows in grouped(results["rows"]).items():
        network = NETWORKS.get(rows[0]["workload"])
        if network is None or len(rows) != len(network):
            continue
        total = sum(row["repeats"] * row["seconds"][mine] for row in rows)
        found: Ratios = {}
        for name in (*rivals(results), BEST):
            times = [
                ratio * row["repeats"] * row["seconds"][mine]
                for row in rows
                if (ratio := ratios(row, results).get(name)) is not None
            ]
            if len(times) == len(rows):
                found[name] = sum(times) / total
        sums[group] = (total, found)
    return sums


# --- as text ---------------------------------------------------------------------------------------------


def head(results: Results) -> str:
    """What is measured, who takes part and who does not, and the table's head."""
    arguments, peak = results["arguments"], results["ceiling"]
    lines = list(results["notes"])
    lines.append(
        f"batch {arguments['batch']}, {_threads(arguments['threads'])}, {arguments['dtype']}; "
        f"ratio = the other's time / {results['ours'][0]}"
    )
    if peak is None:
        lines.append("ceiling: unknown, it is measured by the compiled backend")
    else:
        lines.append(f"ceiling: {peak / 1e9:.0f} GF/s, measured by multiply-adds alone")
    lines += ["", _line("", ["ms", "GF/s", "of ceiling", *columns(results)])]
    return "\n".join(lines)


def columns(results: Results) -> list[str]:
    """The names of the ratios' columns."""
    return [*rivals(results), *([BEST] if results["peers"] else [])]


def line(row: Row, results: Results) -> str:
    """A row of the table."""
    seconds = row["seconds"][results["ours"][0]]
    rate, share = "-", "-"
    if row["flops"]:
        rate = f"{row['flops'] / seconds / 1e9:.1f}"
        if results["ceiling"] is not None:
            share = f"{100 * row['flops'] / seconds / results['ceiling']:.0f} %"
    cells = _cells(ratios(row, results), results, row["absent"])
    return _line(row["label"], [f"{seconds * 1e3:.3f}", rate, share, *cells])


def summary(results: Results) -> str:
    """Geometric means of each group, and sums of whole networks."""
    lines = ["", _line("geometric mean of ratios", ["", "", "", *columns(results)])]
    lines += [
        _line(group, ["", "", "", *_cells(means, results)])
        for group, means in geometric_means(results).items()
    ]
    if sums := network_sums(results):
        lines += ["", _line("whole network, ratio of sums", ["ms", "", "", *columns(results)])]
        lines += [
            _line(group, [f"{seconds * 1e3:.1f}", "", "", *_cells(found, results)])
            for group, (seconds, found) in sums.items()
        ]
    return "\n".join(lines)


def markdown(results: Results) -> str:
    """The geometric means as a table, without the best peer's, for a README."""
    means = geometric_means(results)
    names = [name for name in rivals(results) if any(name in group for group in means.values())]
    titles = [PEERS[name].title if name in PEERS else name for name in names]
    lines = ["| layers of | " + " | ".join(titles) + " |", "|---" * (1 + len(names)) + "|"]
    for group, found in means.items():
        cells = [f"{found[name]:.2f}" if name in found else "" for name in names]
        lines.append(f"| {group.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(found: Ratios, results: Results, absent: Mapping[str, str] | None = None) -> list[str]:
    return [
        f"{found[name]:.2f}" if name in found else (absent or {}).get(name, "-") for name in columns(results)
    ]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:{_LABEL}}" + "".join(f" {cell:>{_CELL - 1}}" for cell in cells)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


class Progress:
    """How far a long run is: a line that overwrites itself, on a terminal only."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._shown = stream.isatty()
        self._started = time.monotonic()

    def show(self, done: int) -> None:
        """``done`` rows of all, and the time that the others will take if they are like these."""
        if not self._shown:
            return
        left = ""
        if done:
            seconds = (time.monotonic() - self._started) / done * (self._total - done)
            left = f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
        self._stream.write(f"\r\033[K{done}/{self._total}{left}")
        self._stream.flush()

    def clear(self) -> None:
        """Room for other output."""
        if self._shown:
            self._stream.write("\r\033[K")
            self._stream.flush()
