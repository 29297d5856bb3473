"""Edges, blur and sharpening of a real picture, as convolutions; saved as one PNG, side by side.

python examples/filters.py [output.png] [--backend reference | cpp | numba]

Needs Pillow and scikit-learn, which holds the picture (china.jpg, by danielbuechele, CC BY 2.0).
"""

import argparse

import numpy as np

import fastconv as fc

try:
    from PIL import Image, ImageDraw, ImageFont
    from sklearn.datasets import load_sample_image
except ImportError as error:
    raise SystemExit(f"{error}; this example needs it: pip install pillow scikit-learn") from error


def blur(image, sigma=3.0):
    """Gaussian blur of an image ``(C, H, W)``: the same weights down, then across, for each channel alone."""
    channels = len(image)
    offsets = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    gaussian = np.exp(-(offsets**2) / (2 * sigma**2)).astype(image.dtype)
    gaussian /= gaussian.sum()
    column = np.broadcast_to(gaussian[:, None], (channels, 1, len(offsets), 1))
    row = np.broadcast_to(gaussian, (channels, 1, 1, len(offsets)))
    blurred = fc.conv2d(image, column, padding="same", groups=channels, padding_mode="reflect")
    return fc.conv2d(blurred, row, padding="same", groups=channels, padding_mode="reflect")


def sharpen(image, amount=1.5):
    """Unsharp masking: add what a slight blur takes away."""
    return image + amount * (image - blur(image, sigma=1.0))


def edges(image):
    """Length of the gradient of the image's brightness, by the two Sobel filters; ``(1, H, W)``."""
    brightness = np.tensordot(np.array([0.299, 0.587, 0.114], image.dtype), image, axes=1)[None]
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], image.dtype)
    sobel = np.stack([across, across.T])[:, None]  # (2, 1, 3, 3): one output channel for each direction
    gradient = fc.conv2d(brightness, sobel, padding="same", padding_mode="replicate")
    return np.hypot(*gradient)[None] / 2


def side_by_side(panels):
    """One picture from images ``(C, H, W)`` of values 0 to 1, two in a row, each under its name."""
    (_, height, width), bar = next(iter(panels.values())).shape, 36
    sheet = Image.new("RGB", (2 * width, -(-len(panels) // 2) * (height + bar)), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (name, image) in enumerate(panels.items()):
        left, top = position % 2 * width, position // 2 * (height + bar)
        pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
        pixels = np.broadcast_to(pixels, (3, height, width)).transpose(1, 2, 0)
        draw.text((left + 10, top + 5), name, "black", ImageFont.load_default(size=22))
        sheet.paste(Image.fromarray(pixels), (left, top + bar))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Filter a picture with fastconv's kernels.")
    parser.add_argument("output", nargs="?", default="filters.png")
    parser.add_argument("--backend", choices=("reference", "cpp", "numba"))
    arguments = parser.parse_args()
    if arguments.backend:
        fc.set_backend(arguments.backend)
    picture = load_sample_image("china.jpg").transpose(2, 0, 1).astype(np.float32) / 255
    filtered = {
        "original": picture,
        "edges (Sobel)": edges(picture),
        "blur (Gaussian, sigma 3)": blur(picture),
        "sharpen (unsharp mask)": sharpen(picture),
    }
    side_by_side(filtered).save(arguments.output)
    print(f"saved {arguments.output}")
