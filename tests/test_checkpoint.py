"""Checkpoint files: what goes in comes out; killed, cut and forged files; full disks."""

import builtins
import contextlib
import errno
import json
import math
import os
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastconv.train import CheckpointError, load_checkpoint, save_checkpoint
from fastconv.train.files import write_atomically

FORMATS = (".safetensors", ".npz")
DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]


def same(a, b):
    if isinstance(a, np.ndarray | np.generic):
        return type(a) is type(b) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


# --- what goes in comes out ---

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)
keys = st.one_of(
    st.text(max_size=5), st.integers(-3, 3), st.sampled_from(["$array", "$items", "a.b", "a", "b"])
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=80, deadline=None)
@given(state=st.dictionaries(st.text(max_size=5), values, max_size=5))
def test_round_trip(tmp_path_factory, suffix, state):
    path = tmp_path_factory.mktemp("c") / f"c{suffix}"
    save_checkpoint(path, state)
    assert same(load_checkpoint(path), state)


@pytest.mark.parametrize("suffix", FORMATS)
def test_arrays_that_do_not_lie_in_order(tmp_path, suffix):
    base = np.arange(120.0).reshape(4, 5, 6)
    state = {
        "transposed": base.T,
        "reversed": base[::-1, :, ::-2],
        "fortran": np.asfortranarray(base),
        "broadcast": np.broadcast_to(base[0, 0], (3, 6)),
        "big": base.astype(">f8"),
        "big scalar": np.dtype(">i4").type(7),
        "field": np.zeros(3, [("a", "i1"), ("b", "f8")])["b"] + np.arange(3),
        "number": np.float32(0.1),
        "read-only": np.frombuffer(b"abcd", np.uint8),
    }
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, state)
    back = load_checkpoint(path)
    for name, array in state.items():
        assert np.array_equal(back[name], array), name
        assert back[name].dtype == array.dtype.newbyteorder("="), name
    back["transposed"][:] = 0  # loaded arrays are one's own


@pytest.mark.parametrize("suffix", FORMATS)
def test_bfloat16(tmp_path, suffix, monkeypatch):
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    every = np.arange(1 << 16, dtype=np.uint16).view(bfloat16)  # infinities and every NaN among them
    state = {
        "every": every.reshape(256, 256),
        "none": every[:0].reshape(2, 0),
        "number": np.array(1.5, bfloat16),
        "scalar": bfloat16.type(-0.0),
        "bits": np.arange(5, dtype=np.uint16),
    }
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, state)
    back = load_checkpoint(path)
    assert same(back, state)
    back["every"][:] = 0  # loaded arrays are one's own
    save_checkpoint(path, {"transposed": state["every"].T, "backwards": every[::-2]})
    assert same(load_checkpoint(path), {"transposed": state["every"].T, "backwards": every[::-2]})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        load_checkpoint(path)


def test_bfloat16_is_a_type_of_safetensors(tmp_path):
    weight = np.arange(6).astype(pytest.importorskip("ml_dtypes").bfloat16)
    save_checkpoint(tmp_path / "c.safetensors", {"weight": weight})
    data = (tmp_path / "c.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["weight"]["dtype"] == "BF16"
    assert data.endswith(weight.tobytes())


def test_weights_can_be_read_by_others(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy")
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_checkpoint(tmp_path / "c.safetensors", {"model": {"0.weight": weight.T}})
    found = numpy_format.load_file(tmp_path / "c.safetensors")
    assert list(found) == ["model.0.weight"]
    assert np.array_equal(found["model.0.weight"], weight.T)
    save_checkpoint(tmp_path / "c.npz", {"model": {"0.weight": weight.T}})
    with np.load(tmp_path / "c.npz", allow_pickle=False) as file:
        assert np.array_equal(file["model.0.weight"], weight.T)


def test_names_that_fall_together(tmp_path):
    state = {"a": {"b": np.array(1)}, "a.b": np.array(2), "a.b'": np.array(3), "a/b": np.array(4)}
    reserved = ("__header__", "__metadata__", "file", "allow_pickle", "x.npy", "../up", "\0", "")
    state |= {name: np.array([k]) for k, name in enumerate(reserved)}
    for suffix in FORMATS:
        save_checkpoint(tmp_path / f"c{suffix}", state)
        assert same(load_checkpoint(tmp_path / f"c{suffix}"), state)


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_state_gives_one_file(tmp_path, suffix):
    for name in "ab":
        save_checkpoint(tmp_path / f"{name}{suffix}", STATE)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


class Code:
    def __reduce__(self):
        return (os.abort, ())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "value", [Code(), {1, 2}, b"bytes", 1j, np.array([Code()]), np.array(["text"]), np.zeros(2, complex)]
)
def test_what_cannot_be_stored(tmp_path, suffix, value):
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, {"x": 1})
    with pytest.raises(TypeError, match=r"save_checkpoint: deep\.1 .* cannot be stored"):
        save_checkpoint(path, {"deep": [0, value]})
    assert load_checkpoint(path) == {"x": 1}


