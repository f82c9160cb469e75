"""`tangency verify`: what it writes, and one line for everything that is wrong."""

import html
import json

import numpy as np
import pytest

from tangency.cli.fit import FitRequest, read_problem
from tangency.cli.verify import _targets
from tests.cli.checks import mixed_table, refused, succeeded

QUICK = ("--model", "mlp:depth=1,activation=erf", "--widths", "16,8", "--seeds", "2", "--steps", "4", "--rows", "9")


@pytest.fixture
def table(folder):
    mixed_table().write_csv(folder / "table.csv")
    return "table.csv"


def test_it_writes_numbers_trajectories_and_a_page(run, folder, table):
    result = succeeded(run("verify", table, "--target", "bought", *QUICK, "--out", "found"))
    assert "At width 16" in result.stdout and "wrote found" in result.stdout
    assert sorted(path.name for path in (folder / "found").iterdir()) == [
        "report.html",
        "verification.json",
        "verification.npz",
    ]
    numbers = json.loads((folder / "found" / "verification.json").read_text())
    assert numbers["widths"] == [8, 16] and numbers["examples"] == 9 and numbers["test_examples"] == 9
    assert np.array(numbers["limit_error"]).shape == (2, 2)
    assert any("9 of 48 training rows" in note for note in numbers["notes"])
    with np.load(folder / "found" / "verification.npz", allow_pickle=False) as arrays:
        assert arrays["network"].shape == (2, 2, 5, 18, 1)
        assert set(np.unique(arrays["y"])) == {-1.0, 1.0}
    page = html.unescape((folder / "found" / "report.html").read_text())
    assert all(sentence in page for sentence in numbers["verdict"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--widths", "64,x"], ["--widths 64,x"]),
        (["--widths", "8,8"], ["--widths 8,8"]),
        (["--widths", "1"], ["width", "from 2"]),
        (["--learning-rate", "0"], ["--learning-rate 0"]),
        (["--learning-rate", "fast"], ["--learning-rate fast"]),
        (["--steps", "0"], ["steps"]),
        (["--seeds", "0"], ["seeds"]),
        (["--rows", "0"], ["rows"]),
        (["--model", "linear"], ["model linear has no width"]),
        (["--model", "mlp:width=8"], ["sets its width"]),
        (["--model", "mpl"], ["unknown model 'mpl'"]),
        (["--model", "own:narrow"], ["needs a keyword 'width'"]),
        (["--target", "price"], ["has no column 'price'"]),
        (["--out", "table.csv"], ["table.csv is a file"]),
    ],
)
def test_refused(run, folder, table, arguments, words):
    (folder / "own.py").write_text("def narrow(key):\n    pass\n")
    given = ["--target", "bought", *arguments] if "--target" not in arguments else arguments
    refused(run("verify", table, *given), *words)
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["own.py", "table.csv"]


def test_a_fitted_model_is_not_overwritten(run, folder, table):
    (folder / "fitted").mkdir()
    (folder / "fitted" / "model.json").write_text('{"format": "tangency model"}')
    refused(run("verify", table, "--target", "bought", "--out", "fitted"), "not written by tangency verify")
    (folder / "verified").mkdir()
    (folder / "verified" / "verification.json").write_text('{"format": "tangency verification"}')
    refused(run("fit", table, "--target", "bought", "--out", "verified"), "not written by tangency fit")


def test_targets(folder, table):
    def targets(data, target, task=None):
        problem = read_problem(FitRequest(data, target, "mlp", 0.2, None, None, task, 0))
        return problem.train.target, _targets(problem.train.target, problem)

    values, y = targets(table, "weight")
    np.testing.assert_allclose(y, (values - values.mean()) / values.std(), rtol=1e-12)
    values, y = targets("iris", None)
    assert y.shape == (120, 3)
    np.testing.assert_allclose(y.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_array_equal(np.unique(values)[y.argmax(axis=1)], values)
