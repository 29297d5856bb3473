"""The checks find what they are for: each is shown a mistake, and nothing but that mistake."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastconv.backends import protocol, reference
from fastconv.geometry import conv_geometry, pool_geometry
from fastconv.testing import UNITS, check_backend, check_kernel, gradcheck, make_problem

CONV = conv_geometry("conv2d", 2, (2, 3, 5, 6), (4, 3, 2, 3), 1, 1, 1, 1)
POOL = pool_geometry("pool", 2, (1, 2, 6, 7), 3, 2, 1, 1, False)


def backend(**changed):
    kernels = {name: getattr(reference, name) for name in (*protocol.KERNELS, "describe")}
    return SimpleNamespace(**{**kernels, **changed})


def after(kernel, change):
    """A backend whose kernel does its work and then something else, to the arrays that it was given."""
    compute = getattr(reference, kernel)

    def changed(*args):
        result = compute(*args)
        change(*args)
        return result

    return backend(**{kernel: changed})


def test_the_reference_passes():
    check_backend(backend())


@pytest.mark.parametrize("kernel", protocol.KERNELS)
def test_every_kernel_is_checked(kernel):
    with pytest.raises(AssertionError, match=kernel):
        check_backend(backend(**{kernel: lambda *args: -1}))


def test_an_element_that_is_not_written():
    def forget(x, weight, bias, activation, y, geometry):
        y.flat[7] = np.nan

    with pytest.raises(
        AssertionError, match=r"1 of 288 elements are wrong, first \(0, 0, 0, 1, 1\): got .*nan"
    ):
        check_kernel(after("conv_forward", forget), make_problem("conv_forward", CONV, "float32"))


def beyond(array, index):
    """The element that lies `index` elements from the array's first."""
    return np.lib.stride_tricks.as_strided(
        array.reshape(-1)[:1], (abs(index) + 1,), (np.sign(index) * array.itemsize,)
    )


@pytest.mark.parametrize("where", ["before", "behind"])
def test_writing_beyond_the_output(where):
    def overrun(grad_y, grad_x, geometry):
        beyond(grad_x, -1 if where == "before" else grad_x.size)[-1] = 0

    with pytest.raises(AssertionError, match="wrote beyond an output"):
        check_kernel(
            after("avg_pool_grad_input", overrun), make_problem("avg_pool_grad_input", POOL, "float64")
        )


@pytest.mark.parametrize("where", ["before", "behind"])
def test_reading_beyond_an_input(where):
    def overread(x, y, geometry):
        y[0, 0, 0, 0] += 0 * beyond(x, -1 if where == "before" else x.size)[-1]

    with pytest.raises(AssertionError, match="1 of 24 elements are wrong"):
        check_kernel(after("avg_pool", overread), make_problem("avg_pool", POOL, "float32"))


def test_changing_an_input():
    def change(x, grad_y, grad_weight, geometry):
        x[0, 0, 0, 0, 0] += 1

    with pytest.raises(AssertionError, match="an input was modified"):
        check_kernel(after("conv_grad_weight", change), make_problem("conv_grad_weight", CONV, "float64"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_little_more_than_the_bound(dtype):
    problem = make_problem("conv_forward", CONV, dtype)
    size = make_problem("conv_forward", CONV, dtype).bounds[0] / UNITS

    def off(units):
        def change(x, weight, bias, activation, y, geometry):
            y[1, 2, 0, 3, 3] += units * size[1, 2, 0, 3, 3]

        return after("conv_forward", change)

    check_kernel(off(UNITS - 1), problem)
    with pytest.raises(AssertionError, match="1 of 288 elements are wrong"):
        check_kernel(off(UNITS + 1), problem)


def test_whole_numbers_have_no_bound():
    def change(x, weight, bias, activation, y, geometry):
        y.flat[np.flatnonzero(y)[0]] *= 1 + np.finfo(np.float32).eps

    problem = make_problem("conv_forward", CONV, "float32", data="integer")
    with pytest.raises(AssertionError, match="1 of 288 elements are wrong"):
        check_kernel(after("conv_forward", change), problem)


def test_indices_that_are_not_checked():
    def trusting(grad_y, indices, grad_x):
        reference.max_pool_grad_input(grad_y, np.clip(indices, -1, grad_x[0].size - 1), grad_x)
        return -1

    with pytest.raises(AssertionError, match="returned -1 for index"):
        check_backend(backend(max_pool_grad_input=trusting))


def test_the_last_of_equal_maxima():
    def last(x, y, indices, geometry):
        flipped = np.ascontiguousarray(x[..., ::-1, ::-1])
        reference.max_pool(flipped, y, indices, geometry)
        y[...] = y[..., ::-1, ::-1].copy()
        if indices is not None:
            indices[...] = np.where(indices < 0, -1, x[0].size - 1 - indices)[..., ::-1, ::-1]

    problem = make_problem("max_pool", pool_geometry("pool", 2, (1, 2, 6, 8), 2, 2, 0, 1, False), "float32")
    check_kernel(backend(max_pool=last), problem)  # right where no two are equal
    with pytest.raises(AssertionError, match=r"max_pool of .*elements are wrong"):
        check_kernel(backend(max_pool=last), problem._replace(**ties_of(problem)))


def ties_of(problem):
    return make_problem("max_pool", problem.geometry, "float32", data="ties")._asdict()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": "conv"}, "kernel must be one of conv_forward, .*, got 'conv'"),
        ({"data": "uniform"}, "data must be one of normal, positive, integer, ties, nan, got 'uniform'"),
        ({"activation": "gelu"}, "activation must be one of None, relu, .*, got 'gelu'"),
    ],
)
def test_unknown_names(changed, message):
    with pytest.raises(ValueError, match=f"^make_problem: {message}$"):
        make_problem(**{"kernel": "conv_forward", "geometry": CONV, "dtype": "float32", **changed})


