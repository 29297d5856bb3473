"""The eight rules that people get wrong, one class each; every expectation is worked out by hand."""

import functools
import itertools

import numpy as np
import pytest

import fastconv
from fastconv import ShapeError

pytestmark = pytest.mark.smoke

nan, inf = np.nan, np.inf
DTYPES = ("float32", "float64")


def row(*values, dtype=np.float64):
    return np.array([[values]], dtype)


class TestRule1OutputSize:
    """o = (L + p_lo + p_hi - d(k-1) - 1 + (s-1 if ceil)) // s + 1, less one if that starts too late."""

    @pytest.mark.parametrize(
        ("length", "kernel", "stride", "low", "high", "dilation", "floor", "ceil"),
        [
            (5, 2, 2, 0, 0, 1, 2, 3),
            (6, 2, 2, 0, 0, 1, 3, 3),
            (7, 3, 2, 1, 1, 1, 4, 4),
            (8, 3, 2, 1, 1, 1, 4, 5),
            (4, 2, 3, 0, 0, 1, 1, 2),
            (3, 2, 3, 0, 0, 1, 1, 1),  # the second window would start at 3, the end of the input
            (2, 1, 3, 0, 0, 1, 1, 1),  # at 3, beyond it
            (5, 2, 3, 1, 1, 1, 2, 2),  # the third would start at 5, in the high padding
            (5, 2, 2, 1, 1, 1, 3, 3),
            (9, 3, 2, 0, 0, 2, 3, 3),
            (10, 3, 3, 1, 0, 2, 3, 3),
            (10, 3, 4, 0, 4, 2, 3, 3),
            (1, 1, 7, 0, 0, 1, 1, 1),
        ],
    )
    def test_pooling(self, length, kernel, stride, low, high, dilation, floor, ceil, backend):
        x, padding = np.ones((1, 1, length)), ((low, high),)
        window = {"stride": stride, "padding": padding, "dilation": dilation, "backend": backend}
        for pool in (fastconv.max_pool1d, fastconv.avg_pool1d):
            assert pool(x, kernel, **window).shape == (1, 1, floor)
            assert pool(x, kernel, **window, ceil_mode=True).shape == (1, 1, ceil)

    def test_convolution(self, backend):
        x, weight = np.ones((1, 1, 11, 12, 13)), np.ones((1, 1, 2, 3, 4))
        y = fastconv.conv3d(
            x, weight, stride=(1, 2, 3), padding=((0, 1), (2, 0), (3, 4)), dilation=(4, 1, 2), backend=backend
        )
        assert y.shape == (1, 1, 8, 6, 5)

    @pytest.mark.parametrize("name", ["same", "same_lower"])
    def test_same(self, name, backend):
        """out = ceil(in / stride) with any stride, for convolution, transposed convolution and pooling."""
        for length, kernel, stride in itertools.product((1, 4, 5, 9), (1, 2, 3, 5), (1, 2, 3, 7)):
            x, outputs = np.ones((1, 1, length)), -(-length // stride)
            weight = np.ones((1, 1, kernel))
            y = fastconv.conv1d(x, weight, stride=stride, padding=name, backend=backend)
            assert y.shape == (1, 1, outputs)
            pooled = fastconv.avg_pool1d(x, kernel, stride, name, backend=backend)
            assert pooled.shape == (1, 1, outputs)
            up = fastconv.conv_transpose1d(x, weight, stride=stride, padding=name, backend=backend)
            assert up.shape == (1, 1, length * stride)

    def test_same_puts_the_odd_element_at_the_end(self, backend):
        x, weight = row(1, 2, 3), np.array([[[1.0, 10.0]]])
        conv = functools.partial(fastconv.conv1d, x, weight, backend=backend)
        assert conv(padding="same").tolist() == [[[21, 32, 3]]]
        assert conv(padding="same_lower").tolist() == [[[10, 21, 32]]]
        assert conv(padding="causal").tolist() == [[[10, 21, 32]]]
        assert conv(padding="valid").tolist() == [[[21, 32]]]

    def test_causal_never_sees_the_future(self, backend):
        x = np.random.default_rng(0).standard_normal((1, 1, 9))
        weight = np.random.default_rng(1).standard_normal((1, 1, 3))
        conv = functools.partial(
            fastconv.conv1d, weight=weight, padding="causal", dilation=2, backend=backend
        )
        y = conv(x)
        changed = x.copy()
        changed[..., 5:] += 1
        assert y.shape == x.shape
        np.testing.assert_array_equal(conv(changed)[..., :5], y[..., :5])
        with pytest.raises(ShapeError, match="conv2d: padding='causal' needs one spatial axis"):
            fastconv.conv2d(x[None], weight[None], padding="causal", backend=backend)

    def test_a_flat_padding_is_refused_with_the_pair_form(self, backend):
        with pytest.raises(ShapeError, match=r"conv2d: .*padding=\(\(1, 2\), \(3, 4\)\)"):
            fastconv.conv2d(
                np.ones((1, 1, 5, 5)), np.ones((1, 1, 2, 2)), padding=(1, 2, 3, 4), backend=backend
            )
        with pytest.raises(ShapeError, match=r"max_pool1d: .*padding=\(\(1, 0\),\)"):
            fastconv.max_pool1d(row(1, 2, 3), 2, padding=(1, 0), backend=backend)


class TestRule2Divisor:
    """A window runs from i*s - p to min(start + k, L + p): padding counts if asked to, overhang never."""

    def pool(self, x, *args, backend, **kwargs):
        return fastconv.avg_pool1d(x, *args, **kwargs, backend=backend).ravel().tolist()

    def test_padding_counts(self, backend):
        x = row(6, 6, 6, 6)
        assert self.pool(x, 3, 1, 1, backend=backend) == [4, 6, 6, 4]
        assert self.pool(x, 3, 1, 1, count_include_pad=False, backend=backend) == [6, 6, 6, 6]

    def test_overhang_does_not(self, backend):
        x = row(6, 6, 6, 6, 6)
        assert self.pool(x, 3, 3, ceil_mode=True, backend=backend) == [6, 6]
        # The last of three windows holds 5, the padding 6 and an overhanging 7: two elements.
        x = row(1, 2, 3, 4, 5, 6)
        assert self.pool(x, 3, 3, 1, ceil_mode=True, backend=backend) == [1, 4, 3]
        assert self.pool(x, 3, 3, 1, True, False, backend=backend) == [1.5, 4, 6]

    def test_divisor_override_beats_both(self, backend):
        x = row(1, 2, 3, 4, 5, 6)
        for include in (False, True):
            assert self.pool(x, 3, 3, 1, True, include, 2, backend=backend) == [1.5, 6, 3]
            assert self.pool(x, 3, 3, 1, True, include, -3, backend=backend) == [-1, -4, -2]

    def test_divisor_zero_is_refused(self, backend):
        with pytest.raises(ShapeError, match="avg_pool1d: divisor_override must not be 0"):
            fastconv.avg_pool1d(row(1, 2), 2, divisor_override=0, backend=backend)
        with pytest.raises(ShapeError, match="avg_pool1d_backward: divisor_override must not be 0"):
            fastconv.avg_pool1d_backward(row(1), (1, 1, 2), 2, divisor_override=0, backend=backend)

    def test_dilated_windows_count_their_taps(self, backend):
        # Taps at -1, 1, 3 / 0, 2, 4 / 1, 3, 5 of 0..4, and one element of padding on each side.
        x = row(3, 6, 9, 12, 15)
        assert self.pool(x, 3, 1, 1, dilation=2, backend=backend) == [6, 9, 6]
        assert self.pool(x, 3, 1, 1, False, False, dilation=2, backend=backend) == [9, 9, 9]

    def test_gradients_use_the_same_divisors(self, backend):
        grad = row(6, 6, 6)
        backward = functools.partial(
            fastconv.avg_pool1d_backward, grad, (1, 1, 6), 3, 3, 1, True, backend=backend
        )
        assert backward().ravel().tolist() == [2, 2, 2, 2, 2, 3]
        assert backward(False).ravel().tolist() == [3, 3, 2, 2, 2, 6]
        assert backward(True, 4).ravel().tolist() == [1.5] * 6

    def test_a_window_without_elements_averages_to_zero(self, backend):
        y = fastconv.avg_pool1d(row(5), 2, 1, 1, False, False, dilation=2, backend=backend)
        assert y.ravel().tolist() == [0]


@pytest.mark.parametrize("dtype", DTYPES)
class TestRule3Ties:
    """The first in row-major window order takes the whole gradient. NaN wins, the last of them."""

    def pool(self, x, *args, backend, **kwargs):
        values, indices = fastconv.max_pool1d(x, *args, **kwargs, return_indices=True, backend=backend)
        return values.ravel().tolist(), indices.ravel().tolist()

    def test_first_wins(self, dtype, backend):
        assert self.pool(row(2, 2, 1, 1, 3, 3, dtype=dtype), 2, backend=backend) == ([2, 1, 3], [0, 2, 4])
        x = np.array([[[[1, 5], [5, 5]]]], dtype)
        values, indices = fastconv.max_pool2d(x, 2, return_indices=True, backend=backend)
        assert (values.item(), indices.item()) == (5, 1)
        grad = fastconv.max_pool2d_backward(np.ones_like(values), indices, x.shape, backend=backend)
        assert grad.tolist() == [[[[0, 1], [0, 0]]]]

    def test_zeros_of_both_signs_tie(self, dtype, backend):
        assert self.pool(row(-0.0, 0.0, 0.0, -0.0, dtype=dtype), 2, backend=backend)[1] == [0, 2]

    def test_infinities_tie(self, dtype, backend):
        x = row(inf, inf, -inf, -inf, dtype=dtype)
        assert self.pool(x, 2, backend=backend) == ([inf, -inf], [0, 2])

    @pytest.mark.parametrize("length", [3, 8, 19, 40])
    def test_last_nan_wins(self, length, dtype, backend):
        for places in itertools.combinations(range(length), 2):
            x = np.full((1, 1, length), inf, dtype)
            x[..., list(places)] = nan
            values, indices = fastconv.max_pool1d(x, length, return_indices=True, backend=backend)
            assert np.isnan(values).all()
            assert indices.item() == places[-1]

    def test_nan_wins_in_every_window_that_has_it(self, dtype, backend):
        x = np.zeros((1, 1, 6, 37), dtype)
        x[0, 0, 2, 5] = x[0, 0, 4, 33] = nan
        values, indices = fastconv.max_pool2d(x, 3, 1, 1, return_indices=True, backend=backend)
        expected = np.zeros(x.shape, bool)
        expected[0, 0, 1:4, 4:7] = expected[0, 0, 3:6, 32:35] = True
        np.testing.assert_array_equal(np.isnan(values), expected)
        assert set(indices[expected].tolist()) == {2 * 37 + 5, 4 * 37 + 33}

    def test_padding_is_never_read(self, dtype, backend):
        x = row(-3, -2, -5, dtype=dtype)
        assert self.pool(x, 3, 1, 1, backend=backend) == ([-2, -2, -2], [1, 1, 1])

    def test_window_without_taps(self, dtype, backend):
        x = row(5, dtype=dtype)
        assert self.pool(x, 2, 1, 1, 2, backend=backend) == ([-inf], [-1])
        grad = fastconv.max_pool1d_backward(
            row(7, dtype=dtype), row(-1, dtype=int), (1, 1, 1), backend=backend
        )
        assert grad.tolist() == [[[0]]]
        unpooled = fastconv.max_unpool1d(x, row(-1, dtype=int), 2, backend=backend)
        assert unpooled.tolist() == [[[0, 0]]]

    def test_window_of_negative_infinity_has_an_index(self, dtype, backend):
        x = np.full((1, 1, 4), -inf, dtype)
        assert self.pool(x, 2, 1, 1, backend=backend) == ([-inf] * 5, [0, 0, 1, 2, 3])


class TestRule4Indices:
    """int64, flat in the unpadded spatial plane of each (n, c)."""

    @pytest.mark.parametrize("ndim", [1, 2, 3])
    def test_point_at_the_maximum(self, ndim, backend):
        shape = (2, 3, *(7, 5, 6)[:ndim])
        x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float64)
        pool = getattr(fastconv, f"max_pool{ndim}d")
        values, indices = pool(x, 3, 2, 1, return_indices=True, backend=backend)
        assert indices.dtype == np.int64
        planes = x.reshape(2, 3, -1)
        found = np.take_along_axis(planes, indices.reshape(2, 3, -1), axis=2)
        np.testing.assert_array_equal(found.reshape(values.shape), values)

    def test_out_of_range(self, backend):
        """Also those that look valid in 32 bits; the message says which, where, and what was expected."""
        for bad in (-2, 6, 2**31, 2**32, 2**32 + 3, -(2**32), 2**63 - 1, -(2**63)):
            indices = np.array([[[0, 5], [bad, -1]]])
            message = rf"indices holds {bad} at flat position 2, expected -1 or 0..5 \(a plane of \(6,\)\)"
            with pytest.raises(IndexError, match=f"^max_pool1d_backward: {message}$"):
                fastconv.max_pool1d_backward(np.ones((1, 2, 2)), indices, (1, 2, 6), backend=backend)
            with pytest.raises(IndexError, match=f"^max_unpool1d: {message}$"):
                fastconv.max_unpool1d(np.ones((1, 2, 2)), indices, 3, backend=backend)

    def test_unsigned_and_narrow_indices(self, backend):
        for dtype in ("uint8", "int16", "uint32", "uint64", ">i8"):
            indices = np.array([[[1, 0]]], dtype)
            grad = fastconv.max_pool1d_backward(row(3, 4), indices, (3,), backend=backend)
            assert grad.tolist() == [[[4, 3, 0]]]
        huge = np.array([[[1, 2**64 - 1]]], np.uint64)
        for call in (
            lambda: fastconv.max_pool1d_backward(row(3, 4), huge, (3,), backend=backend),
            lambda: fastconv.max_unpool1d(row(3, 4), huge, 2, backend=backend),
        ):
            with pytest.raises(
                IndexError, match=f"indices holds {2**64 - 1} at flat position 1, expected -1 or"
            ):
                call()
        for dtype in ("float64", "bool"):
            with pytest.raises(TypeError, match="max_pool1d_backward: indices must be integers"):
                fastconv.max_pool1d_backward(row(3, 4), np.zeros((1, 1, 2), dtype), (3,), backend=backend)


