"""A contender in a process of its own, for what has to be in the environment when a process starts.

Its turns are taken there, by its own clock; only requests and answers cross the pipe, between turns. Requests are
tuples ``(what, arguments)``; operands are not sent, since both sides draw the same ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np

from fastconv.bench.contender import Array, BenchError, NotOffered, operands
from fastconv.bench.peers import PEERS, set_up
from fastconv.bench.timing import Local, Method
from fastconv.bench.workloads import Layer

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from fastconv.bench.process import serve; serve(int(sys.argv[1]))"
)


class Process:
    """The process of one of `PEERS`, until it is closed."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
            env={**os.environ, **PEERS[name].environment},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the one who asks, and that ends this
        )
        theirs.close()
        self._ask("start", name, threads)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, layer: Layer, direction: str, batch: int, dtype: str) -> Array:
        """Get ready for a row; returns the result, to be checked. Raises `NotOffered`."""
        shape, kind, data = self._ask("prepare", layer, direction, batch, dtype)
        return np.frombuffer(data, kind).reshape(shape)

    def turn(self, method: Method) -> list[float]:
        return cast("list[float]", self._ask("turn", method))

    def close(self) -> None:
        """Ends the process: it leaves when it has no more to read."""
        self._pipe.close()
        self._process.wait()

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((what, arguments))
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            status = self._process.wait()
            raise BenchError(f"{self._name}: its process has ended with exit status {status}") from error
        if isinstance(answer, NotOffered):
            raise answer
        return answer


def serve(descriptor: int) -> None:
    """The other side: answers until nobody asks any more."""
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _, (name, threads) = pipe.recv()
        peer = PEERS[name]
        prepared: Local | None = None
        with set_up([peer], threads):
            pipe.send(None)
            while True:
                what, arguments = pipe.recv()
                if what == "turn":
                    assert prepared is not None
                    pipe.send(prepared.turn(*arguments))
                    continue
                prepared = None  # its operands go before others come
                layer, direction, batch, dtype = arguments
                try:
                    prepared = Local(peer.prepare(layer, direction, operands(layer, batch, dtype)))
                except NotOffered as reason:
                    pipe.send(reason)
                    continue
                result = np.ascontiguousarray(prepared.call())
                pipe.send((result.shape, result.dtype.str, result.tobytes()))
