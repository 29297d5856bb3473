"""What a bug report needs to say of an installation."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fastconv import backends, config
from fastconv._version import __version__
from fastconv.errors import BackendUnavailableError


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Versions, processor, threads and backends.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the report, or return it.

    Returns
    -------
    dict or None
        The report where ``mode`` is ``"dicts"``.

    Raises
    ------
    ValueError
        For another mode.
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode must be 'stdout' or 'dicts', got {mode!r}")
    available = backends.available_backends()
    report: dict[str, Any] = {
        "fastconv": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": config.get_num_threads(),
        "backend": _default_backend(),
        "backends": {
            name: backends.load(name).describe() if usable is True else {"unavailable": str(usable)}
            for name, usable in available.items()
        },
    }
    if mode == "dicts":
        return report
    for key, value in report.items():
        if isinstance(value, dict):
            for name, details in value.items():
                print(f"{name + ':':12}" + ", ".join(f"{k}: {v}" for k, v in details.items()))
        else:
            print(f"{key + ':':12}{value}")
    return None


def _default_backend() -> str:
    try:
        return backends.resolve("show_config", None, "numpy")[0]
    except (ValueError, TypeError, BackendUnavailableError) as error:
        return f"none ({error})"
