"""Output sizes, windows and taps against plain enumeration; what parameters may look like."""

import itertools

import numpy as np
import pytest

from fastconv import ShapeError
from fastconv.geometry import (
    SIZE_LIMIT,
    ConvGeometry,
    PoolGeometry,
    adaptive_pool_geometry,
    axis_ints,
    conv_geometry,
    conv_transpose_geometry,
    one_int,
    padding_spec,
    pool_geometry,
    pool_windows,
    resolve_padding,
    taps,
)

pytestmark = pytest.mark.smoke

AXES = [
    (length, kernel, stride, low, high, dilation)
    for length, kernel, stride, (low, high), dilation in itertools.product(
        range(1, 9), range(1, 5), range(1, 5), ((0, 0), (1, 1), (2, 0), (0, 3), (3, 2)), range(1, 4)
    )
]


def starts(length, kernel, stride, low, high, dilation, ceil_mode=False):
    """Where the windows begin, by trying every place from the first on."""
    extent = dilation * (kernel - 1) + 1
    found: list[int] = []
    start = -low
    while start + extent <= length + high or (
        ceil_mode and found and start + extent < length + high + stride and start < length
    ):
        found.append(start)
        start += stride
    return found


def conv(length, kernel, stride, low, high, dilation):
    return conv_geometry("conv1d", 1, (1, 1, length), (1, 1, kernel), stride, ((low, high),), dilation, 1)


def pool(length, kernel, stride, low, high, dilation, ceil_mode=False, **options):
    return pool_geometry(
        "pool", 1, (1, 1, length), kernel, stride, ((low, high),), dilation, ceil_mode, **options
    )


# --- sizes ---


def test_conv_sizes_are_counts_of_windows():
    for axis in AXES:
        expected = starts(*axis)
        if expected:
            assert conv(*axis).output_size == (1, 1, len(expected)), axis
        else:
            with pytest.raises(ShapeError, match=r"^conv1d: the kernel spans"):
                conv(*axis)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_sizes_are_counts_of_windows(ceil_mode):
    for axis in AXES:
        _, kernel, _, low, high, dilation = axis
        if max(low, high) > dilation * (kernel - 1):
            with pytest.raises(ShapeError, match=r"must be smaller than the dilated kernel"):
                pool(*axis, ceil_mode)
        elif not starts(*axis):
            with pytest.raises(ShapeError, match=r"^pool: the kernel spans"):
                pool(*axis, ceil_mode)
        else:
            assert pool(*axis, ceil_mode).output_size == (1, 1, len(starts(*axis, ceil_mode))), axis


def test_transposed_sizes_invert_conv_sizes():
    """A transposed convolution has exactly the sizes whose convolution gives its input's size."""
    for axis in AXES:
        length, kernel, stride, low, high, dilation = axis
        try:
            outputs = conv(*axis).output_size[2]
        except ShapeError:
            continue
        window = (stride, ((low, high),))
        transposed = conv_transpose_geometry(
            "t", 1, (1, 1, outputs), (1, 1, kernel), *window, 0, 1, dilation, (length,)
        )
        assert transposed == conv(*axis)
        smallest = (outputs - 1) * stride - low - high + dilation * (kernel - 1) + 1
        assert smallest <= length < smallest + stride
        for extra in range(max(stride, dilation)):
            if smallest + extra > 0:
                made = conv_transpose_geometry(
                    "t", 1, (1, 1, outputs), (1, 1, kernel), *window, extra, 1, dilation, None
                )
                assert made.input_size == (1, 1, smallest + extra)


