"""fastconv's kernels as differentiable primitives of HIPS autograd, to any order.

Convolution is linear in its input and in its weight, and the gradient of each of the three functions below is
made of the other two; so they can be differentiated again and again. The same holds for the pair that picks
and places the maxima of pooling. Checked by autograd's own numerical differentiation, then used: gradient
descent finds an unknown filter from what it did to some images. Needs autograd.
"""

import argparse

import autograd.numpy as np
from autograd import grad as gradient_of
from autograd.extend import defvjp, notrace_primitive, primitive
from autograd.test_util import check_grads

import fastconv as fc

# --- convolution ---


@primitive
def conv2d(x, weight, **window):
    """Convolve like `fastconv.conv2d`; `window` is its stride, padding, dilation, groups."""
    return fc.conv2d(x, weight, **window)


@primitive
def conv2d_input(weight, grad, size, **window):
    """The gradient of `conv2d` with respect to an input of shape `size`."""
    return fc.grad.conv2d_input(size, weight, grad, **window)


@primitive
def conv2d_weight(x, grad, size, **window):
    """The gradient of `conv2d` with respect to a weight of shape `size`."""
    return fc.grad.conv2d_weight(x, size, grad, **window)


defvjp(
    conv2d,
    lambda _y, x, weight, **window: lambda g: conv2d_input(weight, g, x.shape, **window),
    lambda _y, x, weight, **window: lambda g: conv2d_weight(x, g, weight.shape, **window),
)
defvjp(
    conv2d_input,
    lambda _y, weight, grad, _size, **window: lambda g: conv2d_weight(g, grad, weight.shape, **window),
    lambda _y, weight, _grad, _size, **window: lambda g: conv2d(g, weight, **window),
)
defvjp(
    conv2d_weight,
    lambda _y, x, grad, _size, **window: lambda g: conv2d_input(g, grad, x.shape, **window),
    lambda _y, x, _grad, _size, **window: lambda g: conv2d(x, g, **window),
)

# --- max pooling ---


def max_pool2d(x, kernel_size, **window):
    """Pool like `fastconv.max_pool2d`."""
    return pick(x, max_indices(x, kernel_size, **window))


@notrace_primitive
def max_indices(x, kernel_size, **window):
    """Where the maxima are: constant almost everywhere, so nothing to differentiate."""
    return fc.max_pool2d(x, kernel_size, **window, return_indices=True)[1]


@primitive
def pick(x, indices):
    """The elements of each plane of `x` at `indices`."""
    planes = x.reshape(*x.shape[:-2], -1)
    return np.take_along_axis(planes, indices.reshape(*x.shape[:-2], -1), axis=-1).reshape(indices.shape)


@primitive
def place(values, indices, size):
    """An array of shape `size` with `values` added at `indices` of each plane."""
    return fc.max_pool2d_backward(values, indices, size)


defvjp(pick, lambda _y, x, indices: lambda g: place(g, indices, x.shape))
defvjp(place, lambda _y, _values, indices, _size: lambda g: pick(g, indices))

# --- in use ---


def check(rng):
    """Compare derivatives with numerical ones: the first, and the gradients of the gradients."""
    x, weight = rng.normal(size=(2, 4, 9, 8)), rng.normal(size=(6, 2, 3, 2))
    window = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
    both = (0, 1)  # with respect to the input and the weight
    check_grads(lambda x, w: conv2d(x, w, **window), both, modes=["rev"], order=3)(x, weight)
    check_grads(lambda x: max_pool2d(x, 3, stride=2, padding=1), modes=["rev"], order=3)(x)
    check_grads(lambda x, w: max_pool2d(np.tanh(conv2d(x, w, **window)), 2), both, modes=["rev"])(x, weight)
    print("convolution and pooling: derivatives up to the third order agree with numerical ones")


def learn_a_filter(rng):
    """Find the filter that turned `images` into `filtered`, by gradient descent; return the largest error."""
    unknown = np.array([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]])  # a Sobel filter
    images = rng.normal(size=(8, 1, 16, 16))
    filtered = conv2d(images, unknown, padding="same")
    slope = gradient_of(lambda weight: np.mean((conv2d(images, weight, padding="same") - filtered) ** 2))
    weight = np.zeros_like(unknown)
    for _ in range(100):
        weight = weight - 0.2 * slope(weight)
    print("learned filter:", *np.round(weight[0, 0], 3) + 0.0, sep="\n")
    return np.max(np.abs(weight - unknown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", nargs="?", choices=("reference", "cpp", "numba"), help="default: the best")
    fc.set_backend(parser.parse_args().backend)
    check(np.random.default_rng(0))
    print(f"largest error of the learned filter: {learn_a_filter(np.random.default_rng(1)):.1e}")
