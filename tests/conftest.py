"""Four fake CPU devices, strict promotion, and shapes of every signature checked at run time."""

import os
from importlib.resources import files

# Before jax is imported anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    # Programs are small and many here: most of the time is the compiler's. The benchmarks and the
    # commands of the README compile as users do.
    + " --xla_backend_optimization_level=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

_CHECKED = ("data", "model", "optim", "predict", "report")
install_import_hook([f"penn_jax.{part}" for part in _CHECKED], "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")

# Shared machines stall: a deadline would fail on time, not on behaviour.
settings.register_profile("penn", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("penn")


@pytest.fixture(scope="session", autouse=True)
def _compile_cache(tmp_path_factory: pytest.TempPathFactory):
    """Programs that several tests compile alike are compiled once."""
    folder = tmp_path_factory.mktemp("xla")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="session")
def serious_faults():
    """What axe-core finds on a page in a browser that keeps somebody from using it."""
    pytest.importorskip("axe_playwright_python", reason="the extra browser is missing")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")

    def find(page):
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
        return [(fault["id"], fault["nodes"][0]["html"]) for fault in serious]

    return find
