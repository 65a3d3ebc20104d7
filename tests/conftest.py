"""The strict world in which every test runs.

Four CPU devices, no accelerator, no network, no caches of the user; strict promotion of
dtypes, no implicit rank promotion, a PRNG key may not be used twice; types of public
functions are checked at run time (jaxtyping and beartype) while tests run, and only
then. Warnings are errors (`pyproject.toml`).
"""

import os
import pathlib
import sys
import tempfile
import types

# Before JAX is imported. TRUSTML_TEST_PLATFORM=cuda runs the tests on a GPU.
os.environ["JAX_PLATFORMS"] = os.environ.get("TRUSTML_TEST_PLATFORM", "cpu")
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in _FLAGS:
    _FLAGS = f"{_FLAGS} --xla_force_host_platform_device_count=4".strip()
os.environ["XLA_FLAGS"] = _FLAGS
os.environ["MPLBACKEND"] = "Agg"
_CACHE = tempfile.TemporaryDirectory(prefix="trustml-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.pop("TRUSTML_CACHE", None)
# Workers of one run share what they compile; nothing outlives the run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="trustml-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name

import beartype  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# beartype with "an int will do where a float is asked for", under a name that the
# import hook can find.
_CHECKER = types.ModuleType("trustml_test_typechecker")
_CHECKER.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
sys.modules[_CHECKER.__name__] = _CHECKER
jaxtyping.install_import_hook("trustml", f"{_CHECKER.__name__}.check")

# Timing never decides a test.
hypothesis.settings.register_profile("trustml", deadline=None)
hypothesis.settings.load_profile("trustml")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items):
    """Skips tests of the real data sets where $TRUSTML_DATA does not hold them."""
    where = os.environ.get("TRUSTML_DATA", "")
    if where and pathlib.Path(where).is_dir():
        return
    skip = pytest.mark.skip(reason="set TRUSTML_DATA to the directory of the data sets")
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(skip)


@pytest.fixture
def data_dir():
    """The directory of the real data sets; use it in tests marked `data`."""
    return pathlib.Path(os.environ["TRUSTML_DATA"])
