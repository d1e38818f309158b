"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: the first call of a compiled function compiles it.
settings.register_profile("hisob", deadline=None)
settings.load_profile("hisob")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that is too large to keep here: beside the repository, or where HISOB_SHARED_DATA says."""
    folder = Path(os.environ.get("HISOB_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}: set HISOB_SHARED_DATA to the folder that holds it")
    return folder
