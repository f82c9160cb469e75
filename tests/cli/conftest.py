"""A command runner in a folder of its own."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tangency.cli import app


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder):
    """Run `tangency` with these arguments in the test's own folder."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke
