"""The embedded default, as ``penn demo`` trains it; kept in the package so that it is installed.

penn demo --out demo
"""

from penn_jax.demo import CONFIG as config

__all__ = ["config"]
