"""What is made of measured rows: by compare.py, which prints it, and by plot.py, which draws it."""

from __future__ import annotations

import math
import statistics
from typing import Any


def geometric_means(rows: list[dict[str, Any]], ours: str) -> dict[str, dict[str, float]]:
    """Group -> peer -> geometric mean of the peer's time over ours."""
    logs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for peer, seconds in row["seconds"].items():
            if peer != ours:
                group = logs.setdefault(row["group"], {})
                group.setdefault(peer, []).append(math.log(seconds / row["seconds"][ours]))
    return {
        group: {peer: math.exp(statistics.fmean(values)) for peer, values in peers.items()}
        for group, peers in logs.items()
    }
