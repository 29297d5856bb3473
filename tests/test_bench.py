"""``fastconv bench``: what it measures, checks, prints and writes, on layers that take microseconds."""

import functools
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli
from fastconv.backends import AUTOMATIC
from fastconv.bench import peers, plot, report, suite, timing, workloads
from fastconv.bench.contender import BenchError, NotOffered, operands
from fastconv.bench.peers import PEERS, Peer
from fastconv.bench.process import Process
from fastconv.bench.timing import Local, Method
from fastconv.bench.workloads import WORKLOADS, ConvLayer, PoolLayer

WORKING = [name for name in AUTOMATIC if fastconv.available_backends()[name] is True]
OURS = WORKING[0]
INSTALLED = [name for name, peer in PEERS.items() if peer.missing() is None]
QUICK = Method(pause=0, warm_up=0, calls=1, rounds=1, budget=1e-9)
TINY = [
    ConvLayer("tiny 2-3 3x3 @5", 2, 3, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), repeats=2),
    ConvLayer("tiny 2-3 k3 @9", 2, 3, (9,), (3,), (1,), (0,), (1,)),
]
needs_torch = pytest.mark.skipif(
    "torch" not in INSTALLED and os.environ.get("FASTCONV_REQUIRE_TORCH") != "1", reason="needs PyTorch"
)


