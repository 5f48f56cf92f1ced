"""The machine: versions, the device's name, and the rate of its matrix products, which utilisation is a share of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import statistics
import time
from typing import Any

import torch

from tests.benchmarks.updates.meter import synchronize

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "deepspeed", "liger-kernel", "grpo-plugin")
_REPEATS = 20


def describe(device: str) -> dict[str, Any]:
    """Versions and the device's name."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "python": platform.python_version(), **{each: _version(each) for each in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def matrix_rate(device: str, size: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of two `size` × `size` matrices of random numbers, the median."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(_REPEATS):
        synchronize()
        began = time.perf_counter()
        for _ in range(5):
            a @ b
        synchronize()
        seconds.append((time.perf_counter() - began) / 5)
    return 2 * size**3 / statistics.median(seconds[_REPEATS // 4 :])
