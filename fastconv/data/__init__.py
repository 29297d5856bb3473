"""Data sets, loaders and augmentation: arrays in, batches of plain NumPy arrays out."""

from fastconv.data.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomShift, Transform
from fastconv.data.dataset import ArrayDataset
from fastconv.data.digits import digits, resize_bilinear
from fastconv.data.idx import DataError, read_idx, write_idx
from fastconv.data.loader import DataLoader
from fastconv.data.mnist import FASHION_MNIST_CLASSES, fashion_mnist, mnist

__all__ = [
    "FASHION_MNIST_CLASSES",
    "ArrayDataset",
    "Compose",
    "DataError",
    "DataLoader",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomShift",
    "Transform",
    "digits",
    "fashion_mnist",
    "mnist",
    "read_idx",
    "resize_bilinear",
    "write_idx",
]
