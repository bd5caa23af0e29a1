"""Digests by which a fleet can be held together: of the code, and of the configuration."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.build import BUILD_VARIABLE, digest_of
from mesh.configuration.digest import ALIKE, configuration_digest
from mesh.configuration.mesh_toml import load_configuration
from mesh.configuration.settings import Address, Settings
from tests.support import children

FILES = [("a.py", b"1"), ("b.py", b"2")]


def settings_of(folder: Path, text: str, name: str = "mesh.toml") -> Settings:
    file = folder / name
    file.write_text(text)
    return Settings(configuration=load_configuration(file))


@pytest.mark.parametrize(
    "other",
    [
        [("a.py", b"1")],
        [("a.py", b"1"), ("b.py", b"3")],
        [("a.py", b"1"), ("c.py", b"2")],
        [("a.py", b"1b.py"), ("b.py", b"2")],
    ],
)
def test_other_code_is_another_build(other: list[tuple[str, bytes]]) -> None:
    assert digest_of(FILES) == digest_of(reversed(FILES))
    assert digest_of(other) != digest_of(FILES)


@pytest.mark.processes
@pytest.mark.parametrize(("given", "build"), [("", None), (" v1\n ", "v1"), ("x" * 100, "x" * 64), ("\n", None)])
def test_a_build_may_be_named(given: str, build: str | None) -> None:
    environment = {**os.environ, BUILD_VARIABLE: given}
    program = "from contracts.build import BUILD; print(BUILD)"
    told = children.run_blocking([sys.executable, "-c", program], environment)
    unnamed = children.run_blocking([sys.executable, "-c", program], {**environment, BUILD_VARIABLE: ""})
    assert told.stdout.strip() == (build or unnamed.stdout.strip())
    assert len(unnamed.stdout.strip()) == 12


def test_the_same_configuration_in_another_order_and_file_has_the_same_digest(tmp_path: Path) -> None:
    one = settings_of(tmp_path, "[pools.default]\n[pools.b]\nmodel = 'x'\n", "one.toml")
    other = settings_of(tmp_path, "[pools.b]\nmodel = 'x'\n[pools.default]\n", "other.toml")
    assert configuration_digest(one) == configuration_digest(other)
    elsewhere = replace(one, home=tmp_path, ingress_address=Address("127.0.0.1", 1), workers=3, log_level="debug")
    assert configuration_digest(one) == configuration_digest(elsewhere)


def test_another_model_or_another_lease_has_another(tmp_path: Path) -> None:
    one = settings_of(tmp_path, "[pools.default]\nmodel = 'x'\n")
    other = settings_of(tmp_path, "[pools.default]\nmodel = 'y'\n")
    digests = {configuration_digest(one), configuration_digest(other)}
    digests |= {configuration_digest(replace(one, **{name: getattr(one, name) + 1})) for name in ALIKE}
    assert len(digests) == 2 + len(ALIKE)
