"""A process that settles starts without what its libraries look for and it never uses.

pyarrow looks for pandas when it makes its first array, Numba for SciPy's BLAS when it loads its first function: a sixth of a
second each, where going on with a million accounts takes a second and a half. While they look, the two are not to be found.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

UNUSED = ("pandas", "scipy")


class _NotToBeFound(MetaPathFinder):
    """Says of the unused that there are none."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002  its signature
        """Raise ModuleNotFoundError for one of them; leave all others to the finders after this one."""
        if name in UNUSED:
            raise ModuleNotFoundError(name)


def start_lean() -> None:
    """Let both look now, in vain. Not for a process that uses pandas through pyarrow later: it looks only once."""
    finder = _NotToBeFound()
    sys.meta_path.insert(0, finder)
    try:
        import_module("pyarrow").array([0])
        import_module("numba.np.arraymath")
    finally:
        sys.meta_path.remove(finder)
