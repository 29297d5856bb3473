"""`DataLoader`: batches in a reproducible order, with exact resume in the middle of an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastconv.data.augment import Transform
from fastconv.nn._arrays import Rng, as_generator

Batch = tuple[NDArray[Any], NDArray[Any]]


class Dataset(Protocol):
    """What a loader needs: a length, and a batch for an array of indices."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def __getitem__(self, index: Any) -> Batch:
        """Inputs and targets of the samples at ``index``."""
        ...


class DataLoader:
    """Iterates over a data set in batches; each iteration is one epoch.

    An epoch draws one key from ``rng``; its order and the random numbers of each batch derive from the key
    and the batch's number. So neither the prefetching thread nor the place where an iteration broke off
    changes what a batch holds, and `state_dict` resumes exactly, also in the middle of an epoch.

    Parameters
    ----------
    dataset : ArrayDataset or alike
        ``len(dataset)``, and ``dataset[indices]`` giving ``(inputs, targets)``.
    batch_size : int
    shuffle : bool
        A new order each epoch.
    drop_last : bool
        Leave out a last batch that is not full.
    transform : callable ``(inputs, rng) -> inputs``, optional
        Applied to each batch's inputs: augmentation, normalisation.
    rng : numpy.random.Generator, int or None
        Of order and transform; a new one from the operating system's entropy by default.
    prefetch : int
        Batches that a thread of its own prepares ahead; 0 prepares each when asked for it.

    Raises
    ------
    ValueError
        ``batch_size`` below 1 or ``prefetch`` below 0, or a negative seed.
    TypeError
        ``rng`` is neither a generator nor a seed.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.data import ArrayDataset, DataLoader
    >>> loader = DataLoader(ArrayDataset(np.zeros((5, 1, 8, 8)), np.arange(5)), batch_size=2)
    >>> [labels.tolist() for _, labels in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 64,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        rng: Rng = None,
        prefetch: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be at least 1, got {batch_size}")
        if prefetch < 0:
            raise ValueError(f"DataLoader: prefetch must be at least 0, got {prefetch}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.rng = as_generator("DataLoader", rng)
        self.prefetch = prefetch
        self._key: list[int] | None = None  # of the epoch under way
        self._position = 0  # batches of it that were handed out
        self._resume = False  # whether the next iteration goes on with it

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or not rest else full + 1

    def __iter__(self) -> Iterator[Batch]:
        if not self._resume:
            self._key, self._position = [int(word) for word in self.rng.integers(0, 1 << 63, 2)], 0
        self._resume = False
        assert self._key is not None
        batches = self._batches(self._key, self._position)
        return self._counted(_ahead(batches, self.prefetch) if self.prefetch else batches)

    def _batches(self, key: list[int], start: int) -> Generator[Batch]:
        n = len(self.dataset)
        order = np.random.default_rng([*key, 0]).permutation(n) if self.shuffle else np.arange(n)
        for k in range(start, len(self)):
            inputs, targets = self.dataset[order[k * self.batch_size : (k + 1) * self.batch_size]]
            if self.transform is not None:
                inputs = self.transform(inputs, np.random.default_rng([*key, 1 + k]))
            yield inputs, targets

    def _counted(self, batches: Generator[Batch]) -> Iterator[Batch]:
        key = self._key
        try:
            for batch in batches:
                self._position += 1
                yield batch
        finally:  # at the end, or when the consumer breaks off
            batches.close()
            if self._key is key:  # no later iteration has begun
                self._key, self._position = None, 0

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs: the generator's state, and key and position of an epoch under way."""
        return {
            "rng": self.rng.bit_generator.state,
            "key": self._key,
            "position": self._position,
            "batches": len(self),
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Makes the next iteration go on where `state_dict` was taken.

        Raises
        ------
        ValueError
            The state is of a loader with another batch size, number of batches or kind of generator.
        """
        for name, value in (("batch_size", self.batch_size), ("batches", len(self))):
            if state[name] != value:
                raise ValueError(f"DataLoader: the state has {name} {state[name]}, this loader has {value}")
        load_generator(self.rng, state["rng"])
        self._key, self._position = state["key"], state["position"]
        self._resume = self._key is not None


def load_generator(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Puts a ``bit_generator.state`` into ``rng``; `ValueError` if it is of another kind of generator."""
    kind = type(rng.bit_generator).__name__
    if state["bit_generator"] != kind:
        raise ValueError(f"the state is of a {state['bit_generator']} generator, expected {kind}")
    rng.bit_generator.state = state


def _ahead(batches: Iterator[Batch], n: int) -> Generator[Batch]:
    """``batches``, up to ``n`` of them prepared ahead by a thread; its exceptions arrive here."""
    pool = ThreadPoolExecutor(1, "fastconv-prefetch")
    try:
        pending = deque(pool.submit(next, batches, None) for _ in range(n))
        while (batch := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, batches, None))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
