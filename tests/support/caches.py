"""A cache folder of a test's own, in which nothing is compiled again that the run has compiled."""

from pathlib import Path

import pytest

from igc_nas.nn.c_compiler import kernels_here, networks_here


def own_cache(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the cache: without times, with the compiled code of the run's cache."""
    folder.mkdir(mode=0o700, parents=True)
    for code in (networks_here(), kernels_here()):
        code.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / code.name).symlink_to(code)
    patch.setenv("IGC_NAS_CACHE", str(folder))
    return folder
