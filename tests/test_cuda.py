"""The CUDA backend without a GPU: every kernel, order of threads and faults, in the emulator; compiling and its cache.

The tests of all backends run on the emulator, too. `make cuda-check` compiles the kernels for real devices.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import emulator
import numpy as np
import pytest
from cases import ADAPTIVE, CONVS, POOLS, TRANSPOSED, Conv, problem
from conftest import EMULATED, Target, chosen
from emulator import EmulatorError, device

import fastconv
from fastconv.backends.cupy import conv, launch, pool, registry
from fastconv.backends.cupy.registry import CONVOLVED, FLOATING, TILES, Kernel, all_kernels
from fastconv.geometry import ConvGeometry, conv_geometry, pool_geometry
from fastconv.testing import Problem, check_kernel

emulated = pytest.mark.skipif(not EMULATED, reason="the emulator is not tested here")

CASES = {case.name: case for case in (*TRANSPOSED, *CONVS)}
WINDOWS = {case.name: case for case in (*ADAPTIVE, *POOLS)}
ORDERS = (0, 1, 2, 3)  # of threads
WIDE = np.dtype(np.int64)


@pytest.fixture
def wide(monkeypatch):
    """Offsets of 64 bits, as arrays of more than 2**31 elements need them."""

    def clear():
        for plan in (conv.gather_plan, conv.grad_weight_plan, pool.pool_plan):
            plan.cache_clear()

    clear()
    for module in (conv, pool):
        monkeypatch.setattr(module, "index_type", lambda extents: WIDE)
    yield
    clear()


# --- every kernel ---


class Tiled:
    """The convolutions of the emulator with a given tile, and sums of weights in a given number of parts."""

    def __init__(self, tile, parts=None):
        self.tile, self.parts = tile, parts

    def conv_forward(self, x, weight, bias, activation, y, geometry):
        plan = conv.gather_plan(geometry, x.dtype, activation, True, self.tile)
        conv.run_gather(device, plan, x, weight, bias, y)

    def conv_grad_input(self, grad_y, weight, bias, activation, grad_x, geometry):
        plan = conv.gather_plan(geometry, grad_y.dtype, activation, False, self.tile)
        conv.run_gather(device, plan, grad_y, weight, bias, grad_x)

    def conv_grad_weight(self, x, grad_y, grad_weight, geometry):
        plan = conv.grad_weight_plan(geometry, x.dtype, self.tile, self.parts)
        conv.run_grad_weight(device, plan, x, grad_y, grad_weight)


TILE_CASES = (
    "nothing-is-square-3d",
    "resnet-strided",
    "channels-beyond-vectors",
    "depthwise-multiplier",
    "dcgan",
)
TILE_GEOMETRIES = {
    **{name: CASES[name].geometry for name in TILE_CASES},
    "several-tiles": conv_geometry("conv2d", 2, (2, 30, 17, 19), (150, 30, 3, 3), 1, 1, 1, 1),
}
every_tile = pytest.mark.parametrize(
    ("dtype", "tile"), [(dtype, tile) for dtype in CONVOLVED for tile in TILES[dtype]], ids=str
)


@emulated
@every_tile
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", TILE_GEOMETRIES)
def test_every_tile(name, parts, dtype, tile):
    geometry = TILE_GEOMETRIES[name]
    for kernel in (
        ("conv_grad_weight",) if parts > 1 else ("conv_forward", "conv_grad_input", "conv_grad_weight")
    ):
        found = problem(kernel, geometry, dtype, bias=kernel != "conv_grad_weight")
        check_kernel(Tiled(tile, parts), found)


@emulated
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("name", ["mobilenet-depthwise", "depthwise-3d", "one-output-channel"])
def test_parts_of_direct_sums(name, parts, dtype):
    check_kernel(Tiled(None, parts), problem("conv_grad_weight", CASES[name].geometry, dtype))


@emulated
@pytest.mark.parametrize("activation", fastconv.activations.ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kernel", ["conv_forward", "conv_grad_input"])
def test_activations_of_tiles(kernel, dtype, activation):
    geometry = CASES["resnet-strided"].geometry
    for tile in TILES[dtype]:
        check_kernel(Tiled(tile), problem(kernel, geometry, dtype, bias=True, activation=activation))


def every_problem() -> list[Problem]:
    """Calls that launch every kernel but some tiles."""
    depthwise, dense = CASES["depthwise-strided"].geometry, CASES["nothing-is-square"].geometry
    narrow, windows = CASES["resnext-grouped"].geometry, WINDOWS["exclude-padding-asymmetric"].geometry
    found = [
        problem(kernel, geometry, dtype)
        for kernel in ("conv_forward", "conv_grad_input", "conv_grad_weight")
        for geometry in (depthwise, dense, narrow)
        for dtype in CONVOLVED
    ]
    found += [problem("max_pool", windows, dtype) for dtype in registry.ELEMENTS]
    for kernel in ("max_pool_grad_input", "avg_pool", "avg_pool_grad_input"):
        found += [problem(kernel, windows, dtype) for dtype in FLOATING]
    return found


@emulated
@pytest.mark.smoke
@pytest.mark.parametrize("bits", [32, 64])
def test_every_kernel_is_launched(bits, request):
    """... and is right with offsets of either width."""
    if bits == 64:
        request.getfixturevalue("wide")
    device.launched = []
    try:
        for found in every_problem():
            check_kernel(emulator, found)
        for dtype in CONVOLVED:
            for tile in TILES[dtype]:
                for kernel in ("conv_forward", "conv_grad_weight"):
                    check_kernel(Tiled(tile, 2), problem(kernel, CASES["lenet-2"].geometry, dtype))
        launched = {kernel.expression for kernel in device.launched}
    finally:
        device.launched = None
    index = registry.ELEMENTS[f"int{bits}"]
    expected = {kernel.expression for kernel in all_kernels() if kernel.arguments[1] == index}
    assert launched == expected


def test_wide_offsets_where_they_are_needed():
    small = conv_geometry("conv1d", 1, (1, 1, 2**20), (1, 1, 3), 1, 1, 1, 1)
    large = conv_geometry("conv1d", 1, (1, 1, 2**31), (1, 1, 3), 1, 1, 1, 1)
    far = conv_geometry("conv1d", 1, (1, 1, 20), (1, 1, 2), 1, 2**40, 2**40, 1)
    index = [conv.forward_pass(geometry).index_type() for geometry in (small, large, far)]
    assert index == [np.int32, np.int64, np.int64]
    planes = [pool_geometry("p", 1, (1, n, 2**16), 2, None, 0, 1, False) for n in (1, 2**15)]
    assert [pool.Windows(*geometry).index_type() for geometry in planes] == [np.int32, np.int64]


def test_large_layers_get_large_tiles():
    """Such as no test computes."""
    dtype = np.dtype(np.float32)
    large = conv_geometry("conv2d", 2, (32, 256, 56, 56), (256, 256, 3, 3), 1, 1, 1, 1)
    (only,) = conv.gather_plan(large, dtype, None, True)
    assert only.kernel == registry.conv_gemm(dtype, np.dtype(np.int32), registry.LARGE, False)
    assert only.blocks == 2 * 32 * 56 * 56 // 128
    make, size, add = conv.grad_weight_plan(large, dtype)
    assert size % (256 * 256 * 9) == 0
    assert make.blocks * add.blocks > 0
    small = conv_geometry("conv2d", 2, (1, 256, 7, 7), (256, 256, 3, 3), 1, 1, 1, 1)
    assert conv.gather_plan(small, dtype, None, True)[0].blocks == 4


# --- what holds however threads run ---


@emulated
@pytest.mark.parametrize("name", ["nothing-is-square", "depthwise-strided", "dcgan", "video-3d-strided"])
def test_every_order_of_threads_gives_the_same_bits(name):
    geometry = CASES[name].geometry
    rng = np.random.default_rng(0)
    x, weight, y = (
        rng.standard_normal(s).astype(np.float32)
        for s in (geometry.x_shape, geometry.weight_shape, geometry.y_shape)
    )
    for tile in (None, *TILES["float32"]):
        backend, found = Tiled(tile, 2), set()
        for order in ORDERS:
            results = [np.full_like(array, np.nan) for array in (y, x, weight)]
            with device.ordered(order):
                backend.conv_forward(x, weight, None, "silu", results[0], geometry)
                backend.conv_grad_input(y, weight, None, None, results[1], geometry)
                backend.conv_grad_weight(x, y, results[2], geometry)
            found.add(b"".join(array.tobytes() for array in results))
        assert len(found) == 1, tile


@emulated
@pytest.mark.parametrize("name", ["resnet", "nothing-is-square-3d", "large-window"])
def test_every_order_of_threads_pools_the_same(name):
    geometry = WINDOWS[name].geometry
    rng = np.random.default_rng(0)
    x = rng.standard_normal(geometry.x_shape).astype(np.float32)
    found = set()
    for order in ORDERS:
        y, grad_x = np.empty(geometry.y_shape, np.float32), np.empty_like(x)
        indices = np.empty(geometry.y_shape, np.int64)
        results = [y, indices, grad_x]
        with device.ordered(order):
            emulator.max_pool(x, y, indices, geometry)
            assert emulator.max_pool_grad_input(y, indices, grad_x) == -1
            for kernel, source, shape in (("avg_pool", x, y), ("avg_pool_grad_input", y, x)):
                results.append(np.empty_like(shape))
                getattr(emulator, kernel)(source, results[-1], geometry)
        found.add(b"".join(array.tobytes() for array in results))
    assert len(found) == 1


@emulated
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_that_meet_are_added_in_order(order):
    """Many windows with one maximum: lanes of a warp meet there."""
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((3, 1, 10, 13)).astype(np.float32)
    indices = rng.integers(-1, 5, grad.shape)
    indices[1] = 17
    grad_x, expected = np.empty((3, 1, 20, 20), np.float32), np.zeros((3, 400), np.float32)
    for plane, (values, places) in enumerate(zip(grad.reshape(3, -1), indices.reshape(3, -1), strict=True)):
        for value, place in zip(values, places, strict=True):
            if place >= 0:
                expected[plane, place] += value
    with device.ordered(order):
        assert emulator.max_pool_grad_input(grad, indices, grad_x) == -1
    np.testing.assert_array_equal(grad_x.reshape(3, -1), expected)


@emulated
def test_infinities_meet_no_padding_in_tiles():
    """A product with the zeros in the place of padding would be NaN: such results are computed again, without."""
    case = Conv("", (2, 6, 9, 11), (20, 6, 3, 3), 2, 2, 2)
    rng = np.random.default_rng(0)
    x, weight = rng.uniform(1, 2, case.x).astype("f4"), rng.uniform(1, 2, case.weight).astype("f4")
    weight[7, :, 0, 0], weight[3, 2, 2, 1] = np.inf, np.nan
    geometry: ConvGeometry = case.geometry
    y = np.empty(geometry.y_shape, "f4")
    grad = rng.uniform(1, 2, geometry.y_shape).astype("f4")
    grad[0, 5, 0, 0, -1], grad[1, 9, 0, -1, 0] = np.inf, np.nan
    x5, w5 = x.reshape(geometry.x_shape), weight.reshape(geometry.weight_shape)
    for tile in TILES["float32"]:
        for parts in (1, 3):
            backend, reference = Tiled(tile, parts), fastconv.backends.load("reference")
            for kernel, source, factor, shape, tail in (
                ("conv_forward", x5, w5, y.shape, (None, "relu")),
                ("conv_grad_input", grad, w5, x5.shape, (None, None)),
                ("conv_grad_weight", x5, grad, w5.shape, ()),
            ):
                expected, actual = np.empty(shape), np.empty(shape, "f4")
                getattr(reference, kernel)(source, factor, *tail, expected, geometry)
                getattr(backend, kernel)(source, factor, *tail, actual, geometry)
                assert not np.isfinite(expected).all()
                np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- the emulator itself ---

FAULTS = {
    "half_at_a_barrier": r"32 threads wait at the barrier of line \d+, 32 have ended",
    "two_barriers": r"waits at the barrier of line \d+, others at that of line",
    "half_a_warp": r"0 threads wait at the barrier of line \d+, 48 have ended, others wait in their warps",
    "two_exchanges": "in __match_any_sync of mask ffffffff, others of its warp in __ballot_sync|in __ballot_sync",
}


def run_fault(name: str, order: int = 0) -> np.ndarray:
    names = ("reads_too_early", *FAULTS)
    kernels = tuple(Kernel(n, "faults.cuh", ("int",), 64) for n in names)
    library = emulator.compiled("faults.cuh", kernels, Path(emulator.__file__).parent)
    out = np.zeros(64, np.int32)
    address = np.array(out.ctypes.data, np.uint64)
    addresses = (ctypes.c_void_p * 1)(address.ctypes.data)
    run = getattr(library, f"run_{names.index(name)}")
    run.restype = ctypes.c_bool
    if not run(1, 64, addresses, order):
        raise EmulatorError(library.error().decode())
    return out


@emulated
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told(name):
    with pytest.raises(EmulatorError, match=FAULTS[name]):
        run_fault(name)


@emulated
def test_a_missing_barrier_shows():
    """In one order or another, what was not written yet is read."""
    results = [run_fault("reads_too_early", order) for order in ORDERS]
    assert all((result != np.arange(63, -1, -1)).any() for result in results)


# --- one source of truth ---


@pytest.mark.parametrize(
    ("struct", "source", "fields"),
    [("Convolution", "convolution.cuh", conv.Pass), ("Pooling", "pooling.cuh", pool.Windows)],
)
def test_structs_are_the_same_on_both_sides(struct, source, fields):
    """Names, order, and which are arrays of three."""
    text = (registry.SOURCES / source).read_text()
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", text, re.DOTALL)[1]
    declared = re.findall(r"(\w+)(\[3\])?[,;]", re.sub(r"//.*", "", body))
    annotations = fields.__annotations__
    assert [name for name, _ in declared] == list(annotations)
    assert [bool(array) for _, array in declared] == ["Size3" in str(kind) for kind in annotations.values()]


def test_activations_have_the_same_numbers_on_both_sides():
    text = (registry.SOURCES / "common.cuh").read_text()
    names = re.search(r"enum Activation \{(.*?)\}", text)[1]
    activations = [re.sub(r"(?<!^)(?=[A-Z])", "_", name.strip()[1:]).lower() for name in names.split(",")]
    assert activations == ["none", *fastconv.activations.ACTIVATIONS]


def test_kernels_are_listed_once():
    kernels = list(all_kernels())
    assert len(set(kernels)) == len(kernels)
    templates = {
        name
        for path in registry.SOURCES.glob("*.cuh")
        for name in re.findall(r"__global__ void __launch_bounds__\(.*\)\s+(\w+)\(", path.read_text())
    }
    assert templates == {kernel.template for kernel in kernels}


# --- compiling, with a compiler that only pretends to ---


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """The module that compiles; `compiled` counts what its compiler was asked for."""
    nvrtc = ModuleType("cupy.cuda.nvrtc")
    nvrtc.NVRTCError = type("NVRTCError", (RuntimeError,), {})
    nvrtc.compiled = []
    nvrtc.getVersion = lambda: (13, 0)
    nvrtc.createProgram = lambda source, name, texts, names: source
    nvrtc.addNameExpression = lambda program, name: None
    nvrtc.compileProgram = lambda program, options: nvrtc.compiled.append((program, options))
    nvrtc.getCUBIN = lambda program: b"machine\n\x00code"
    nvrtc.getLoweredName = lambda program, name: "_Z" + str(len(name))
    nvrtc.getProgramLog = lambda program: "some words"
    nvrtc.destroyProgram = lambda program: None
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy.cuda, cuda.nvrtc = cuda, nvrtc
    for name, module in {"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.nvrtc": nvrtc}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("FASTCONV_CUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "fastconv.backends.cupy.compile", raising=False)
    module = importlib.import_module("fastconv.backends.cupy.compile")
    yield module
    del sys.modules[module.__name__], sys.modules["fastconv.backends.cupy"].compile


KERNEL = next(all_kernels())


def test_compiled_once_and_kept(compiling, tmp_path):
    first = compiling.machine_code(KERNEL, "sm_90")
    assert first == (b"machine\n\x00code\x00", f"_Z{len(KERNEL.expression)}")
    assert compiling.machine_code(KERNEL, "sm_90") == first
    assert len(compiling.nvrtc.compiled) == 1
    ((source, options),) = compiling.nvrtc.compiled
    assert source == f'#include "{KERNEL.source}"\n'
    assert options == ["--gpu-architecture=sm_90", "--std=c++17"]
    compiling.machine_code(KERNEL, "sm_80")
    compiling.nvrtc.getVersion = lambda: (13, 1)
    compiling.machine_code(KERNEL, "sm_90")
    assert len(compiling.nvrtc.compiled) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3  # and nothing temporary


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"?" + b[41:]])
def test_damaged_files_are_compiled_anew(compiling, tmp_path, damage):
    first = compiling.machine_code(KERNEL, "sm_90")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert compiling.machine_code(KERNEL, "sm_90") == first
    assert len(compiling.nvrtc.compiled) == 2
    assert compiling.machine_code(KERNEL, "sm_90") == first
    assert len(compiling.nvrtc.compiled) == 2


def test_a_folder_that_cannot_be_written_to(compiling, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    for _ in range(2):
        assert compiling.machine_code(KERNEL, "sm_90")[1].startswith("_Z")
    assert len(compiling.nvrtc.compiled) == 2


def test_messages_of_the_compiler(compiling):
    def refuse(program, options):
        raise compiling.nvrtc.NVRTCError("NVRTC_ERROR_COMPILATION")

    compiling.nvrtc.compileProgram = refuse
    with pytest.raises(RuntimeError, match=r"conv_gemm<.* for sm_90: NVRTC_ERROR_COMPILATION\nsome words"):
        compiling.machine_code(KERNEL, "sm_90")


# --- what `make gpu` does, as far as it goes without ---


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@emulated
def test_gpu_verifies(gpu, monkeypatch):
    some = [
        problem("conv_forward", CASES["nothing-is-square"].geometry, "float32", bias=True),
        problem("conv_grad_weight", CASES["dcgan"].geometry, "float64"),
        problem("max_pool", WINDOWS["resnet"].geometry, "float32"),
    ]
    assert len(list(gpu.problems())) > 500
    monkeypatch.setattr(gpu, "problems", lambda: iter(some))
    passed, failed = gpu.verify(emulator, device, np.copy, np.asarray)
    assert not failed
    assert passed == 1 + len(some) + len(TILES["float32"]) + len(TILES["float64"])

    def nothing(*arguments):
        return -1

    broken = SimpleNamespace(**{**vars(emulator), "max_pool": nothing})
    assert len(gpu.verify(broken, device, np.copy, np.asarray)[1]) == 2


@emulated
def test_gpu_asks_both_for_the_same(gpu):
    torch = pytest.importorskip("torch")
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    plain = gpu.ConvLayer("plain", 4, 6, (9, 8), **window, groups=2)
    up = gpu.ConvLayer("up", 4, 6, (5, 4), **window, transposed=True, output_padding=(1, 0))
    pooled = [gpu.PoolLayer(kind, kind, 3, 9, 3, 2, 1) for kind in ("max", "avg")]
    with chosen(Target("emulator")), fastconv.use_backend("emulator"):
        for layer in (plain, up, *pooled, gpu.PoolLayer("adaptive", "avg", 3, 9, adaptive=4)):
            for direction in layer.directions:
                call, arrays = gpu.own_call(np, layer, 2, direction)
                for nhwc in (False, True):
                    expected = gpu.torch_call(torch, layer, direction, arrays, nhwc)().numpy()
                    np.testing.assert_allclose(call(), expected, rtol=1e-4, atol=1e-5, err_msg=layer.name)
                assert gpu.floor(layer, 2, 1e12, 1e13) > 0
    assert len({layer.name for _, layer in gpu.layers(gpu.NETWORKS)}) > 50


def test_gpu_tells_and_draws(gpu, tmp_path):
    rows = [
        gpu.Times("a", 32, "forward", 1e-5, 2e-5, 4e-5, 1e-5),
        gpu.Times("b", 32, "forward", 1e-5, 2e-5, 1e-5, None),
    ]
    assert gpu.means(rows) == pytest.approx({"forward, NCHW": 1.0, "forward, NHWC": 0.5})
    assert [float(cell) for cell in gpu.shown(rows[0]).split()[3:]] == [10, 20, 40, 10, 2]
    pytest.importorskip("matplotlib")
    gpu.draw(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


# --- the backend, where there is no device ---

WITHOUT_DEVICE = """
import sys
from types import ModuleType, SimpleNamespace
cupy, cuda, nvrtc = (ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.nvrtc"))
cupy.cuda, cuda.nvrtc = cuda, nvrtc
sys.modules.update({module.__name__: module for module in (cupy, cuda, nvrtc)})
class CUDARuntimeError(RuntimeError):
    pass
def count():
    COUNT
def version():
    VERSION
cuda.runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
cuda.Device = lambda: SimpleNamespace(compute_capability="CAPABILITY")
nvrtc.getVersion = version
import fastconv
print(fastconv.available_backends()["cupy"])
try:
    fastconv.set_backend("cupy")
except fastconv.BackendUnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("count", "version", "capability", "reason"),
    [
        (
            "raise CUDARuntimeError('the driver is too old')",
            "",
            "90",
            "no CUDA device: the driver is too old",
        ),
        ("return 0", "", "90", "no CUDA device"),
        ("return 1", "", "70", "the device has compute capability 70, expected at least 75"),
        ("return 1", "raise RuntimeError('no library')", "90", "no CUDA compiler (NVRTC): no library"),
    ],
)
def test_why_it_cannot_run(count, version, capability, reason):
    code = WITHOUT_DEVICE.replace("COUNT", count).replace("VERSION", version or "return (13, 0)")
    code = code.replace("CAPABILITY", capability)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == reason
    assert second.startswith(
        f"backend 'cupy' is not available: {reason}; it needs: pip install 'fastconv[cuda]'"
    )


def test_blocks_hold_every_element():
    kernel = SimpleNamespace(threads=256)
    assert [launch.blocks_of(n, kernel) for n in (1, 256, 257)] == [1, 1, 2]
