"""The rules: metering, the bill, forecasts, notices and supply decisions as pure functions, compiled over columns.

Nothing in this package reads a clock, draws a random number, or does input or output; time comes only from the
records. Each rule is written once, for one reading or one account, as plain Python that Numba compiles.
(`NUMBA_DISABLE_JIT=1` runs the same code uncompiled.)

One thing has to happen before Numba is imported, and so it happens here: Numba's cache does not notice an edit in a
*called* file and would go on charging the old price. The cache therefore lies in a folder named by the hash of this
package's own source.
"""

import hashlib as _hashlib
import os as _os
import tempfile as _tempfile
from pathlib import Path as _Path


def _cache_folder() -> str:
    """A writable folder for compiled code, one for each state of the source."""
    source = _hashlib.sha256()
    for file in sorted(_Path(__file__).parent.glob("*.py")):
        source.update(file.name.encode() + b"\0" + file.read_bytes())
    name = f"numba-{source.hexdigest()[:16]}"
    for base in (_os.environ.get("XDG_CACHE_HOME"), _Path.home() / ".cache", _tempfile.gettempdir()):
        folder = _Path(base) / "hisob" / name if base else None
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                if _os.access(folder, _os.W_OK):
                    return str(folder)
        except OSError:
            continue
    return str(_Path(_tempfile.mkdtemp()) / name)


_os.environ.setdefault("NUMBA_CACHE_DIR", _cache_folder())