def test_a_description_that_is_none():
    with pytest.raises(AssertionError, match="describe"):
        check_backend(backend(describe=lambda: {"threads": 4}))


class TestGradcheck:
    x, y = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([4.0, -1.0])

    @staticmethod
    def product(x, y):
        return x**2 * y

    def test_right(self):
        gradcheck(self.product, lambda g, x, y: (2 * x * y * g, (x**2 * g).sum(axis=0)), [self.x, self.y])

    def test_wrong(self):
        with pytest.raises(AssertionError, match=r"gradient 0: 1 of 4 elements are wrong, first \(1, 0\)"):
            gradcheck(
                self.product,
                lambda g, x, y: (2 * x * y * g + [[0, 0], [1e-4, 0]], (x**2 * g).sum(axis=0)),
                [self.x, self.y],
            )
        with pytest.raises(AssertionError, match="gradient 1: 2 of 2 elements are wrong"):
            gradcheck(self.product, lambda g, x, y: (None, (x * g).sum(axis=0)), [self.x, self.y])

    def test_shapes_and_counts(self):
        with pytest.raises(AssertionError, match=r"gradient 1 has shape \(2, 2\), its input has \(2,\)"):
            gradcheck(self.product, lambda g, x, y: (2 * x * y * g, x**2 * g), [self.x, self.y])
        with pytest.raises(AssertionError, match=r"backward returned 1 gradients, expected 2"):
            gradcheck(self.product, lambda g, x, y: 2 * x * y * g, [self.x, self.y])

    def test_types(self):
        for array in (self.x.astype(np.float32), self.x.tolist()):
            with pytest.raises(TypeError, match="gradcheck: input 0 must be an array of float64"):
                gradcheck(np.square, lambda g, x: 2 * x * g, [array])

    def test_function_that_returns_its_argument(self):
        gradcheck(lambda x: x, lambda g, x: g, [self.x])
        gradcheck(lambda x: x[::-1], lambda g, x: g[::-1], [self.x])

    @pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
    def test_differences_that_are_not_finite(self, value):
        def jump(x):
            return np.where(x > 0.7, value, x)

        with pytest.raises(
            AssertionError, match=r"the finite difference by input 1 at \(0, 0\) is .*, expected a finite"
        ):
            gradcheck(lambda y, x: jump(x), lambda g, y, x: (None, 5 * g), [self.y, self.x])

    def test_input_without_axes(self):
        point = [np.array(3.0)]
        gradcheck(np.square, lambda g, x: float(2 * x * g), point)
        with pytest.raises(AssertionError, match=r"gradient 0: 1 of 1 elements are wrong, first \(\)"):
            gradcheck(np.square, lambda g, x: float(3 * x * g), point)

    def test_inputs_are_not_changed(self):
        before = self.x.copy()
        gradcheck(np.square, lambda g, x: 2 * x * g, [self.x])
        np.testing.assert_array_equal(self.x, before)
