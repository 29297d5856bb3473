"""Every hostile input, each in a child of its own, on every CPU backend: as specified, in the same words."""

import re
import traceback
from typing import Any

import numpy as np
import pytest
from child import Died, Enter, in_child
from conftest import EMULATOR, SANITIZED, TARGETS, Target, chosen
from corpus import CASES, NAMES, Case

import fastconv

REFERENCE = Target("reference")
TESTED = [REFERENCE, *(target for target in TARGETS if target != REFERENCE)]
# Who refuses is no kernel; and messages that list the backends know those of every process only.
ONE_ISA = list({target.backend: target for target in TESTED if target.backend != EMULATOR}.values())
ADDRESS = re.compile(r"0x[0-9a-f]+")


def is_legal(case: Case) -> bool:
    return case.expected.startswith("=")


def parameters() -> list[Any]:
    """Legal cases reach kernels; the sanitizers watch those."""
    return [
        pytest.param(case, id=case.expression[:120], marks=[pytest.mark.smoke] * is_legal(case))
        for case in CASES
    ]


@pytest.fixture(scope="module", autouse=True)
def compiled_here() -> None:
    """Children inherit what Numba compiles for the tame calls, instead of loading it hundreds of times."""
    if "numba" in {target.backend for target in TESTED}:
        with fastconv.use_backend("numba"):
            for case in CASES:
                if case.expected.startswith("= "):
                    evaluate(case.expected.removeprefix("="))


def test_corpus():
    assert len(CASES) >= 300
    assert len(CASES) == len({case.expression for case in CASES})


@pytest.mark.parametrize("case", parameters())
def test_hostile(case: Case):
    if SANITIZED and case.expected.startswith("MemoryError"):
        pytest.skip("AddressSanitizer ends a process where malloc would fail")
    try:
        outcomes = in_child(lambda enter: run(case, enter))
    except Died as death:
        pytest.fail(f"{case.expression}\n    {case.expected}\n{death}")
    told = "\n".join([case.expression, f"    {case.expected}", *map(": ".join, outcomes.items())])
    pattern = "" if is_legal(case) else ".*".join(re.escape(part) for part in case.expected.split("..."))
    for outcome in outcomes.values():
        words = outcome.partition("\nTraceback")[0]
        assert re.fullmatch(pattern, words, re.DOTALL), told
    assert is_legal(case) or len({o.partition("\nTraceback")[0] for o in outcomes.values()}) == 1, told


def run(case: Case, enter: Enter) -> dict[str, str]:
    """What comes of the case on each backend: class and words of an error, or how a result is wrong."""
    outcomes = {}
    expected = None
    for target in TESTED if is_legal(case) else ONE_ISA:
        enter(str(target))
        try:
            with chosen(target), fastconv.use_backend(target.backend):
                result = evaluate(case.expression)
            if is_legal(case) and expected is None:
                with fastconv.use_backend("reference"):
                    expected = evaluate(case.expected.removeprefix("=") or case.expression)
        except Exception as error:  # noqa: BLE001 - compared with what is expected
            words = ADDRESS.sub("0x", f"{documented_class(error)}: {error}")
            outcomes[str(target)] = f"{words}\n{traceback.format_exc()}"
        else:
            outcomes[str(target)] = (
                difference(result, expected) if is_legal(case) else f"returned {result!r:.200}"
            )
    return outcomes


def evaluate(expression: str) -> Any:
    return eval(expression.strip(), dict(NAMES))


def documented_class(error: Exception) -> str:
    """NumPy's MemoryError is a class of its own, which users catch as MemoryError."""
    return "MemoryError" if isinstance(error, MemoryError) else type(error).__name__


def difference(result: Any, expected: Any) -> str:
    """How they differ in number, shape, dtype or value."""
    if isinstance(expected, tuple):
        if not isinstance(result, tuple) or len(result) != len(expected):
            return f"{result!r:.200} instead of {len(expected)} results"
        return "".join(difference(r, e) for r, e in zip(result, expected, strict=True))
    if expected is None or result is None:
        return "" if expected is result else f"{result!r:.200} instead of {expected!r:.200}"
    if (result.shape, result.dtype) != (expected.shape, expected.dtype):
        return f"{result.dtype}{result.shape} instead of {expected.dtype}{expected.shape}"
    if not np.allclose(result.astype(float), expected.astype(float), rtol=1e-5, atol=0, equal_nan=True):
        return f"{result!r:.500} instead of {expected!r:.500}"
    return ""
