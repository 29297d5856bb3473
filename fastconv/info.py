"""What a bug report needs to say of an installation."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fastconv import backends, config, memory
from fastconv._version import __version__
from fastconv.errors import BackendUnavailableError


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Versions, processor, threads, backends, and the memory kept for results to come.

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
        "cache": memory.describe(),
        "backends": {
            name: backends.load(name).describe() if usable is True else {"unavailable": str(usable)}
            for name, usable in available.items()
        },
    }
    if mode == "dicts":
        return report
    rows = {**report, **report["backends"]}
    del rows["backends"]
    for name, details in rows.items():
        text = ", ".join(f"{k}: {v}" for k, v in details.items()) if isinstance(details, dict) else details
        print(f"{name + ':':12}{text}")
    return None


def _default_backend() -> str:
    try:
        return backends.resolve("show_config", None, "numpy")[0]
    except (ValueError, TypeError, BackendUnavailableError) as error:
        return f"none ({error})"
