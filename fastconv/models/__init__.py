"""Networks, as functions that build them."""

from fastconv.models.lenet import lenet

__all__ = ["lenet"]
