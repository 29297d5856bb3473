"""fastconv beside its peers, in one run: correctness first, then interleaved medians and their ratios.

    python benchmarks/compare.py --networks resnet50 vgg16 --batch 8 --threads 2

A ratio is the peer's time over ours: above 1 we are faster. Peers that are not installed are named.
With --json the figures and the machine's description go to a file.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import (
    CONV_DIRECTIONS,
    PEERS,
    POOL_DIRECTIONS,
    Call,
    conv_arrays,
    fastconv_conv,
    fastconv_pool,
    pool_arrays,
    set_threads,
)
from ratios import geometric_means
from workloads import CONV_LAYERS, POOL_LAYERS, ConvLayer, PoolLayer

import fastconv as fc

TOLERANCE = {"float32": 2e-4, "float64": 1e-10}  # of the largest result: a wrong kernel is far beyond
PAUSE, WARM_UP = 0.08, 0.03  # seconds before a contender's turn
TIMED = 5  # calls at each turn
FEWEST_ROUNDS = 5
Row = dict[str, Any]


def interleaved(calls: dict[str, Call], budget: float) -> dict[str, float]:
    """The median seconds of each call. They take turns: a change of the machine's speed meets all of them.

    Nobody is measured against the waiting of others: threads of BLAS and ONNX Runtime spin for some tens of
    milliseconds after their work, so each turn begins with a pause, and then untimed calls that wake its own.
    """
    rounds = FEWEST_ROUNDS
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    done = 0
    while done < rounds:
        for name, call in calls.items():
            time.sleep(PAUSE)
            run_for(WARM_UP, call)
            for _ in range(TIMED):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        done += 1
        rounds = max(FEWEST_ROUNDS, int(budget / (time.perf_counter() - started) * done))
    return {name: statistics.median(values) for name, values in seconds.items()}


def run_for(seconds: float, call: Call) -> None:
    """Call at least once."""
    until = time.perf_counter() + seconds
    call()
    while time.perf_counter() < until:
        call()


def check_agreement(label: str, calls: dict[str, Call], dtype: str) -> None:
    """Every contender computes the same thing, or there is nothing to compare."""
    results = {name: np.asarray(call()) for name, call in calls.items()}
    first = next(iter(results))
    scale = np.abs(results[first]).max() or 1
    for name, result in results.items():
        error = float(np.abs(result - results[first]).max() / scale)
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f"{label}: {name} differs from {first} by {error:.1e} of the largest element")


def measure(
    label: str, ours: str, prepare: Callable[[str], Call | None], peers: list[str], budget: float, dtype: str
) -> Row:
    """One row: seconds of each contender that has the operation."""
    calls = {name: call for name in [ours, *peers] if (call := prepare(name)) is not None}
    check_agreement(label, calls, dtype)
    return {"label": label, "seconds": interleaved(calls, budget)}


def workloads(args: argparse.Namespace) -> Iterator[tuple[str, ConvLayer | PoolLayer, str]]:
    for network in args.networks:
        for direction in args.directions:
            for layer in CONV_LAYERS[network]:
                if args.filter in layer.name:
                    yield f"{network} {direction}", layer, direction
    if args.pool:
        for direction in POOL_DIRECTIONS:
            for pool in POOL_LAYERS:
                if args.filter in pool.name:
                    yield f"pool {direction}", pool, direction


def report(rows: list[Row], ours: str, peers: list[str]) -> None:
    """Geometric means of the ratios over each group, and the ratio of whole networks' sums."""
    print(f"\n{'geometric mean of ratios':44}" + "".join(f"{peer:>10}" for peer in peers))
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group, members in groups.items():
        means = geometric_means(members, ours).get(group, {})
        cells = [f"{means[peer]:10.2f}" if peer in means else f"{'-':>10}" for peer in peers]
        print(f"{group:44}" + "".join(cells))
    print(f"\n{'sum over the network, ratio':44}" + "".join(f"{peer:>10}" for peer in peers))
    for group, members in groups.items():
        cells = []
        for peer in peers:
            both = [m for m in members if peer in m["seconds"]]
            total = sum(m["count"] * m["seconds"][ours] for m in both)
            cells.append(
                f"{sum(m['count'] * m['seconds'][peer] for m in both) / total:10.2f}"
                if both
                else f"{'-':>10}"
            )
        print(f"{group:44}" + "".join(cells))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line),
            model,
        )
    return {"processor": model, "config": fc.show_config("dicts")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="*", default=["resnet50", "vgg16", "mobilenet_v2"], choices=list(CONV_LAYERS)
    )
    parser.add_argument("--directions", nargs="*", default=list(CONV_DIRECTIONS), choices=CONV_DIRECTIONS)
    parser.add_argument("--pool", action=argparse.BooleanOptionalAction, default=True, help="pooling too")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--backend", default="cpp", help="whose time is ours")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=fc.get_num_threads())
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--filter", default="", help="only layers whose name contains this")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each layer and direction")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    set_threads(args.threads)
    peers = []
    for name in args.peers:
        missing = PEERS[name].missing()
        if missing:
            print(f"{name}: not measured, {missing} is not installed")
        else:
            peers.append(name)
    ours = f"fastconv[{args.backend}]"
    print(f"batch {args.batch}, {args.threads} threads, {args.dtype}; ratio = peer's time / {ours}")
    print(f"{'':44}{'ms':>9}{'GF/s':>8}" + "".join(f"{peer:>10}" for peer in peers))
    rows: list[Row] = []
    for group, layer, direction in workloads(args):
        label = f"{layer.name} {direction}"
        if isinstance(layer, ConvLayer):
            arrays = conv_arrays(layer, args.batch, args.dtype)
            flops = layer.flops(args.batch)

            def prepare(
                name: str, layer: ConvLayer = layer, direction: str = direction, arrays: Any = arrays
            ) -> Call | None:
                chosen = fastconv_conv(args.backend) if name == ours else PEERS[name].conv
                return chosen(layer, direction, arrays)
        else:
            arrays = pool_arrays(layer, args.batch, args.dtype)
            flops = 0

            def prepare(
                name: str, layer: PoolLayer = layer, direction: str = direction, arrays: Any = arrays
            ) -> Call | None:
                chosen = fastconv_pool(args.backend) if name == ours else PEERS[name].pool
                return chosen(layer, direction, arrays)

        row = measure(label, ours, prepare, peers, args.budget, args.dtype)
        row |= {"group": group, "count": layer.count}
        rows.append(row)
        seconds = row["seconds"]
        ratios = "".join(
            f"{seconds[p] / seconds[ours]:10.2f}" if p in seconds else f"{'-':>10}" for p in peers
        )
        print(f"{label:44}{seconds[ours] * 1e3:9.3f}{flops / seconds[ours] / 1e9:8.0f}{ratios}", flush=True)
    report(rows, ours, peers)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        arguments = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
        }
        args.json.write_text(
            json.dumps({"machine": machine(), "arguments": arguments, "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
