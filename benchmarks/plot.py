"""Draws what compare.py measured, and prints it as a table for Markdown.

python benchmarks/plot.py results.json comparison.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter
from ratios import geometric_means

NAMES = {
    "torch": "PyTorch",
    "torch_cl": "PyTorch channels_last",
    "ort": "ONNX Runtime",
    "numpy": "NumPy im2col + BLAS",
}


def markdown(means: dict[str, dict[str, float]]) -> str:
    """The geometric means as a table."""
    peers = [peer for peer in NAMES if any(peer in group for group in means.values())]
    lines = [
        "| layers of | " + " | ".join(NAMES[peer] for peer in peers) + " |",
        "|---" * (1 + len(peers)) + "|",
    ]
    for group, ratios in means.items():
        cells = [f"{ratios[peer]:.2f}" if peer in ratios else "" for peer in peers]
        lines.append(f"| {group.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    arguments, machine = results["arguments"], results["machine"]
    means = geometric_means(results["rows"], f"fastconv[{arguments['backend']}]")
    print(markdown(means))
    peers = [peer for peer in NAMES if any(peer in group for group in means.values())]

    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        places = [
            j + (i - (len(peers) - 1) / 2) * width for j, group in enumerate(means) if peer in means[group]
        ]
        heights = [group[peer] for group in means.values() if peer in group]
        bars = axes.bar(places, heights, width * 0.92, label=NAMES[peer])
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(
        range(len(means)), [group.replace(" ", "\n").replace("_", "\n") for group in means], fontsize=8
    )
    axes.set_ylabel("times faster than the peer")
    instructions = machine["config"]["backends"]["cpp"]["instruction set"].split()[0]
    axes.set_title(
        f"Geometric mean over the layers, batch {arguments['batch']}, {arguments['threads']} threads, "
        f"{arguments['dtype']}, {machine['processor']} ({instructions})",
        fontsize=9,
    )
    axes.legend(fontsize=8, ncols=len(peers), frameon=False, loc="upper left")
    axes.margins(y=0.15)
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
