"""How rules are compiled. Two things that Numba does by default cost more than the rules themselves, and are turned off here.

`rule` inlines a function into its caller: passed by value, the arrays of a `Book` and a `Ledger` are some seventy
words a call. `untracked` takes an array out of reference counting for as long as a compiled loop runs (its caller
holds it anyway): two atomic operations each time a row is touched. Together 150 ns a reading become 30.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, njit
from numba.core import cgutils
from numba.extending import intrinsic


def row_type(fields: list[tuple[str, str]]) -> np.dtype[Any]:
    """A type of rows whose fields can be had as attributes, compiled or not.

    Rows are np.record in a plain array: Numba takes twice as long to look at the arguments of a call where they are recarrays.
    """
    return np.dtype((np.record, fields))


compiled = njit(cache=True)
loop = njit(cache=True, nogil=True)  # over many rows: meanwhile another thread may go on
rule = njit(cache=True, inline="always")

if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set when Numba reads the environment

    def untracked(array: Any) -> Any:
        """The array itself: nothing is counted where nothing is compiled."""
        return array

else:

    @intrinsic
    def untracked(_typing: Any, array: Any) -> Any:
        """The same array, without its reference count. Use it only while the caller holds the array."""

        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, value=values[0])
            view.meminfo = cgutils.get_null_value(view.meminfo.type)  # type: ignore[no-untyped-call]  # Numba has no types
            return view._getvalue()  # noqa: SLF001  Numba's own way to a finished struct

        return array(array), build
