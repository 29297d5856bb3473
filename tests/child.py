"""Runs a function in a forked child, so that a crash, a hang or a huge allocation ends only that, named."""

import ctypes
import faulthandler
import gc
import json
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import SANITIZED

SECONDS = 20
ADDRESS_SPACE = 6 << 30  # bytes beyond what the parent has mapped
M_PERTURB = -6  # mallopt: fill what malloc gives and free takes
POISON = 0x01  # its complement fills new memory: huge negative numbers in every type

Enter = Callable[[str], None]


class Died(Exception):
    """A child ended without an answer; the message says how, and where it was."""


def in_child(action: Callable[[Enter], Any], seconds: int = SECONDS) -> Any:
    """What ``action(enter)`` returns in a child, as JSON passes it on.

    ``enter(name)`` says what is about to happen. Raises `Died` where the child crashes, hangs or raises.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads: that is tested, too
        child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(action, writing, seconds)
    os.close(writing)
    with os.fdopen(reading) as report:
        lines = [json.loads(line) for line in report]
    _, status = os.waitpid(child, 0)
    kind, answer = lines[-1] if lines else ("at", "its beginning")
    if kind == "returned":
        return answer
    if kind == "raised":
        raise Died(answer)
    code = os.waitstatus_to_exitcode(status)
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    raise Died(f"{f'hung for {seconds} s' if how == 'SIGALRM' else how} at {answer}")


def _be_the_child(action: Callable[[Enter], Any], writing: int, seconds: int) -> None:
    """Never returns: whatever happens, the test runner does not go on in this process."""

    def say(kind: str, what: Any) -> None:
        os.write(writing, (json.dumps([kind, what]) + "\n").encode())

    try:
        faulthandler.disable()
        gc.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        _limit_memory()
        say("returned", action(lambda name: say("at", name)))
    except BaseException:  # noqa: BLE001 - reported, whatever it is
        say("raised", traceback.format_exc())
    finally:
        os._exit(0)


def _limit_memory() -> None:
    if SANITIZED:  # AddressSanitizer maps terabytes and has its own allocator
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_PERTURB, POISON)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere, sizes that no address space holds fail all the same
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, hard))
