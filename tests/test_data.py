"""IDX files, data sets, loaders and augmentation."""

import gzip
import struct
import sys
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastconv.data import (
    ArrayDataset,
    Compose,
    DataError,
    DataLoader,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomShift,
    digits,
    fashion_mnist,
    mnist,
    read_idx,
    resize_bilinear,
    write_idx,
)

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]


def idx_bytes(*shape, code=8, axes=None, payload=None):
    """An IDX file, right unless told otherwise."""
    header = bytes([0, 0, code, len(shape) if axes is None else axes]) + struct.pack(
        f">{len(shape)}I", *shape
    )
    return header + (bytes(int(np.prod(shape))) if payload is None else payload)


# --- IDX ---


@pytest.mark.smoke
def test_idx_known_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes.fromhex("00 00 0b 02 00000002 00000003 0001 0002 0003 ffff fffe 7fff"))
    array = read_idx(path)
    assert array.dtype == np.int16
    assert array.dtype.isnative
    assert array.tolist() == [[1, 2, 3], [-1, -2, 32767]]
    write_idx(tmp_path / "b", array)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["x", "x.gz"])
def test_idx_round_trip(tmp_path_factory, name, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    array = data.draw(hnp.arrays(dtype.newbyteorder(data.draw(st.sampled_from("<>"))), shape))
    path = tmp_path_factory.mktemp("idx") / name
    write_idx(path, array)
    back = read_idx(path)
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.tobytes() == array.astype(dtype).tobytes()


def test_gzip_is_known_by_its_content(tmp_path):
    (tmp_path / "no-suffix").write_bytes(gzip.compress(idx_bytes(2, 3)))
    (tmp_path / "plain.gz").write_bytes(idx_bytes(2, 3))
    assert read_idx(tmp_path / "no-suffix").shape == (2, 3)
    assert read_idx(tmp_path / "plain.gz").shape == (2, 3)


GOOD = idx_bytes(2, 3, payload=b"abcdef")
HOSTILE = {
    "empty": (b"", "not an IDX file"),
    "three bytes": (GOOD[:3], "not an IDX file"),
    "other magic": (b"\x89PNG\r\n\x1a\n" + bytes(99), "not an IDX file"),
    "unknown type": (idx_bytes(2, 3, code=10), "not an IDX file"),
    "no axes": (idx_bytes(axes=0, payload=b"x"), "0 axes"),
    "five axes": (idx_bytes(1, 1, 1, 1, 1), "5 axes"),
    "255 axes": (idx_bytes(1, axes=255), "255 axes"),
    "header cut": (GOOD[:9], "truncated"),
    "last byte cut": (GOOD[:-1], "truncated"),
    "no elements": (GOOD[:12], "truncated"),
    "one byte more": (GOOD + b"x", "too long"),
    "twice": (GOOD + GOOD, "too long"),
    "huge": (idx_bytes(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, payload=b""), "limit"),
    "2 GiB": (idx_bytes(1 << 31, payload=b"x"), "truncated"),
    "over the limit": (idx_bytes((1 << 31) + 1, payload=b"x"), "limit"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_idx(tmp_path, name, packed):
    content, words = HOSTILE[name]
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as error:
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert peak < 4 << 20  # nothing was allocated for what the header claims


@pytest.mark.parametrize("cut", [3, 9, 12, -9, -5, -1])
def test_truncated_gzip(tmp_path, cut):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD)[:cut])
    with pytest.raises(DataError, match="truncated"):
        read_idx(path)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "images.gz"
    whole = bytearray(gzip.compress(idx_bytes(40, 50, payload=bytes(range(250)) * 8)))
    found = set()
    for k in range(10, len(whole)):  # behind gzip's own header, whose time and flags may be anything
        damaged = whole.copy()
        damaged[k] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            read_idx(path)
        found.add(type(error.value.__cause__))
    assert {zlib.error, gzip.BadGzipFile} <= found


def test_gzip_bomb_is_not_unpacked(tmp_path):
    """A header that is right about 2 GB of zeros in 2 MB: refused by the limit, before it is unpacked."""
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(1 << 24), 9))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="limit"):
            read_idx(path, max_bytes=1 << 20)
        # Claims more than deflate can hold in a file of this size.
        path.write_bytes(gzip.compress(idx_bytes(1 << 30, payload=bytes(1 << 10))))
        with pytest.raises(DataError, match="cannot hold"):
            read_idx(path)
        # Claims little, holds much: read no further than that.
        path.write_bytes(gzip.compress(idx_bytes(10, payload=bytes(1 << 24)), 9))
        tracemalloc.reset_peak()
        with pytest.raises(DataError, match="does not match"):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()


