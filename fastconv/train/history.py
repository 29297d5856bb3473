"""`History`: what training did, a row per epoch."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from fastconv.train.files import write_atomically

Row = dict[str, float]


class History:
    """A list of rows, each a dictionary of numbers for one epoch; ``history["loss"]`` is a column.

    Parameters
    ----------
    rows : list of dict, optional

    Examples
    --------
    >>> from fastconv.train import History
    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "val_loss": 0.75}])
    >>> history["loss"], history["val_loss"]
    ([0.5, 0.25], [None, 0.75])
    >>> print(history.csv(), end="")
    epoch,loss,val_loss
    1,0.5,
    2,0.25,0.75
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = list(rows or [])

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __getitem__(self, column: str) -> list[float | None]:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; there are {', '.join(self.columns) or 'none'}")
        return [row.get(column) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def append(self, row: Row) -> None:
        """Adds the row of another epoch."""
        self.rows.append(row)

    def csv(self) -> str:
        """Comma-separated values with a header line; numbers with all their digits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def json(self) -> str:
        """A list of objects; NaN and infinities, which JSON lacks, become null."""
        rows = [
            {name: value if math.isfinite(value) else None for name, value in row.items()}
            for row in self.rows
        ]
        return json.dumps(rows, indent=1, allow_nan=False) + "\n"

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes `csv` to a file."""
        write_atomically(path, self.csv().encode())

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Writes `json` to a file."""
        write_atomically(path, self.json().encode())

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.columns)})"


def table_header(row: Row) -> str:
    """The line above the table of epochs."""
    return "  ".join(f"{title:>{width}}" for title, width, _ in _columns(row))


def table_line(row: Row) -> str:
    """The line of one epoch in the table."""
    return "  ".join(f"{text:>{width}}" for _, width, text in _columns(row))


def _columns(row: Row) -> list[tuple[str, int, str]]:
    """Title, width and text of each column."""
    return [
        (title, max(width, len(title)), form(row[key])) for key, title, width, form in _TABLE if key in row
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


_TABLE: list[tuple[str, str, int, Any]] = [
    ("epoch", "epoch", 5, str),
    ("loss", "train loss", 10, "{:.4f}".format),
    ("accuracy", "train acc", 9, _percent),
    ("val_loss", "val loss", 8, "{:.4f}".format),
    ("val_accuracy", "val acc", 8, _percent),
    ("lr", "lr", 8, "{:.3g}".format),
    ("seconds", "seconds", 7, "{:.1f}".format),
]
