"""ONNX's own backend node tests for its convolution and pooling operators, on every CPU backend.

The cases and their expected results come from the `onnx` package (``load_model_tests(kind="node")`` computes
them in process; nothing is downloaded), the comparison is that of ONNX's own test runner.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_adapter
import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

# How many node tests use each operator in onnx 1.23. A later release may add some, none may get lost.
EXPECTED_CASES = {
    "AveragePool": 20,
    "Col2Im": 5,
    "Conv": 19,
    "ConvInteger": 2,
    "ConvTranspose": 11,
    "GlobalAveragePool": 2,
    "GlobalMaxPool": 2,
    "LpPool": 8,
    "MaxPool": 19,
    "MaxUnpool": 2,
}

# Operators of the same family for which ONNX has no node test: there is nothing to adapt.
WITHOUT_CASES = ("GlobalLpPool",)


def collect_cases() -> dict[str, list[TestCase]]:
    """Return ONNX's node tests by the operator that they use, whatever else is in their graphs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data of unrelated operators overflow on purpose
        every_case = load_model_tests(kind="node")
    cases: dict[str, list[TestCase]] = {operator: [] for operator in (*EXPECTED_CASES, *WITHOUT_CASES)}
    for case in every_case:
        for operator in {node.op_type for node in case.model.graph.node} & cases.keys():
            cases[operator].append(case)
    return cases


CASES = collect_cases()


def test_no_case_is_dropped() -> None:
    assert set(EXPECTED_CASES) == set(onnx_adapter.OPERATORS)
    for operator, count in EXPECTED_CASES.items():
        names = {case.name for case in CASES[operator]}
        assert len(names) == len(CASES[operator]), f"{operator}: two node tests share a name"
        assert len(names) >= count, (
            f"{operator}: {len(names)} node tests in onnx {onnx.__version__}, not {count}"
        )
    for operator in WITHOUT_CASES:
        assert not CASES[operator], f"onnx now tests {operator}: it needs a place in the adapter"


@pytest.mark.parametrize(
    ("operator", "case"),
    [pytest.param(name, case, id=f"{name}-{case.name}") for name, cases in CASES.items() for case in cases],
)
def test_node(operator: str, case: TestCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = onnx_adapter.OPERATORS[operator]._run

    def spy(self, *args, **kwargs):
        calls.append(operator)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(onnx_adapter.OPERATORS[operator], "_run", spy)
    assert case.data_sets, "a node test without data proves nothing"
    for inputs, expected in case.data_sets:
        outputs = onnx_adapter.run_model(case.model, [np.asarray(array) for array in inputs], backend)
        Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)
    assert calls, f"{operator} was not computed by fastconv"
