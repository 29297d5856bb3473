from collections.abc import Sequence
from typing import Any, type_check_only

import numpy as np
from numpy.typing import NDArray

from fastconv.geometry import ConvGeometry, PoolGeometry

_Array = NDArray[Any]

def conv_forward(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: int,
    y: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def conv_grad_input(
    grad_y: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: int,
    grad_x: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def conv_grad_weight(
    x: _Array,
    grad_y: _Array,
    grad_weight: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def narrow_conv_forward(
    type: str,
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: int,
    y: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def narrow_conv_grad_input(
    type: str,
    grad_y: _Array,
    weight: _Array,
    bias: _Array | None,
    activation: int,
    grad_x: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def narrow_conv_grad_weight(
    type: str,
    x: _Array,
    grad_y: _Array,
    grad_weight: _Array,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> None: ...
def max_pool(x: _Array, y: _Array, indices: _Array | None, geometry: PoolGeometry, threads: int) -> None: ...
def max_pool_grad_input(grad_y: _Array, indices: _Array, grad_x: _Array, threads: int) -> int: ...
def avg_pool(x: _Array, y: _Array, geometry: PoolGeometry, threads: int) -> None: ...
def avg_pool_grad_input(grad_y: _Array, grad_x: _Array, geometry: PoolGeometry, threads: int) -> None: ...

@type_check_only
class ConvPlan:
    def run(self, source: _Array, result: _Array, threads: int) -> None: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def bytes(self) -> int: ...

def conv_plan(
    kernel: str,
    weight: _Array,
    bias: _Array | None,
    activation: int,
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> ConvPlan: ...
def explain_conv(
    kernel: str,
    dtype: np.dtype[Any],
    geometry: ConvGeometry,
    algorithm: int,
    threads: int,
    workspace_limit: int | None,
) -> tuple[str, dict[str, tuple[float, float, float, int, bool]]]: ...
def algorithms() -> tuple[str, ...]: ...
def fma_peak(dtype: str, threads: int) -> float: ...
def empty(shape: Sequence[int], dtype: np.dtype[Any]) -> _Array: ...
def set_cache_limit(bytes: int) -> None: ...
def cache_limit() -> int: ...
def cached_bytes() -> int: ...
def workspace_bytes() -> int: ...
def clear_cache() -> int: ...
def set_poison(poison: bool) -> None: ...
def available_isas() -> tuple[str, ...]: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
def use_openmp(use: bool) -> bool: ...
def parallel_description() -> str: ...
def compiler() -> str: ...