class TestRule5Pools:
    """Padding is smaller than the dilated kernel, the kernel fits the padded input; any stride; any type."""

    def test_padding_up_to_the_dilated_kernel(self, backend):
        x = row(1, 2, 3)
        assert fastconv.max_pool1d(x, 3, 1, 2, backend=backend).ravel().tolist() == [1, 2, 3, 3, 3]
        y = fastconv.max_pool1d(x, 2, 1, 4, 4, backend=backend)
        assert y.ravel().tolist() == [1, 2, 3, -inf, 1, 2, 3]
        for pool, kernel, padding, dilation in (
            (fastconv.max_pool1d, 3, 3, 1),
            (fastconv.avg_pool1d, 2, 5, 4),
            (fastconv.max_pool1d, 3, ((0, 3),), 1),
            (fastconv.max_pool1d, 1, 1, 9),
        ):
            with pytest.raises(
                ShapeError, match=f"{pool.__name__}: padding .* must be smaller than the dilated"
            ):
                pool(x, kernel, 1, padding, dilation=dilation, backend=backend)

    def test_kernel_beyond_the_padded_input(self, backend):
        for pool in (fastconv.max_pool1d, fastconv.avg_pool1d):
            for ceil_mode in (False, True):
                with pytest.raises(ShapeError, match=f"{pool.__name__}: the kernel spans 6 elements"):
                    pool(row(1, 2, 3), 6, 1, 1, ceil_mode=ceil_mode, backend=backend)
        with pytest.raises(ShapeError, match="conv1d: the kernel spans 4 elements on spatial axis 0"):
            fastconv.conv1d(row(1, 2, 3), np.ones((1, 1, 4)), backend=backend)

    def test_unread_input_gets_no_gradient(self, backend):
        x = row(9, 1, 8, 9, 2, 7, 9)
        values, indices = fastconv.max_pool1d(x, 2, 3, return_indices=True, backend=backend)
        assert values.ravel().tolist() == [9, 9]
        grad = fastconv.max_pool1d_backward(row(1, 1), indices, x.shape, backend=backend)
        assert grad.ravel().tolist() == [1, 0, 0, 1, 0, 0, 0]
        grad = fastconv.avg_pool1d_backward(row(2, 2), x.shape, 2, 3, backend=backend)
        assert grad.ravel().tolist() == [1, 1, 0, 1, 1, 0, 0]
        grad, _, _ = fastconv.conv1d_backward(row(1, 1), x, row(3, 4), stride=3, backend=backend)
        assert grad.ravel().tolist() == [3, 4, 0, 3, 4, 0, 0]

    def test_max_keeps_integers(self, backend):
        for dtype in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
            y = fastconv.max_pool1d(row(0, 1, 1, 0, dtype=dtype), 2, backend=backend)
            assert y.dtype == dtype
            assert y.ravel().tolist() == [1, 1]
        big = row(2**53, 2**53 + 1, dtype=np.int64)  # a detour through float64 would lose the difference
        assert fastconv.max_pool1d(big, 2, backend=backend).item() == 2**53 + 1

    def test_max_of_no_integers(self, backend):
        for dtype in ("int8", "uint8", "int64"):
            y, index = fastconv.max_pool1d(
                row(5, dtype=dtype), 2, 1, 1, 2, return_indices=True, backend=backend
            )
            assert y.item() == np.iinfo(dtype).min
            assert index.item() == -1


