"""Train a convolutional network on handwritten digits in plain NumPy, with only the kernels from fastconv.

python examples/from_scratch.py [reference | cpp | numba] [--epochs N]

1@8x8 -> convolution 16@3x3 -> ReLU -> max pooling 2 -> flatten -> linear 10, by stochastic gradient descent
with momentum. Needs scikit-learn, which holds the digits.
"""

import argparse

import numpy as np

import fastconv as fc

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise SystemExit(
        f"{error}; this example takes its digits from there: pip install scikit-learn"
    ) from error

parser = argparse.ArgumentParser(description="Train on handwritten digits with fastconv's kernels.")
parser.add_argument("backend", nargs="?", choices=("reference", "cpp", "numba"), help="who computes")
parser.add_argument("--epochs", type=int, default=10)
arguments = parser.parse_args()
if arguments.backend:
    fc.set_backend(arguments.backend)

digits = load_digits()
images, labels = digits.images[:, None].astype(np.float32) / 16, digits.target  # (1797, 1, 8, 8), 0 to 1
rng = np.random.default_rng(0)
train, test = np.split(rng.permutation(len(images)), [1437])

conv_weight = rng.normal(0, np.sqrt(2 / 9), (16, 1, 3, 3)).astype(np.float32)
conv_bias = np.zeros(16, np.float32)
weight = rng.normal(0, np.sqrt(1 / 256), (256, 10)).astype(np.float32)
bias = np.zeros(10, np.float32)
parameters = conv_weight, conv_bias, weight, bias
velocities = [np.zeros_like(parameter) for parameter in parameters]


def forward(x):
    """The logits of a batch of images, and what the way back needs."""
    convolved = fc.conv2d(x, conv_weight, conv_bias, padding=1)  # (N, 16, 8, 8)
    pooled, indices = fc.max_pool2d(np.maximum(convolved, 0), 2, return_indices=True)  # (N, 16, 4, 4)
    features = pooled.reshape(len(x), -1)  # (N, 256)
    return features @ weight + bias, convolved, indices, features


def backward(x, grad_logits, convolved, indices, features):
    """The gradients of the parameters."""
    grad_pooled = (grad_logits @ weight.T).reshape(indices.shape)
    grad_convolved = fc.max_pool2d_backward(grad_pooled, indices, convolved.shape) * (convolved > 0)
    mask = (False, True, True)  # nobody asks for the gradient of the images
    _, *of_conv = fc.conv2d_backward(grad_convolved, x, conv_weight, padding=1, output_mask=mask)
    return *of_conv, features.T @ grad_logits, grad_logits.sum(axis=0)


for epoch in range(1, arguments.epochs + 1):
    losses = []
    for batch in np.array_split(rng.permutation(train), 45):
        logits, *cache = forward(images[batch])
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        right = np.arange(len(batch)), labels[batch]
        losses.append(-np.log(p[right]).mean())
        p[right] -= 1  # now the gradient of the cross-entropies with respect to the logits
        gradients = backward(images[batch], p / len(batch), *cache)
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity *= 0.9
            velocity += gradient
            parameter -= 0.05 * velocity
    accuracy = np.mean(forward(images[test])[0].argmax(axis=1) == labels[test])
    print(f"epoch {epoch:2}   loss {np.mean(losses):.4f}   accuracy on held-out digits {accuracy:.2%}")