@pytest.fixture
def bench(monkeypatch, capsys, tmp_path):
    """Runs ``fastconv bench`` in an empty folder, quickly, with the workload "tiny"; returns code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(WORKLOADS, "tiny", TINY)
    monkeypatch.setattr(timing, "Method", functools.partial(Method, pause=0, warm_up=0, calls=1))

    def bench(*arguments):
        try:
            code = cli.main(
                ["bench", "--rounds", "1", "--budget", "1e-9", "--threads", "1", *map(str, arguments)]
            )
        except SystemExit as stop:  # argparse
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return bench


def cells(output, label):
    """The cells of a row of the table, by column."""
    lines = output.splitlines()
    head = next(line for line in lines if " ms " in line).split("GF/s of ceiling")[1].split()
    row = next(line for line in lines if line.startswith(label))[len(label) :]
    found = re.split(r" {2,}", row.strip())
    return dict(zip(["ms", "GF/s", "of ceiling", *head], found, strict=True))


# --- workloads ---


@pytest.mark.parametrize(
    ("network", "multiply_adds"),
    [
        ("resnet50", 4.087e9),
        ("vgg16", 15.35e9),
        ("mobilenet_v2", 0.2995e9),
    ],  # their convolutions, as published
)
def test_networks_are_complete(network, multiply_adds):
    total = sum(layer.repeats * layer.flops(1) for layer in WORKLOADS[network])
    assert total / 2 == pytest.approx(multiply_adds, rel=0.005)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_names_are_unique(workload):
    names = [layer.name for layer in WORKLOADS[workload]]
    assert len(set(names)) == len(names)


def test_sizes():
    sizes = {layer.name: layer.output for layer in workloads.TRANSPOSED}
    assert sizes["transposed 512-256 4x4 s2 @8"] == (16, 16)
    assert sizes["transposed 21-21 64x64 s32 @7"] == (224, 224)
    assert sizes["transposed 128-64 3x3 s2 @56"] == (112, 112)
    dilated = workloads.DILATED[-1]
    assert (dilated.name, dilated.output) == ("dilated 512-512 3x3 d4 @33", (33, 33))
    inception = workloads.LARGE_KERNELS[4]
    assert (inception.kernel, inception.output) == ((1, 7), (17, 17))
    video = workloads.THREE_DIMENSIONAL[-1]
    assert (video.ndim, video.output) == (3, (4, 14, 14))


def shrunk(layer):
    """The same kind of layer, with few channels on small images."""
    if isinstance(layer, PoolLayer):
        return layer._replace(name="pool", channels=3, size=min(layer.size, 15))
    channels, groups = (min(layer.in_channels, 4), 5), 1
    if layer.groups > 1:
        channels, groups = ((3, 3), 3) if layer.groups == layer.in_channels else ((4, 6), 2)
    size = tuple(min(length, 200 if layer.ndim == 1 else 15) for length in layer.size)
    return layer._replace(
        name="layer", in_channels=channels[0], out_channels=channels[1], groups=groups, size=size
    )


@pytest.mark.parametrize("workload", workloads.CLASSES)
def test_every_contender_computes_every_class(workload, monkeypatch):
    monkeypatch.setitem(WORKLOADS, workload, list(dict.fromkeys(map(shrunk, WORKLOADS[workload]))))
    names = [name for name in INSTALLED if not PEERS[name].environment]
    settings = suite.Settings([workload], [OURS], names, batch=2, method=QUICK)
    for row in suite.measure(settings, names):
        assert row["seconds"].keys() | row["absent"].keys() == {f"fastconv[{OURS}]", *names}
        assert {f"fastconv[{OURS}]", "numpy"} <= row["seconds"].keys()
        assert ("torch" in row["seconds"]) == ("torch" in names)
        if row["direction"] == "forward" and row["flops"]:  # pooling has none
            assert ("ort" in row["seconds"]) == ("ort" in names)
            assert ("scipy" in row["seconds"]) == ("scipy" in names and workload != "transposed")
            assert ("torch_cl" in row["seconds"]) == ("torch_cl" in names and workload != "1d")


# --- the check ---


def test_a_wrong_kernel_is_caught(bench, monkeypatch):
    right = fastconv.conv2d
    monkeypatch.setattr(fastconv, "conv2d", lambda *args, **named: right(*args, **named) * 1.001)
    code, out, err = bench("tiny", "--peers", "numpy", "--backends", "reference")
    assert code == 2
    assert re.fullmatch(
        r"fastconv: error: tiny 2-3 3x3 @5 forward: fastconv\[reference\] differs from NumPy's result by 1\.0e-03 .*\n",
        err,
    )
    assert "tiny 2-3 3x3" not in out


def test_a_wrong_peer_is_caught(bench, monkeypatch):
    wrong = PEERS["numpy"]._replace(convolution=lambda layer, direction, a: lambda: a.grad_y)
    monkeypatch.setitem(PEERS, "numpy", wrong)
    code, _, err = bench("tiny", "--peers", "numpy", "--directions", "forward")
    assert code == 2
    assert "tiny 2-3 3x3 @5 forward: numpy differs" in err


@pytest.mark.parametrize("wrong", [np.full((2, 3), np.nan), np.ones((2, 1)), np.zeros((2, 3))])
def test_check(wrong):
    right = np.ones((2, 3))
    suite.check("somebody", right + 1e-6, right, 1e-5)
    with pytest.raises(
        BenchError, match=r"^somebody (differs|has a result of shape \(2, 1\), expected \(2, 3\))"
    ):
        suite.check("somebody", wrong, right, 1e-5)


# --- the clock ---


class Recorder:
    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, itertools.cycle(seconds), log

    def turn(self, method):
        self.log.append(self.name)
        return [next(self.seconds) for _ in range(method.calls)]


def test_contenders_take_turns_and_medians_count():
    log = []
    contenders = {"a": Recorder("a", [1, 2, 9], log), "b": Recorder("b", [5], log)}
    method = QUICK._replace(rounds=3, calls=3)
    assert timing.interleaved(contenders, method) == {"a": 2, "b": 5}
    assert log == ["a", "b"] * 3


def test_a_budget_buys_rounds():
    log = []
    contender = Recorder("a", [1], log)
    method = QUICK._replace(budget=0.05)
    pause = Local(lambda: time.sleep(0.001))
    timing.interleaved({"a": contender, "b": pause}, method)
    assert 3 < len(log) < 50


def test_a_turn_pauses_warms_up_and_times():
    calls = []

    def call():
        calls.append(time.perf_counter())
        time.sleep(0.002)

    started = time.perf_counter()
    seconds = Local(call).turn(Method(pause=0.02, warm_up=0.01, calls=3))
    assert calls[0] - started >= 0.02
    assert calls[-3] - calls[0] >= 0.01
    assert len(seconds) == 3
    assert min(seconds) >= 0.002


@needs_torch
def test_a_process_of_its_own():
    layer = TINY[0]
    with Process("torch_thp", threads=1) as other:
        environment = Path(f"/proc/{other._process.pid}/environ")
        if environment.exists():
            assert b"MALLOC_MMAP_THRESHOLD_=4294967296" in environment.read_bytes().split(b"\0")
        for direction in layer.directions:
            result = other.prepare(layer, direction, 2, "float64")
            expected = PEERS["numpy"].prepare(layer, direction, operands(layer, 2, "float64"))()
            suite.check(direction, result, expected, 1e-12)
        (seconds,) = other.turn(QUICK)
        assert 0 < seconds < 1
        other._process.kill()
        with pytest.raises(BenchError, match="torch_thp: its process has ended with exit status -9"):
            other.turn(QUICK)
    assert other._process.returncode is not None


def test_a_process_of_its_own_lacks_what_its_peer_lacks():
    with Process("ort", threads=1) as other, pytest.raises(NotOffered, match=r"^-$"):
        other.prepare(TINY[0], "grad_weight", 2, "float32")


@needs_torch
def test_settings_of_libraries_end_with_the_measurement():
    import torch

    before = torch.get_num_threads()
    with peers.set_up([PEERS["torch"]], before + 1):
        assert torch.get_num_threads() == fastconv.get_num_threads() == before + 1
        assert not torch.is_grad_enabled()
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


@pytest.mark.skipif("cpp" not in WORKING, reason="needs the compiled backend")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ceiling(isa, dtype):
    assert 1e8 < suite.ceiling(dtype, threads=2) < 1e14


def test_ceiling_refuses_what_has_none():
    native = pytest.importorskip("fastconv._native")
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64', got 'int8'"):
        native.fma_peak("int8", 1)
    with pytest.raises(ValueError, match=r"threads must lie in 1\.\.1024, got 0"):
        native.fma_peak("float32", 0)


# --- the report ---


def results(rows, **changes):
    """Results of made-up rows: (workload, repeats, flops, seconds by contender)."""
    made = [
        suite.Row(
            label=f"{workload} layer{i} forward",
            group=f"{workload} forward",
            workload=workload,
            direction="forward",
            batch=8,
            repeats=repeats,
            flops=flops,
            seconds=seconds,
            absent={name: "-" for name in ("torch", "numpy") if name not in seconds},
        )
        for i, (workload, repeats, flops, seconds) in enumerate(rows)
    ]
    arguments = {"batch": 8, "threads": 2, "dtype": "float32"}
    base = {
        "machine": {"processor": "a processor"},
        "arguments": arguments,
        "ours": ["fastconv[cpp]", "fastconv[numba]"],
        "peers": ["torch", "numpy"],
        "versions": {},
        "notes": [],
        "missing": {},
        "ceiling": 100e9,
        "rows": made,
    }
    return suite.Results(**{**base, **changes})


LENET = [
    ("lenet", 1, 30e9, {"fastconv[cpp]": 1.0, "fastconv[numba]": 4.0, "torch": 2.0, "numpy": 8.0}),
    ("lenet", 3, 60e9, {"fastconv[cpp]": 1.0, "fastconv[numba]": 1.0, "torch": 8.0, "numpy": 2.0}),
]


def test_means_and_sums():
    found = results(LENET)
    means = {"fastconv[numba]": 2.0, "torch": 4.0, "numpy": 4.0, "best": 2.0}
    assert report.geometric_means(found) == {"lenet forward": pytest.approx(means)}
    ((group, (seconds, ratios)),) = report.network_sums(found).items()
    assert (group, seconds) == ("lenet forward", 4.0)
    assert ratios == {"fastconv[numba]": 7 / 4, "torch": 26 / 4, "numpy": 14 / 4, "best": 2.0}


def test_sums_are_of_whole_networks_only():
    assert report.network_sums(results(LENET[:1])) == {}
    assert report.network_sums(results([("pool", *row[1:]) for row in LENET])) == {}
    without = [LENET[0], (*LENET[1][:3], {"fastconv[cpp]": 1.0, "numpy": 1.0})]
    ((_, ratios),) = report.network_sums(results(without)).values()
    assert ratios == {"numpy": 11 / 4, "best": 5 / 4}


def test_line():
    found = results(LENET)
    text = f"{report.head(found)}\n{report.line(found['rows'][0], found)}"
    assert cells(text, "lenet layer0 forward") == {
        "ms": "1000.000",
        "GF/s": "30.0",
        "of ceiling": "30 %",
        "fastconv[numba]": "4.00",
        "torch": "2.00",
        "numpy": "8.00",
        "best": "2.00",
    }
    unknown = results([("pool", 1, 0, {"fastconv[cpp]": 1.0})], ceiling=None)
    found = cells(
        f"{report.head(unknown)}\n{report.line(unknown['rows'][0], unknown)}", "pool layer0 forward"
    )
    assert {name for name, cell in found.items() if cell == "-"} == found.keys() - {"ms"}


def test_bars():
    first, second = plot.bars(results(LENET))
    assert first == ("lenet layer0 forward", 30.0, 15.0)
    assert second == ("lenet layer1 forward", 60.0, 30.0)
    (group,) = plot.bars(results(LENET * 21))
    assert group == ("lenet forward", pytest.approx(210 / 4), pytest.approx(210 / 8))
    (alone,) = plot.bars(results([("lenet", 1, 30e9, {"fastconv[cpp]": 1.0})]))
    assert alone.best is None
    assert plot.bars(results([("pool", 1, 0, {"fastconv[cpp]": 1.0})])) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_for_terminals_only(monkeypatch):
    now = itertools.count(0, 100)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    for stream in (Terminal(), io.StringIO()):
        progress = report.Progress(5, stream)
        progress.show(0)
        progress.show(1)
        progress.show(4)
        progress.clear()
        shown = re.split(r"\r\x1b\[K", stream.getvalue())
        wanted = ["", "0/5", "1/5, 7 min left", "4/5, 50 s left", ""]
        assert shown == (wanted if stream.isatty() else [""])


# --- the command ---


def test_a_run(bench, tmp_path):
    pytest.importorskip("matplotlib")
    files = ["--json", "out/figures.json", "--plot", "out/chart.png"]
    code, out, err = bench(
        "tiny", "pool", "--filter", "tiny", "--peers", "numpy", "--backends", f"{OURS},reference", *files
    )
    assert (code, err) == (0, "")
    assert f"batch 8, 1 thread, float32; ratio = the other's time / fastconv[{OURS}]" in out
    for layer, direction in itertools.product(TINY, workloads.DIRECTIONS):
        found = cells(out, f"{layer.name} {direction}")
        assert list(found) == ["ms", "GF/s", "of ceiling", "fastconv[reference]", "numpy", "best"]
        assert found["best"] == found["numpy"]
        assert float(found["ms"]) > 0
    assert "pool" not in out

    written = json.loads((tmp_path / "out/figures.json").read_text())
    assert len(written["rows"]) == 6
    assert written["machine"]["config"]["fastconv"] == fastconv.__version__
    assert written["arguments"]["threads"] == 1
    assert (written["ceiling"] is not None) == ("cpp" in WORKING)
    for row in written["rows"]:
        assert row["seconds"].keys() == {f"fastconv[{OURS}]", "fastconv[reference]", "numpy"}
    forward = [row["seconds"] for row in written["rows"] if row["direction"] == "forward"]
    mean = math.prod(seconds["numpy"] / seconds[f"fastconv[{OURS}]"] for seconds in forward) ** 0.5
    assert re.search(rf"^tiny forward .* {mean:.2f} +{mean:.2f}$", out, re.MULTILINE)

    drawn = (tmp_path / "out/chart.png").read_bytes()
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "out/chart.png").unlink()
    code, shown, _ = bench("--show", "out/figures.json", "--plot", "out/chart.png")
    assert (code, shown) == (0, out)
    assert (tmp_path / "out/chart.png").read_bytes() == drawn
    _, shown, _ = bench("--show", "out/figures.json", "--markdown")
    assert re.search(rf"^\| tiny forward \| [\d.]+ \| {mean:.2f} \|$", shown, re.MULTILINE)


def test_a_missing_peer_is_named(bench, monkeypatch):
    absent = Peer("Absent", ("no_such_module",), peers.not_offered, peers.not_offered)
    monkeypatch.setitem(PEERS, "absent", absent)
    code, out, _ = bench("tiny", "--peers", "absent,numpy", "--directions", "forward")
    assert code == 0
    assert "absent: not measured, no_such_module is not installed\n" in out
    assert "absent" not in cells(out, "tiny 2-3 3x3 @5 forward")


def test_threads_that_cannot_be_set_are_told(bench, monkeypatch):
    monkeypatch.setattr(suite, "can_limit_blas", lambda: False)
    _, out, _ = bench("tiny", "--peers", "numpy", "--directions", "forward")
    assert "numpy: has as many threads as the environment of its BLAS says" in out
    _, out, _ = bench("tiny", "--peers", "", "--directions", "forward")
    assert "threads as" not in out


def test_what_a_peer_lacks(bench, monkeypatch):
    pytest.importorskip("scipy")
    monkeypatch.setattr(peers, "SCIPY_LIMIT", TINY[1].flops(8))
    code, out, _ = bench("tiny", "--peers", "scipy", "--directions", "forward,grad_weight")
    assert code == 0
    assert cells(out, "tiny 2-3 3x3 @5 forward")["scipy"] == "too slow"
    assert float(cells(out, "tiny 2-3 k3 @9 forward")["scipy"]) > 0
    assert cells(out, "tiny 2-3 k3 @9 grad_weight")["scipy"] == "-"


def test_float64_and_no_peers(bench):
    code, out, _ = bench("tiny", "--peers", "", "--dtype", "float64", "--batch", 1, "--backends", "reference")
    assert code == 0
    assert "batch 1, 1 thread, float64" in out
    assert list(cells(out, "tiny 2-3 3x3 @5 forward")) == ["ms", "GF/s", "of ceiling"]


def test_the_list(bench):
    code, out, _ = bench("--list")
    assert code == 0
    assert "resnet50 (network)\n    resnet50 3-64 7x7 s2 @224\n" in out
    assert "transposed (class)\n" in out
    assert all(f"    {layer.name}\n" in out for layers in WORKLOADS.values() for layer in layers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet51"], r"WORKLOAD: must be one of resnet50, .*, got 'resnet51'"),
        (["--peers", "torch,tensorflow"], r"--peers: must be one of torch, .*, got 'tensorflow'"),
        (["--directions", "backward"], r"--directions: must be one of forward, .*, got 'backward'"),
        (["--backends", "cuda"], r"--backends: must be one of .*, got 'cuda'"),
        (["--batch", "0"], r"--batch: must be an int of at least 1, got '0'"),
        (["--dtype", "int8"], r"--dtype: invalid choice: 'int8'"),
        (["tiny", "--filter", "huge"], r"no layer of tiny has a name that contains 'huge'"),
        (["pool", "--directions", "grad_weight"], r"no layer of pool .* one of the directions grad_weight"),
        (["--show", "nothing.json"], r"nothing\.json: No such file"),
    ],
)
def test_refused(bench, arguments, words):
    code, _, err = bench(*arguments)
    assert code == 2
    assert re.search(words, err), err


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": []}'])
def test_show_refuses_other_files(bench, tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    code, _, err = bench("--show", "other.json")
    assert code == 2
    assert re.fullmatch(r"fastconv: error: other\.json: .*\n", err)


def test_ctrl_c_shows_and_keeps_what_there_is(bench, monkeypatch, tmp_path):
    def interrupted(settings, names):
        yield next(measure(settings, names))
        raise KeyboardInterrupt

    measure = suite.measure
    monkeypatch.setattr(suite, "measure", interrupted)
    code, out, err = bench("tiny", "--peers", "numpy", "--json", "some.json")
    assert (code, err) == (130, "interrupted\n")
    assert "geometric mean" in out
    assert len(json.loads((tmp_path / "some.json").read_text())["rows"]) == 1


def test_the_command_line_brings_in_no_peer():
    code = "import fastconv.cli, json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout))
    assert "fastconv.bench.peers" in loaded
    assert not loaded & {"matplotlib", *(module for peer in PEERS.values() for module in peer.needs)}