class TestRule6TransposedSize:
    """o = (L-1)s - p_lo - p_hi + d(k-1) + output_padding + 1, with output_padding < max(s, d)."""

    def test_size(self, backend):
        x = np.ones((1, 1, 4, 3))
        for kernel, stride, low, high, extra, dilation in itertools.product(
            (1, 3), (1, 2, 3), (0, 1), (0, 2), (0, 1, 2), (1, 2, 3)
        ):
            arguments = (x, np.ones((1, 1, kernel, 2)))
            window = {
                "stride": (stride, 1),
                "padding": ((low, high), (0, 0)),
                "output_padding": (extra, 0),
                "dilation": (dilation, 1),
                "backend": backend,
            }
            size = 3 * stride - low - high + dilation * (kernel - 1) + extra + 1
            if extra >= max(stride, dilation):
                with pytest.raises(
                    ShapeError, match=r"conv_transpose2d: output_padding=.* must be smaller than"
                ):
                    fastconv.conv_transpose2d(*arguments, **window)
            elif size < 1:
                with pytest.raises(ShapeError, match=r"conv_transpose2d: output size .* is not positive"):
                    fastconv.conv_transpose2d(*arguments, **window)
            else:
                assert fastconv.conv_transpose2d(*arguments, **window).shape == (1, 1, size, 4)

    def test_output_padding_is_computed_not_filled(self, backend):
        y = fastconv.conv_transpose1d(
            row(1, 2), row(10, 20, 30), row(1)[0, 0], stride=2, padding=1, output_padding=1, backend=backend
        )
        assert y.ravel().tolist() == [21, 51, 41, 61]


