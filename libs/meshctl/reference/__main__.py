"""`python -m meshctl.reference` writes the reference pages and the dashboards, `--check` says which have drifted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from contracts.generation import files
from meshctl.reference import dashboards, mesh_toml_page, settings_page

REPOSITORY: Final = Path(__file__).resolve().parents[3]
SETTINGS: Final = "docs/reference/settings.md"
MESH_TOML: Final = "docs/reference/mesh-toml.md"


def render() -> dict[str, str]:
    """Every page and dashboard: its path from the repository's root, and its text."""
    return {SETTINGS: settings_page.render(), MESH_TOML: mesh_toml_page.render(), **dashboards.render()}


def existing(root: Path) -> dict[str, str]:
    """The pages as they are below `root`. Other pages may lie beside them."""
    boards = (root / dashboards.FOLDER).glob("*.json")
    return files.read(root, [*(root / path for path in (SETTINGS, MESH_TOML) if (root / path).exists()), *boards])


def main(arguments: list[str] | None = None, root: Path = REPOSITORY) -> int:
    """Run the command; returns its exit status."""
    return files.run("meshctl.reference", render, existing, arguments, root)


if __name__ == "__main__":
    sys.exit(main())
