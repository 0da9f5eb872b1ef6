"""Compile many small kernels in little time."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax

from mapjax._jit import unchecked

_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": min(os.cpu_count() or 1, 32),
}
"""A generation is some seventy kernels of microseconds on a CPU. XLA's older emitter
compiles them in two thirds of the time, and they run about as fast. They are compiled in as
many parts as there are cores: the usual 32 take a tenth longer on two."""


@lru_cache
def quick_jit(function: Any) -> Any:
    """Jit a function so that it compiles quickly on CPUs, once per function."""
    jit: Any = eqx.filter_jit  # its signature does not show the options that it passes on
    options = dict(_QUICK) if supported(_QUICK) else None
    return unchecked(jit(function, compiler_options=options))


def supported(options: Mapping[str, Any]) -> bool:
    """Tell whether this XLA knows some options, by compiling nothing with them."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
