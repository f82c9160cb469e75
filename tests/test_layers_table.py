"""The table of layers in the docs: complete, and true of the layers that are quick to run."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table_of_layers", DOCS / "layers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DOCS / "layers.md").read_text().splitlines():
        if line.startswith("| `"):
            name, verdict = line.strip("| ").split("` | ", 1)
            found.setdefault(name.strip("`"), []).append(verdict)
    return found


def test_every_public_layer_is_in_the_table(table: ModuleType) -> None:
    assert table.unlisted() == []
    equinox, flax = table.public_layers()
    assert equinox | flax <= rows().keys()


def test_nothing_in_the_table_is_wrong_or_fails_in_the_model() -> None:
    verdicts = [verdict for row in rows().values() for verdict in row]
    assert not [v for v in verdicts if "wrong" in v or "could not be" in v]


@pytest.mark.parametrize("name", ["Conv2d", "LayerNorm", "PReLU"])
def test_equinox_rows_are_true(table: ModuleType, name: str) -> None:
    assert table.outcome(table.equinox_examples()[name], False) in rows()[name]


@pytest.mark.parametrize("name", ["Linear", "Embed", "max_pool"])
def test_flax_rows_are_true(table: ModuleType, name: str) -> None:
    assert table.outcome(table.flax_examples()[name], True) in rows()[name]
