"""The code of earlier releases, from this repository's history: their processes run beside those of this version.

A release runs with the packages that are installed here. 0.1.0 has the same requirements.lock.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import warnings
from pathlib import Path

from tests.support import children
from tests.support.toolchains import REPOSITORY, miss

COMMITS = {"0.1.0": "81302a6ad5739d9376c98e99feb7abc1fa8d96b4"}
"""Version to the last commit that was it."""
_FOLDER = REPOSITORY / "build" / "releases"


def release(version: str) -> dict[str, str]:
    """The variables with which `python -m <service>` is that of a release. Skips, aloud, where the history is not.

    Where no loop runs.
    """
    folder = _FOLDER / version
    if not folder.is_dir():
        _unpack(version, folder)
    return {"PYTHONPATH": os.pathsep.join(str(folder / name) for name in ("libs", "services"))}


def _unpack(version: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        packed, whole = Path(temporary) / "release.tar", Path(temporary) / "release"
        command = ["git", "-C", str(REPOSITORY), "archive", "--output", str(packed), COMMITS[version]]
        try:
            ended = children.run_blocking([*command, "libs", "services"])
            said = ended.stderr.strip() if ended.returncode else ""
        except OSError as error:
            said = str(error)
        if said:
            _miss(
                f"release {version} is not in this history (a shallow clone?), so no upgrade from it is tried: {said}"
            )
        with tarfile.open(packed) as archive:
            archive.extractall(whole, filter="data")
        try:
            # Whole or not at all: several processes of tests may do this at once.
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _miss(said: str) -> None:
    warnings.warn(said, stacklevel=4)
    miss(said)