class TestRule7Empty:
    """N = 0: empty, weight gradients zero. C_in = 0: the bias. An empty image: only if padding suffices."""

    def test_empty_batch(self, backend):
        x, weight, bias = np.ones((0, 3, 5, 6)), np.ones((4, 3, 2, 3)), np.ones(4)
        y = fastconv.conv2d(x, weight, bias, activation="silu", backend=backend)
        assert y.shape == (0, 4, 4, 4)
        grads = fastconv.conv2d_backward(y, x, weight, backend=backend)
        assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
        assert not grads[1].any()
        assert not grads[2].any()
        up = fastconv.conv_transpose2d(y, weight, backend=backend)
        assert up.shape == x.shape
        grads = fastconv.conv_transpose2d_backward(up, y, weight, backend=backend)
        assert [g.shape for g in grads] == [y.shape, weight.shape, (3,)]
        assert not grads[1].any()
        assert not grads[2].any()
        values, indices = fastconv.max_pool2d(x, 2, return_indices=True, backend=backend)
        assert values.shape == indices.shape == (0, 3, 2, 3)
        assert fastconv.max_pool2d_backward(values, indices, x.shape, backend=backend).shape == x.shape
        assert fastconv.max_unpool2d(values, indices, 2, backend=backend).shape == (0, 3, 4, 6)
        assert fastconv.avg_pool2d_backward(values, x.shape, 2, backend=backend).shape == x.shape
        assert fastconv.adaptive_avg_pool2d(x, 1, backend=backend).shape == (0, 3, 1, 1)
        assert fastconv.lp_pool2d(x, 2, 2, backend=backend).shape == (0, 3, 2, 3)
        assert fastconv.lp_pool2d_backward(values, x, 2, 2, backend=backend).shape == x.shape
        assert fastconv.unfold(x, 2, backend=backend).shape == (0, 12, 20)
        assert fastconv.fold(np.ones((0, 12, 20)), (5, 6), 2, backend=backend).shape == x.shape

    def test_no_input_channels(self, backend):
        x, weight, bias = np.ones((2, 0, 4, 5)), np.ones((3, 0, 2, 2)), np.array([-1.0, 0.0, 2.0])
        y = fastconv.conv2d(x, weight, bias, backend=backend)
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (2, 3, 3, 4)))
        y = fastconv.conv2d(x, weight, bias, activation="relu", backend=backend)
        np.testing.assert_array_equal(y, np.broadcast_to([[[0.0]], [[0.0]], [[2.0]]], (2, 3, 3, 4)))
        assert not fastconv.conv2d(x, weight, backend=backend).any()
        grads = fastconv.conv2d_backward(y, x, weight, backend=backend)
        assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
        assert grads[2].tolist() == [0, 0, 48]
        up = fastconv.conv_transpose2d(x, np.ones((0, 3, 2, 2)), bias, backend=backend)
        np.testing.assert_array_equal(up, np.broadcast_to(bias[:, None, None], (2, 3, 5, 6)))

    def test_no_channels_to_pool(self, backend):
        x = np.ones((2, 0, 4, 5))
        assert fastconv.max_pool2d(x, 2, backend=backend).shape == (2, 0, 2, 2)
        assert fastconv.avg_pool2d(x, 2, backend=backend).shape == (2, 0, 2, 2)

    def test_empty_image_with_enough_padding(self, backend):
        x, weight, bias = np.ones((2, 3, 0, 4)), np.ones((5, 3, 2, 3)), np.arange(5.0)
        y = fastconv.conv2d(x, weight, bias, padding=((1, 2), (0, 0)), backend=backend)
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (2, 5, 2, 2)))
        grads = fastconv.conv2d_backward(y, x, weight, padding=((1, 2), (0, 0)), backend=backend)
        assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
        assert not grads[1].any()
        assert grads[2].tolist() == [0, 8, 16, 24, 32]
        values, indices = fastconv.max_pool2d(x, (2, 1), 1, (1, 0), return_indices=True, backend=backend)
        assert values.shape == (2, 3, 1, 4)
        assert (values == -inf).all()
        assert (indices == -1).all()
        assert not fastconv.max_pool2d_backward(values, indices, x.shape, backend=backend).any()
        average = fastconv.avg_pool2d(x, (2, 1), 1, (1, 0), backend=backend)
        assert average.shape == (2, 3, 1, 4)
        assert not average.any()

    @pytest.mark.parametrize(
        "call",
        [
            lambda x, backend: fastconv.conv2d(x, np.ones((1, 3, 2, 2)), backend=backend),
            lambda x, backend: fastconv.conv2d(x, np.ones((1, 3, 1, 1)), backend=backend),
            lambda x, backend: fastconv.conv_transpose2d(x, np.ones((3, 1, 2, 2)), backend=backend),
            lambda x, backend: fastconv.max_pool2d(x, 2, 1, ((1, 0), (0, 0)), backend=backend),
            lambda x, backend: fastconv.avg_pool2d(x, 1, backend=backend),
            lambda x, backend: fastconv.adaptive_avg_pool2d(x, 1, backend=backend),
            lambda x, backend: fastconv.adaptive_max_pool2d(x, 1, backend=backend),
            lambda x, backend: fastconv.unfold(x, 1, backend=backend),
        ],
        ids=["conv", "conv-1x1", "transposed", "max", "avg", "adaptive-avg", "adaptive-max", "unfold"],
    )
    def test_empty_image_is_refused(self, call, backend):
        with pytest.raises(ShapeError, match=r"^\w+: "):
            call(np.ones((2, 3, 0, 4)), backend)

    @pytest.mark.parametrize("shape", [(2, 3, 0, 3), (0, 3, 2, 2), (2, 3, 2, 0)])
    def test_empty_kernel_is_refused(self, shape, backend):
        with pytest.raises(ShapeError, match=r"^conv2d: weight "):
            fastconv.conv2d(np.ones((1, 3, 4, 4)), np.ones(shape), backend=backend)


class TestRule8LpPool:
    """lp_pool is a norm: sum(|x|^p)^(1/p)."""

    def test_norm(self, backend):
        y = fastconv.lp_pool1d(row(3, -4, 0, 0, -5, 12), 2, 2, backend=backend)
        np.testing.assert_allclose(y.ravel(), [5, 0, 13], rtol=1e-15)
        y = fastconv.lp_pool1d(row(3, -4, 0, 0, -5, 12), 1, 3, backend=backend)
        np.testing.assert_allclose(y.ravel(), [7, 17], rtol=1e-15)

    def test_odd_powers_of_negative_numbers(self, backend):
        y = fastconv.lp_pool1d(row(-1, -2, -3, 0), 3, 4, backend=backend)
        np.testing.assert_allclose(y.ravel(), [36 ** (1 / 3)], rtol=1e-15)

    def test_padding_and_overhang_add_nothing(self, backend):
        y = fastconv.lp_pool1d(row(3, 4, 12, 5), 2, 3, 2, True, padding=1, backend=backend)
        np.testing.assert_allclose(y.ravel(), [5, np.sqrt(185), 5], rtol=1e-15)