@pytest.mark.parametrize("name", ["c", "c.pt", "c.safetensors.bak", "c.NPZ"])
def test_suffix_decides(tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz"):
        save_checkpoint(tmp_path / name, {})
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz"):
        load_checkpoint(tmp_path / name)


def test_without_safetensors(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError("no safetensors here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda path: save_checkpoint(path, {}), load_checkpoint):
        with pytest.raises(ImportError, match=r"pip install 'fastconv\[train\]', or use \.npz"):
            call(tmp_path / "c.safetensors")
    save_checkpoint(tmp_path / "c.npz", {"x": 1})
    assert load_checkpoint(tmp_path / "c.npz") == {"x": 1}


# --- damaged and forged files ---

STATE = {"model": {"weight": np.arange(12.0).reshape(3, 4), "bias": np.ones(3, np.float32)}, "epoch": 3}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_truncation(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"c\{suffix}: not a fastconv checkpoint, or damaged"):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert same(load_checkpoint(path), STATE)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_anywhere(tmp_path_factory, suffix, data):
    """Whatever the damage: the file is refused, or gives a dictionary; never another error, never a crash."""
    path = tmp_path_factory.mktemp("c") / f"c{suffix}"
    save_checkpoint(path, STATE)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["change", "remove", "insert"])):
            case "change":
                damaged[at] = data.draw(st.integers(0, 255))
            case "remove":
                del damaged[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=40))
        if not damaged:
            break
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load_checkpoint(path), dict)