def test_same_padding():
    """out = ceil(in / stride) with the least padding, split evenly, an odd element at one end."""
    for length, kernel, stride, dilation in itertools.product(
        range(1, 12), range(1, 6), range(1, 6), range(1, 4)
    ):
        arguments = ((length,), (kernel,), (stride,), (dilation,))
        ((low, high),) = resolve_padding("same", *arguments)
        assert resolve_padding("same_lower", *arguments) == ((high, low),)
        assert 0 <= high - low <= 1
        outputs = -(-length // stride)
        assert len(starts(length, kernel, stride, low, high, dilation)) == outputs
        if low + high:
            least = ((low + high - 1) // 2, (low + high) // 2)
            assert len(starts(length, kernel, stride, *least, dilation)) < outputs
        ((low, high),) = resolve_padding("causal", *arguments)
        assert (low, high) == (dilation * (kernel - 1), 0)
        assert resolve_padding("valid", *arguments) == ((0, 0),)


# --- windows and taps ---


def test_taps_are_the_sum_over_each_window():
    for axis in AXES:
        length, kernel, _, _, _, dilation = axis
        windows = starts(*axis)
        if not windows:
            continue
        expected = {
            (t, o, start + t * dilation)
            for o, start in enumerate(windows)
            for t in range(kernel)
            if 0 <= start + t * dilation < length
        }
        found = {
            (tap.position[2], o, x)
            for tap in taps(conv(*axis))
            for o, x in zip(range(len(windows))[tap.outputs[2]], range(length)[tap.inputs[2]], strict=True)
        }
        assert found == expected, axis


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_windows(ceil_mode):
    for axis in AXES:
        length, kernel, _, low, high, dilation = axis
        if max(low, high) > dilation * (kernel - 1) or not starts(*axis):
            continue
        found = pool_windows(pool(*axis, ceil_mode))[2]
        for o, start in enumerate(starts(*axis, ceil_mode)):
            positions = [start + t * dilation for t in range(kernel) if start + t * dilation < length + high]
            inside = [p for p in positions if 0 <= p < length]
            assert found.length[o] == len(positions), axis
            assert found.inside[o] == len(inside), axis
            if inside:
                assert found.first[o] == inside[0], axis


def test_adaptive_windows_cover_the_axis():
    for length, outputs in itertools.product(range(1, 15), range(1, 20)):
        found = pool_windows(adaptive_pool_geometry("pool", 1, (1, 1, length), outputs))[2]
        ends = found.first + found.inside
        assert found.first.tolist() == [i * length // outputs for i in range(outputs)]
        assert ends.tolist() == [-(-(i + 1) * length // outputs) for i in range(outputs)]
        assert ends[-1] == length
        assert (found.inside >= 1).all()
        np.testing.assert_array_equal(found.length, found.inside)


# --- geometries ---


def test_geometries_are_hashable_values():
    one, other = conv(9, 3, 2, 1, 1, 1), conv(9, 3, 2, 1, 1, 1)
    assert one == other
    assert hash(one) == hash(other)
    assert one != conv(9, 3, 2, 1, 2, 1)._replace(stride=(1, 1, 3))
    assert all(type(size) is int for size in (*one.input_size, *one.output_size, *one.pad_low, one.batch))


def test_every_number_is_an_int_whatever_was_given():
    given = np.array([2, 3], np.int16)
    made = conv_geometry(
        "conv2d", 2, (1, 4, 9, 9), (4, 2, 3, 3), given, [given, given], given.tolist(), np.int8(2)
    )
    assert made == conv_geometry("conv2d", 2, (1, 4, 9, 9), (4, 2, 3, 3), (2, 3), ((2, 3), (2, 3)), (2, 3), 2)
    flat = [made.groups, *made.stride, *made.dilation, *made.pad_low]
    assert all(type(value) is int for value in flat)


def test_shapes_of_a_geometry():
    made = conv_geometry("conv2d", 2, (2, 6, 9, 10), (4, 3, 2, 3), 1, 0, 1, 2)
    assert made == ConvGeometry(2, 6, 4, 2, (1, 9, 10), (1, 8, 8), (1, 2, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0))
    assert made.x_shape == (2, 6, 1, 9, 10)
    assert made.y_shape == (2, 4, 1, 8, 8)
    assert made.weight_shape == (4, 3, 1, 2, 3)
    assert not made.is_empty
    pooled = pool_geometry("pool", 1, (3, 10), 4, 2, ((1, 2),), 1, True, count_include_pad=False)
    assert pooled == PoolGeometry(
        3, (1, 1, 10), (1, 1, 6), (1, 1, 4), (1, 1, 2), (1, 1, 1), (0, 0, 1), (0, 0, 2), False, False, 0
    )  # fmt: skip
    assert pooled.x_shape == (3, 1, 1, 10)
    assert pooled.y_shape == (3, 1, 1, 6)


def test_sizes_stay_in_64_bits():
    huge = 2**60
    assert conv(3, 1, huge, 0, 0, 1).output_size == (1, 1, 1)
    assert pool(4, huge, huge, huge - 2, 0, 1).output_size == (1, 1, 1)
    assert conv(3, 2, 1, huge, 0, huge).output_size == (1, 1, 3)
    assert conv(3, 1, 1, huge, 2**59, 1).output_size == (1, 1, 3 + huge + 2**59)
    for broken in (
        {"padding": SIZE_LIMIT},
        {"dilation": SIZE_LIMIT},
        {"stride": SIZE_LIMIT + 1},
        {"padding": ((2**63, 0),)},
        {"stride": 2**200},
    ):
        arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **broken}
        with pytest.raises(ShapeError, match=r"^conv1d: .* must not exceed 2\*\*61, got \d+$"):
            conv_geometry("conv1d", 1, (1, 1, 5), (1, 1, 3), **arguments)


# --- parameters ---


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3)])
def test_ints(value):
    found = one_int("op", "n", value)
    assert found == 3
    assert type(found) is int
    assert axis_ints("op", "n", value, 2, low=1) == (3, 3)


@pytest.mark.parametrize(
    "value", [3.0, "3", None, True, np.bool_(True), 1j, {3}, object(), b"3", np.float64(3)]
)
def test_what_is_no_int(value):
    with pytest.raises(TypeError, match=r"^op: n must be an int, got "):
        one_int("op", "n", value)
    with pytest.raises(TypeError, match=r"^op: n must be an int, got "):
        axis_ints("op", "n", value, 2, low=0)
    with pytest.raises(TypeError, match=r"^op: n must be an int, got "):
        axis_ints("op", "n", (1, value), 2, low=0)


def test_one_int_per_axis():
    for form in ((2, 3), [2, 3], np.array([2, 3])):
        assert axis_ints("op", "n", form, 2, low=1) == (2, 3)
    assert axis_ints("op", "n", (4,), 3, low=1) == (4, 4, 4)
    with pytest.raises(ShapeError, match=r"^op: n has 3 values, expected one int or 2, got \(1, 2, 3\)$"):
        axis_ints("op", "n", (1, 2, 3), 2, low=1)
    with pytest.raises(ShapeError, match=r"^op: n must be at least 1, got 0$"):
        axis_ints("op", "n", (1, 0), 2, low=1)
    for nested in ([[1], [2]], [[1], [2, 3]], [(1, 1), (1, 1)]):
        with pytest.raises(TypeError, match=r"^op: n must be an int"):
            axis_ints("op", "n", nested, 2, low=1)


def test_paddings():
    assert padding_spec("op", 2, 2) == ((2, 2), (2, 2))
    assert padding_spec("op", (1, 2), 2) == ((1, 1), (2, 2))
    assert padding_spec("op", ((1, 2), (3, 4)), 2) == ((1, 2), (3, 4))
    assert padding_spec("op", [[1, 2], (3, np.int8(4))], 2) == ((1, 2), (3, 4))
    assert padding_spec("op", np.array([[1, 2], [3, 4]]), 2) == ((1, 2), (3, 4))
    assert padding_spec("op", "same", 3) == "same"
    assert padding_spec("op", ((1, 2),), 1) == ((1, 2),)


@pytest.mark.parametrize(
    ("padding", "ndim", "error", "message"),
    [
        (-1, 2, ShapeError, "padding must be at least 0, got -1"),
        (((1, -2), (0, 0)), 2, ShapeError, "padding must be at least 0, got -2"),
        ((1, 2, 3), 2, ShapeError, "padding has 3 values, expected one int or 2"),
        (
            (1, 2, 3, 4),
            2,
            ShapeError,
            r"a flat padding of 4 ints is ambiguous; .*padding=\(\(1, 2\), \(3, 4\)\)",
        ),
        ((1, 2), 1, ShapeError, r"a flat padding of 2 ints is ambiguous; .*padding=\(\(1, 2\),\)"),
        (((1, 2),), 2, ShapeError, r"padding must give one \(low, high\) pair for each of 2 axes"),
        (((1, 2), 3), 2, ShapeError, r"padding must give one \(low, high\) pair for each of 2 axes"),
        (((1, 2, 3), (1, 2, 3)), 2, ShapeError, r"padding must give one \(low, high\) pair"),
        (((1, 2.0), (3, 4)), 2, TypeError, "padding must be an int, got 2.0"),
        (
            "full",
            2,
            ShapeError,
            "padding must be numbers or one of valid, same, same_lower, causal, got 'full'",
        ),
        ("causal", 2, ShapeError, "padding='causal' needs one spatial axis, this operation has 2"),
        (None, 2, TypeError, "padding must be an int, got None"),
    ],
)
def test_paddings_that_are_none(padding, ndim, error, message):
    with pytest.raises(error, match=f"^op: {message}"):
        padding_spec("op", padding, ndim)


@pytest.mark.parametrize(
    ("x", "weight", "groups", "message"),
    [
        (
            (3, 5),
            (2, 3, 2, 2),
            1,
            r"input has 2 dimensions, shape \(3, 5\), expected \(N, C, H, W\) or \(C, H, W\)",
        ),
        ((1, 1, 3, 5, 5), (2, 3, 2, 2), 1, "input has 5 dimensions"),
        (
            (1, 3, 5, 5),
            (2, 3, 2),
            1,
            r"weight has 3 dimensions, .* expected 4: \(C_out, C_in / groups, kH, kW\)",
        ),
        (
            (1, 3, 5, 5),
            (2, 4, 2, 2),
            1,
            "weight has 4 input channels per group, input has 3 channels in 1 group$",
        ),
        (
            (1, 6, 5, 5),
            (4, 2, 2, 2),
            2,
            "weight has 2 input channels per group, input has 6 channels in 2 groups$",
        ),
        ((1, 6, 5, 5), (5, 3, 2, 2), 2, "weight has 5 output channels, expected a multiple of groups=2"),
        ((1, 3, 5, 5), (0, 3, 2, 2), 1, "weight has 0 output channels"),
        ((1, 3, 5, 5), (2, 3, 0, 2), 1, r"weight of shape \(2, 3, 0, 2\) has an empty kernel axis"),
        ((1, 3, 5, 5), (2, 3, 2, 2), 0, "groups must be at least 1, got 0"),
        (
            (1, 3, 5, 4),
            (2, 3, 2, 5),
            1,
            "the kernel spans 5 elements on spatial axis 1, the padded input has 4",
        ),
    ],
)
def test_shapes_that_do_not_fit(x, weight, groups, message):
    with pytest.raises(ShapeError, match=f"^conv2d: {message}"):
        conv_geometry("conv2d", 2, x, weight, 1, 0, 1, groups)