def test_write_idx_refuses(tmp_path):
    with pytest.raises(TypeError, match="complex128"):
        write_idx(tmp_path / "x", np.zeros(3, complex))
    with pytest.raises(TypeError, match="int64"):
        write_idx(tmp_path / "x", np.zeros(3, np.int64))
    for shape in ((), (1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="1 to 4 axes"):
            write_idx(tmp_path / "x", np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


# --- folders like MNIST ---


def write_mnist(folder, n=(20, 10), size=(28, 28), suffix="", classes=10):
    """A folder of four files with pictures that depend on their labels."""
    rng = np.random.default_rng(7)
    folder.mkdir(exist_ok=True)
    for part, count in zip(("train", "t10k"), n, strict=True):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = rng.integers(0, 60, (count, *size), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 3] = 255
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_folder(tmp_path, suffix):
    write_mnist(tmp_path, suffix=suffix)
    train, test = mnist(tmp_path)
    raw = read_idx(tmp_path / f"train-images-idx3-ubyte{suffix}")
    assert (len(train), len(test)) == (20, 10)
    assert train.inputs.shape == (20, 1, 28, 28)
    assert train.inputs.dtype == np.float32
    assert np.array_equal(train.inputs[:, 0], raw.astype(np.float32) / 255)
    assert train.inputs.max() == 1
    assert train.targets.dtype == np.int64
    assert train.targets.tolist() == [*range(10), *range(10)]
    assert train.classes == tuple("0123456789")
    assert fashion_mnist(tmp_path, dtype=np.float64)[1].inputs.dtype == np.float64
    assert fashion_mnist(tmp_path)[1].classes[9] == "Ankle boot"


def test_mnist_folder_prefers_plain_files(tmp_path):
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.gz").write_bytes(b"broken")
    assert len(mnist(tmp_path)[0]) == 20


def spoil(folder, name, array=None, content=None):
    path = folder / name
    path.unlink()
    if array is not None:
        write_idx(path, array)
    elif content is not None:
        path.write_bytes(content)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SPOILT = {
    "missing": ({"name": LABELS}, "neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz"),
    "not idx": ({"name": IMAGES, "content": b"<html>404</html>"}, "not an IDX file"),
    "float images": ({"name": IMAGES, "array": np.zeros((20, 28, 28), np.float32)}, "expected uint8 images"),
    "colour images": ({"name": IMAGES, "array": np.zeros((20, 3, 28, 28), np.uint8)}, "3 axes"),
    "other size": ({"name": IMAGES, "array": np.zeros((20, 32, 32), np.uint8)}, r"\(32, 32\)"),
    "no images": ({"name": IMAGES, "array": np.zeros((0, 28, 28), np.uint8)}, "no pixels"),
    "images for labels": (
        {"name": LABELS, "array": np.zeros((20, 28, 28), np.uint8)},
        "uint8 labels in 1 axis",
    ),
    "fewer labels": ({"name": LABELS, "array": np.zeros(19, np.uint8)}, "20 images.* 19 labels"),
    "label 10": (
        {"name": LABELS, "array": np.array([0] * 7 + [10] + [0] * 12, np.uint8)},
        r"label 10 at position 7 is not in 0\.\.9",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_folder(tmp_path, name):
    how, words = SPOILT[name]
    spoil(write_mnist(tmp_path), **how)
    with pytest.raises(DataError, match=words):
        mnist(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        mnist(tmp_path / "nowhere")


# --- digits ---


def test_digits():
    pytest.importorskip("sklearn")
    train, held_out = digits()
    assert (len(train), len(held_out)) == (1442, 355)
    for part in (train, held_out):
        assert part.inputs.shape[1:] == (1, 28, 28)
        assert part.inputs.dtype == np.float32
        assert part.inputs.min() == 0
        assert 0.95 < part.inputs.max() <= 1
        assert part.targets.dtype == np.int64
    # Stratified: a fifth of each class, and no image is on both sides.
    for label in range(10):
        ours, all_of_it = (held_out.targets == label).sum(), (train.targets == label).sum()
        assert ours == (ours + all_of_it) // 5
    known = {image.tobytes() for image in train.inputs}
    assert not known & {image.tobytes() for image in held_out.inputs}


def test_digits_are_the_originals_enlarged():
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    train, held_out = digits(size=8, dtype=np.float64)
    images = np.concatenate([train.inputs, held_out.inputs])[:, 0] * 16
    key = lambda image: image.tobytes()  # noqa: E731
    assert sorted(map(key, images)) == sorted(map(key, original.images))
    enlarged = digits(dtype=np.float64)[1].inputs
    assert np.array_equal(enlarged, resize_bilinear(held_out.inputs, (28, 28)))
    # The split, counted out by hand.
    seen, expected = [0] * 10, []
    for image, label in zip(original.images, original.target, strict=True):
        seen[label] += 1
        if seen[label] % 5 == 0:
            expected.append((label, image.tobytes()))
    assert [
        (t, (x * 16).tobytes()) for x, t in zip(held_out.inputs, held_out.targets, strict=True)
    ] == expected


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[train\]'"):
        digits()


@pytest.mark.parametrize("size", [(28, 28), (7, 20), (8, 9), (3, 5)])
def test_resize_matches_its_definition(size):
    rng = np.random.default_rng(3)
    images = rng.random((2, 8, 9))
    result = resize_bilinear(images, size)
    assert result.shape == (2, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * 8 / size[0] - 0.5, 0), 7)
            x = min(max((j + 0.5) * 9 / size[1] - 0.5, 0), 8)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 7), min(left + 1, 8)
            a, b = y - top, x - left
            expected = (1 - a) * ((1 - b) * images[:, top, left] + b * images[:, top, right])
            expected += a * ((1 - b) * images[:, bottom, left] + b * images[:, bottom, right])
            assert np.allclose(result[:, i, j], expected)
    assert np.array_equal(resize_bilinear(images, (8, 9)), images)
    assert resize_bilinear(images.astype(np.float32), size).dtype == np.float32


# --- data sets and loaders ---


def numbered(n, **kwargs):
    """A data set whose images hold their own number."""
    inputs = np.arange(n, dtype=np.float32)[:, None, None, None] + np.zeros((1, 1, 4, 4), np.float32)
    return ArrayDataset(inputs, np.arange(n), **kwargs)


def orders(loader, epochs=1):
    return [[targets.tolist() for _, targets in loader] for _ in range(epochs)]


def test_dataset_refuses():
    with pytest.raises(ValueError, match="equal length"):
        ArrayDataset(np.zeros((3, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="equal length"):
        ArrayDataset(np.zeros(()), np.zeros(()))
    with pytest.raises(ValueError, match="labels from 0 to 2, but there are 2"):
        ArrayDataset(np.zeros((3, 1)), [0, 1, 2], classes=("a", "b"))
    with pytest.raises(ValueError, match="labels from -1"):
        ArrayDataset(np.zeros((3, 1)), [0, 1, -1], classes=("a", "b"))


@pytest.mark.smoke
@pytest.mark.parametrize("prefetch", [0, 1, 3, 20])
@pytest.mark.parametrize("drop_last", [False, True])
def test_loader_serves_everything_once(prefetch, drop_last):
    loader = DataLoader(
        numbered(23), 5, shuffle=True, drop_last=drop_last, rng=np.random.default_rng(1), prefetch=prefetch
    )
    first, second = orders(loader, 2)
    assert len(loader) == len(first) == (4 if drop_last else 5)
    assert [len(batch) for batch in first] == ([5] * 4 if drop_last else [5, 5, 5, 5, 3])
    flat = [label for batch in first for label in batch]
    assert len(set(flat)) == len(flat) == (20 if drop_last else 23)
    assert flat != sorted(flat)
    assert first != second
    for inputs, targets in loader:
        assert inputs[:, 0, 0, 0].tolist() == targets.tolist()


def test_loader_in_order():
    assert orders(DataLoader(numbered(5), 2)) == [[[0, 1], [2, 3], [4]]]
    assert orders(DataLoader(numbered(0), 2)) == [[]]
    assert len(DataLoader(numbered(0), 2)) == 0


def test_loader_is_a_function_of_its_generator():
    transform = Compose(RandomShift(1), RandomHorizontalFlip(), lambda x, rng: x + rng.random(x.shape))

    def run(seed, prefetch):
        loader = DataLoader(
            numbered(23),
            5,
            shuffle=True,
            transform=transform,
            rng=np.random.default_rng(seed),
            prefetch=prefetch,
        )
        return b"".join(inputs.tobytes() for _ in range(3) for inputs, _ in loader)

    assert run(5, 0) == run(5, 0) == run(5, 2)
    assert run(5, 0) != run(6, 0)


def test_transforms_differ_between_batches_and_epochs():
    noise = []
    loader = DataLoader(
        numbered(6), 2, transform=lambda x, rng: noise.append(rng.random()) or x, rng=np.random.default_rng(0)
    )
    orders(loader, 2)
    assert len(set(noise)) == 6


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_loader_resumes_anywhere(prefetch, stop):
    """In epoch 2, after `stop` of 5 batches; 0: between epochs."""

    def loader(seed):
        return DataLoader(
            numbered(23),
            5,
            shuffle=True,
            transform=lambda x, rng: x + rng.random(x.shape, np.float32),
            rng=np.random.default_rng(seed),
            prefetch=prefetch,
        )

    def record(batches):
        return [(inputs.tobytes(), targets.tolist()) for inputs, targets in batches]

    whole = loader(4)
    epochs = [record(whole) for _ in range(4)]
    broken = loader(4)
    record(broken)
    if stop:
        batches = iter(broken)
        assert record(next(batches) for _ in range(stop)) == epochs[1][:stop]
    state = broken.state_dict()
    if stop:
        batches.close()
    resumed = loader(99)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert record(resumed) == epochs[1][stop:]
    assert [record(resumed) for _ in range(2)] == epochs[2:]


def test_breaking_off_starts_a_new_epoch():
    ours, theirs = (DataLoader(numbered(9), 2, shuffle=True, rng=np.random.default_rng(0)) for _ in range(2))
    for _ in ours:
        break
    assert ours.state_dict()["key"] is None
    orders(theirs)
    assert orders(ours) == orders(theirs)


def test_loader_refuses_the_state_of_another():
    state = DataLoader(numbered(9), 2).state_dict()
    for other, words in (
        (DataLoader(numbered(9), 3), "batch_size 2, this loader has 3"),
        (DataLoader(numbered(13), 2), "batches 5, this loader has 7"),
        (
            DataLoader(numbered(9), 2, rng=np.random.Generator(np.random.MT19937())),
            "PCG64 generator, expected MT19937",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)


def test_errors_in_the_prefetching_thread_arrive():
    def fail(x, rng):
        if x[0, 0, 0, 0] >= 4:
            raise ZeroDivisionError("from the transform")
        return x

    loader = DataLoader(numbered(9), 2, transform=fail, prefetch=3)
    batches = iter(loader)
    assert [next(batches)[1].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ZeroDivisionError, match="from the transform"):
        next(batches)


def test_prefetching_thread_ends():
    before = set(threading.enumerate())
    loader = DataLoader(numbered(50), 2, prefetch=3)
    orders(loader)
    batches = iter(loader)
    next(batches)
    assert {t.name for t in set(threading.enumerate()) - before} == {"fastconv-prefetch_0"}
    batches.close()
    assert set(threading.enumerate()) == before


def test_prefetching_runs_ahead_by_so_many():
    served = []
    loader = DataLoader(numbered(20), 2, transform=lambda x, rng: served.append(1) or x, prefetch=3)
    batches = iter(loader)
    next(batches)
    deadline = time.monotonic() + 10
    while len(served) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(served) == 4  # one was asked for, three wait
    batches.close()


def test_loader_refuses_arguments():
    with pytest.raises(ValueError, match="batch_size"):
        DataLoader(numbered(3), 0)
    with pytest.raises(ValueError, match="prefetch"):
        DataLoader(numbered(3), 1, prefetch=-1)
    for rng in (np.random.RandomState(0), 0.5, True):
        with pytest.raises(
            TypeError, match=r"DataLoader: rng must be a numpy\.random\.Generator, an int seed"
        ):
            DataLoader(numbered(3), 1, rng=rng)


def test_loader_takes_a_seed():
    seeded = DataLoader(numbered(20), 4, shuffle=True, rng=3)
    assert orders(seeded) == orders(DataLoader(numbered(20), 4, shuffle=True, rng=np.random.default_rng(3)))


# --- augmentation ---


def images(n=200, shape=(2, 5, 6), seed=0):
    return np.random.default_rng(seed).random((n, *shape), np.float32) + 1


def test_random_shift_moves_whole_images():
    x = images()
    y = RandomShift(2, fill=-1)(x, np.random.default_rng(1))
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    found = set()
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=-1)
    for before, after in zip(padded, y, strict=True):
        fits = {
            (i, j)
            for i in range(5)
            for j in range(5)
            if np.array_equal(before[:, i : i + 5, j : j + 6], after)
        }
        assert len(fits) == 1
        found |= fits
    assert len(found) == 25  # each of the shifts is drawn


def test_random_crop_sizes():
    x = images()
    assert RandomCrop(3)(x, np.random.default_rng(0)).shape == (200, 2, 3, 3)
    assert RandomCrop((4, 6))(x, np.random.default_rng(0)).shape == (200, 2, 4, 6)
    assert np.array_equal(RandomCrop()(x, np.random.default_rng(0)), x)
    with pytest.raises(ValueError, match="does not fit"):
        RandomCrop(7, padding=0)(x, np.random.default_rng(0))
    with pytest.raises(ValueError, match="padding"):
        RandomCrop(3, padding=-1)


def test_random_flip():
    x = images(2000)
    y = RandomHorizontalFlip(0.3)(x, np.random.default_rng(0))
    kept, flipped = ((y == other).all(axis=(1, 2, 3)) for other in (x, x[..., ::-1]))
    assert np.array_equal(kept, ~flipped)
    assert 0.26 < flipped.mean() < 0.34
    assert np.array_equal(RandomHorizontalFlip(1)(x, np.random.default_rng(0)), x[..., ::-1])
    assert np.array_equal(RandomHorizontalFlip(0)(x, np.random.default_rng(0)), x)
    with pytest.raises(ValueError, match="between 0 and 1"):
        RandomHorizontalFlip(1.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalize(dtype):
    x = images().astype(dtype)
    mean, std = x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))
    y = Normalize(mean, std)(x, np.random.default_rng(0))
    assert y.dtype == dtype
    assert np.allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    assert np.allclose(y.std(axis=(0, 2, 3)), 1, atol=1e-5)
    with pytest.raises(TypeError, match="uint8"):
        Normalize(0, 1)(np.zeros((1, 1, 2, 2), np.uint8), np.random.default_rng(0))
    for std in (0, -1, float("nan"), [1, 0]):
        with pytest.raises(ValueError, match="above 0"):
            Normalize(0, std)


@pytest.mark.parametrize(
    "transform", [RandomShift(1), RandomHorizontalFlip(), Normalize(0, 1), RandomCrop(2)]
)
def test_transforms_keep_their_input_and_want_a_batch(transform):
    x = images(8)
    x.flags.writeable = False
    transform(x, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"expected a batch \(N, C, H, W\), got shape \(2, 5, 6\)"):
        transform(x[0], np.random.default_rng(0))