def safetensors_file(header, payload=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def header_with(state, **entries):
    text = json.dumps({"format": "fastconv-checkpoint", "version": 1, "state": state})
    return {"__metadata__": {"fastconv-checkpoint": text}, **entries}


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = {"x": {"$array": "x"}}
DEEP = b'{"a":' * 100_000
FORGED = {
    "not JSON": safetensors_file(b"garbage"),
    "huge header": safetensors_file({}, length=1 << 62),
    "a list": safetensors_file([1, 2]),
    "deep": safetensors_file(DEEP),
    "no metadata": safetensors_file({"x": entry([1], 0, 4)}, bytes(4)),
    "another's metadata": safetensors_file(
        {"__metadata__": {"format": "pt"}, "x": entry([1], 0, 4)}, bytes(4)
    ),
    "metadata a list": safetensors_file({"__metadata__": [1], "x": entry([1], 0, 4)}, bytes(4)),
    "entry a number": safetensors_file({"x": 3}),
    "no offsets": safetensors_file({"x": {"dtype": "F32", "shape": [1]}}),
    "offsets beyond": safetensors_file(header_with(ONE, x=entry([2], 0, 8)), bytes(4)),
    "offsets negative": safetensors_file(header_with(ONE, x=entry([-1], 4, 0)), bytes(4)),
    "offsets fractional": safetensors_file(header_with(ONE, x=entry([1], 0, 4.0)), bytes(4)),
    "overlap": safetensors_file(header_with(ONE, x=entry([1], 0, 4), y=entry([1], 0, 4)), bytes(4)),
    "hole": safetensors_file(header_with(ONE, x=entry([1], 0, 4), y=entry([1], 8, 12)), bytes(12)),
    "shape too large": safetensors_file(header_with(ONE, x=entry([1 << 40, 1 << 40], 0, 4)), bytes(4)),
    "shape wraps": safetensors_file(header_with(ONE, x=entry([1 << 63, 2], 0, 0)), b""),
    "unknown dtype": safetensors_file(header_with(ONE, x=entry([1], 0, 4, "C64")), bytes(4)),
    "trailing bytes": safetensors_file(header_with(ONE, x=entry([1], 0, 4)), bytes(9)),
    "duplicate": safetensors_file(
        json.dumps(header_with(ONE, x=entry([1], 0, 4))).encode()[:-1]
        + b', "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        bytes(4),
    ),
    "array missing": safetensors_file(header_with({"y": {"$array": "y"}}, x=entry([1], 0, 4)), bytes(4)),
    "array unused": safetensors_file(header_with({"y": 1}, x=entry([1], 0, 4)), bytes(4)),
    "array a list": safetensors_file(header_with({"y": {"$array": [1]}})),
    "unknown entry": safetensors_file(header_with({"y": {"$import": "os"}})),
    "unhashable key": safetensors_file(header_with({"y": {"$items": [[[1], 2]]}})),
    "items a number": safetensors_file(header_with({"y": {"$items": 3}})),
    "float a word": safetensors_file(header_with({"y": {"$float": "1e999"}})),
    "bfloat16 a float32": safetensors_file(
        header_with({"y": {"$bfloat16": {"$array": "x"}}}, x=entry([1], 0, 4)), bytes(4)
    ),
    "bfloat16 a word": safetensors_file(header_with({"y": {"$bfloat16": "x"}})),
    "state a list": safetensors_file(header_with([1])),
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", FORGED)
def test_forged_safetensors(tmp_path, name):
    pytest.importorskip("safetensors")
    path = tmp_path / "c.safetensors"
    path.write_bytes(FORGED[name])
    tracemalloc.start()
    try:
        with pytest.raises(
            CheckpointError, match=r"c\.safetensors: not a fastconv checkpoint, or damaged: \S"
        ):
            load_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_forger_could_do_it_right(tmp_path):
    """Or the test above would prove nothing."""
    pytest.importorskip("safetensors")
    path = tmp_path / "c.safetensors"
    path.write_bytes(safetensors_file(header_with(ONE, x=entry([1], 0, 4)), struct.pack("<f", 2.5)))
    assert load_checkpoint(path)["x"].tolist() == [2.5]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("what", "words"), [("version", "version 2, this fastconv reads 1"), ("format", "call itself")]
)
def test_other_versions(tmp_path, monkeypatch, suffix, what, words):
    path = tmp_path / f"c{suffix}"
    other = {"version": ("VERSION", 2), "format": ("FORMAT", "somebody's")}[what]
    with monkeypatch.context() as patch:
        patch.setattr(f"fastconv.train.checkpoint.{other[0]}", other[1])
        save_checkpoint(path, STATE)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def rezip(path, change, compression=zipfile.ZIP_STORED):
    """Writes the members of an .npz anew, through `change(name, content) -> list of (name, content)`."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member in members:
            for name, content in change(*member):
                archive.writestr(name, content)


def npy(header, payload=b""):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + payload


NPY = {
    "too large": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}", bytes(8)),
    "too small": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", bytes(16)),
    "negative": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", bytes(8)),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N."),
    "fields": npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", bytes(8)),
    "fortran": npy("{'descr': '<f8', 'fortran_order': True, 'shape': (2, 2)}", bytes(32)),
    "code": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os').abort(),)}", bytes(8)),
    "no header": b"\x93NUMPY",
    "version 3": b"\x93NUMPY\x03\x00" + bytes(200),
    "empty": b"",
}


@pytest.mark.parametrize("name", NPY)
def test_forged_npz(tmp_path, name):
    path = tmp_path / "c.npz"
    save_checkpoint(path, STATE)
    rezip(path, lambda n, content: [(n, NPY[name] if n == "model.weight.npy" else content)])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_forged_zip(tmp_path):
    path = tmp_path / "c.npz"

    def refuse(words):
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(path)

    save_checkpoint(path, STATE)
    rezip(path, lambda name, content: [(name, content)])
    assert same(load_checkpoint(path), STATE)
    rezip(path, lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED)
    refuse("compressed")
    save_checkpoint(path, STATE)
    with pytest.warns(UserWarning, match="Duplicate name"):
        rezip(path, lambda name, content: [(name, content)] * (1 + (name == "epoch.npy" or "bias" in name)))
    refuse(r"duplicate keys: model\.bias")
    save_checkpoint(path, STATE)
    rezip(path, lambda name, content: [(name, content)] if "header" not in name else [])
    refuse("call itself")
    save_checkpoint(path, STATE)
    rezip(path, lambda name, content: [(name, content)] if "bias" not in name else [])
    refuse(r"array 'model\.bias' is missing")
    np.savez(path, x=np.arange(3))
    refuse("call itself")
    # A bomb: 64 MB of zeros in few bytes.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1 << 26))
    tracemalloc.start()
    try:
        refuse("compressed")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_missing_file(tmp_path):
    for suffix in FORMATS:
        with pytest.raises(FileNotFoundError):
            load_checkpoint(tmp_path / f"c{suffix}")


# --- killed, full, refused ---

KILLING = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from fastconv.train import load_checkpoint, save_checkpoint

    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(1)
    folder = path.parent

    def state(number):
        return {"number": number, "arrays": [np.full(50_000 + 7 * k, number, np.float64) for k in range(5)]}

    def write_until_killed():
        number = 1
        while True:
            save_checkpoint(path, state(number))
            number += 1

    began = time.perf_counter()
    for _ in range(5):
        save_checkpoint(path, state(0))
    duration = (time.perf_counter() - began) / 5
    amid = loaded = 0
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            write_until_killed()
        time.sleep(duration * (0.5 + 6 * chance.random()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = [p for p in folder.iterdir() if p != path]
        assert len(left) <= 1, left
        amid += len(left)
        found = load_checkpoint(path)
        assert all((array == found["number"]).all() for array in found["arrays"])
        loaded += found["number"] > 0
    save_checkpoint(path, state(1))
    assert list(folder.iterdir()) == [path], "stale temporaries"
    print(amid, loaded)
"""


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_while_saving(tmp_path, suffix):
    rounds = 40
    command = [sys.executable, "-c", textwrap.dedent(KILLING), str(tmp_path / f"c{suffix}"), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    amid, loaded = map(int, done.stdout.split())
    assert amid >= rounds // 4  # many a kill came amid a write
    assert loaded >= 1  # and some writes came through


FULL = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from fastconv.train import load_checkpoint, save_checkpoint

    path = Path(sys.argv[1])
    save_checkpoint(path, {"x": np.arange(10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save_checkpoint(path, {"x": np.zeros(100_000)})
    except OSError as error:
        assert error.filename == str(path.resolve()), error
    else:
        raise AssertionError("the file system took more than it may")
    assert load_checkpoint(path)["x"].tolist() == list(range(10))
    assert list(path.parent.iterdir()) == [path]
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_system_that_takes_no_more(tmp_path, suffix):
    pytest.importorskip("resource")
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / f"c{suffix}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_stays(tmp_path, monkeypatch, call, error):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"x": 1})

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*(("os.fsync", fail) if call == "fsync" else ("pathlib.Path.replace", fail)))
        with pytest.raises(type(error)) as caught:
            save_checkpoint(path, {"x": 2})
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
    assert load_checkpoint(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder(tmp_path):
    path = tmp_path / "nowhere" / "c.npz"
    with pytest.raises(FileNotFoundError) as error:
        save_checkpoint(path, {})
    assert error.value.filename == str(path)


def test_the_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    """fsync of the file, rename, fsync of the folder: in this order."""
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH119, PTH115
        real_sync(descriptor)

    def replace(source, target):
        calls.append("replace")
        real_replace(source, target)

    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: replace(self, target))
    write_atomically(tmp_path / "name", b"data")
    assert calls[0].startswith(".name.")
    assert calls[1:] == ["replace", tmp_path.name]


def test_temporaries_of_the_living_stay(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "c"
    dead, living, others = (
        tmp_path / name for name in (f".c.{'0' * 16}.tmp", f".c.{'1' * 16}.tmp", ".c.x.tmp")
    )
    for file in (dead, living, others):
        file.write_bytes(b"half")
    with living.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_atomically(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, living, others])
    write_atomically(path, b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, others])


def test_links_and_permissions(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    old = os.umask(0o027)
    try:
        write_atomically(link, b"one")
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o640


def test_floats_that_json_lacks(tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"x": [math.nan, math.inf, -math.inf, 5e-324]})
    x = load_checkpoint(path)["x"]
    assert math.isnan(x[0])
    assert x[1:] == [math.inf, -math.inf, 5e-324]
    with np.load(path) as file:
        header = file["__header__"].tobytes().decode()
    json.loads(header, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
