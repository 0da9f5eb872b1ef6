"""Runs before `mapjax` is imported: type checks on, four CPU devices, no GPU.

Most of the time goes into compiling what runs once: four options compile it quicker, and
what one process compiled is there for the others.
"""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of LAPACK wait for each other where as many processes as cores use them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=1",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="mapjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("mapjax", "beartype.beartype")

hypothesis.settings.register_profile(
    "mapjax", derandomize=True, deadline=None, max_examples=100, database=None
)
hypothesis.settings.load_profile("mapjax")


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Forget the programs of a file after it: thousands of them take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Double precision for the length of one test."""
    with jax.enable_x64(True):
        yield
