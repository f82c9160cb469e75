"""`tangency fit` and `tangency predict` from one end to the other."""

import io
import json
import re
import zipfile

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import Ridge

from tangency.cli.metrics import METRICS
from tangency.cli.store import load_model
from tests.cli.checks import mixed_table, refused, succeeded

FILES = {"arrays.npz", "metrics.json", "model.json", "predictions.csv", "report.html"}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_classification_of_a_mixed_csv_and_the_round_trip(run, folder):
    mixed_table().write_csv(folder / "shop.csv")
    result = succeeded(run("fit", "shop.csv", "--target", "bought", "--model", "mlp:depth=1"))
    assert "infinite network (NTK)" in result.stdout
    assert "classification of 'bought'" in result.stdout
    gaps = mixed_table()["size"].null_count()
    said = r"missing numbers, replaced by the training mean \(training \+ test rows\): size \((\d+) \+ (\d+)\)\n"
    found = re.search(said, result.stdout)
    assert found is not None and int(found[1]) + int(found[2]) == gaps > 0
    out = folder / "tangency-shop"
    assert {path.name for path in out.iterdir()} == FILES
    assert sorted(path.name for path in folder.iterdir()) == ["shop.csv", "tangency-shop"]

    metrics = metrics_of(out)
    assert (metrics["task"], metrics["n_train"], metrics["n_test"]) == ("classification", 48, 12)
    assert len(metrics["test_metrics"]) == 5
    assert all(set(values) == set(METRICS["classification"]) for values in metrics["test_metrics"].values())

    result = succeeded(run("predict", "tangency-shop", "shop.csv"))
    assert "60 predictions" in result.stdout
    assert "note: 48 of these rows" in result.stdout
    fitted = pl.read_csv(out / "predictions.csv")
    loaded = pl.read_csv(out / "predictions-shop.csv")[(fitted["row"] - 1).to_numpy()]
    assert fitted["prediction"].to_list() == loaded["prediction"].to_list()
    for name in ("score no", "score yes"):
        np.testing.assert_allclose(fitted[name], loaded[name], rtol=0, atol=1e-12)
    accuracy = np.mean(fitted["prediction"].to_numpy() == fitted["true"].to_numpy())
    assert metrics["test_metrics"]["infinite network (NTK)"]["accuracy"] == accuracy


def test_regression_of_parquet_with_a_test_file_and_the_round_trip(run, folder):
    table = mixed_table(80)
    table[:60].write_parquet(folder / "train.parquet")
    table[60:].write_parquet(folder / "held.parquet")
    arguments = ("--target", "weight", "--model", "linear", "--ridge", "0.5", "--time", "30", "--out", "sub/model")
    succeeded(run("fit", "train.parquet", "--test", "held.parquet", *arguments))
    out = folder / "sub" / "model"
    metrics = metrics_of(out)
    assert (metrics["task"], metrics["n_train"], metrics["n_test"]) == ("regression", 60, 20)
    assert (metrics["ridge"], metrics["time"]) == (0.5, 30.0)

    succeeded(run("predict", out, "held.parquet", "--out", "answers.csv"))
    fitted, loaded = pl.read_csv(out / "predictions.csv"), pl.read_csv(folder / "answers.csv")
    assert loaded.columns == ["row", "prediction", "std"]
    np.testing.assert_allclose(fitted["prediction"], loaded["prediction"], rtol=1e-12)
    np.testing.assert_allclose(fitted["std"], loaded["std"], rtol=1e-12)
    assert np.all(fitted["std"].to_numpy() > 0)


def test_the_linear_network_is_ridge_regression(run, folder):
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(40, 3)), rng.normal(size=40)
    y = 50 + 10 * (x @ np.array([1.0, -2.0, 0.5]) + 0.3 * noise)
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}).write_csv(folder / "line.csv")
    succeeded(run("fit", "line.csv", "--target", "y", "--model", "linear:b_std=0", "--ridge", "0.2"))
    found = pl.read_csv(folder / "tangency-line" / "predictions.csv")
    test = found["row"].to_numpy() - 1
    train = np.setdiff1d(np.arange(40), test)
    features = (x - x[train].mean(0)) / x[train].std(0)
    # Θ(x, x') = ⟨x, x'⟩ / 3: a ridge λ on the kernel's diagonal is a penalty 3 λ on the weights.
    expected = Ridge(alpha=0.6).fit(features[train], y[train]).predict(features[test])
    np.testing.assert_allclose(found["prediction"], expected, rtol=1e-9)


def test_npz_and_a_data_set_that_ships(run, folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2, 2))
    np.savez(folder / "points.npz", X=x, y=(x[:, 0, 0] > 0).astype(int))
    succeeded(run("fit", "points.npz", "--model", "linear"))
    assert metrics_of(folder / "tangency-points")["n_features"] == 4
    succeeded(run("fit", "iris", "--model", "linear", "--seed", "3"))
    metrics = metrics_of(folder / "tangency-iris")
    assert (metrics["n_train"], metrics["n_test"], metrics["seed"]) == (120, 30, 3)
    # A linear network separates setosa, two thirds at least of all rows are right; the constant gets one third.
    assert metrics["test_metrics"]["infinite network (NTK)"]["accuracy"] > 0.66


def test_test_rows_have_no_say_in_preprocessing_or_model(run, folder):
    table = mixed_table()
    table.write_csv(folder / "plain.csv")
    arguments = ("--target", "bought", "--model", "linear")
    succeeded(run("fit", "plain.csv", *arguments))
    rows = pl.read_csv(folder / "tangency-plain" / "predictions.csv")["row"].to_numpy() - 1
    is_test = pl.Series(np.isin(np.arange(60), rows))
    table.with_columns(
        weight=pl.when(is_test).then(pl.col("weight") * 1000).otherwise("weight"),
        size=pl.when(is_test).then(None).otherwise("size"),
        colour=pl.when(is_test).then(pl.lit("only in the test part")).otherwise("colour"),
    ).write_csv(folder / "changed.csv")
    succeeded(run("fit", "changed.csv", *arguments))
    before, after = (np.load(folder / f"tangency-{name}" / "arrays.npz") for name in ("plain", "changed"))
    assert set(before.files) == set(after.files)
    for name in before.files:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_outputs_hold_no_pickle(run, folder):
    succeeded(run("fit", "iris", "--model", "linear"))
    out = folder / "tangency-iris"
    assert load_model(out).labels.tolist() == ["setosa", "versicolor", "virginica"]
    with zipfile.ZipFile(out / "arrays.npz") as archive:
        for name in archive.namelist():
            assert not np.load(io.BytesIO(archive.read(name)), allow_pickle=False).dtype.hasobject
    assert all(path.suffix in {".json", ".npz", ".csv", ".html"} for path in out.iterdir())


def test_a_model_of_the_users_own(run, folder):
    (folder / "own_network_of_mine.py").write_text(
        "import equinox as eqx\n"
        "def network(key, in_size): return eqx.nn.Linear(in_size, 1, key=key)\n"
        "def narrow(key): return eqx.nn.Linear(3, 1, key=key)\n"
    )
    spec = "own_network_of_mine:network"
    succeeded(run("fit", "iris", "--model", spec))
    refused(run("predict", "tangency-iris", "iris"), spec, f"add --model {spec}")
    succeeded(run("predict", "tangency-iris", "iris", "--model", spec))
    refused(run("predict", "tangency-iris", "iris", "--model", "os:getcwd"), "was fitted with", spec)
    refused(run("fit", "iris", "--model", "own_network_of_mine:narrow", "--out", "other"), "4")
    assert not (folder / "other").exists()


def test_a_second_fit_replaces_the_first_and_nothing_else(run, folder):
    succeeded(run("fit", "iris", "--model", "linear", "--out", "m"))
    (folder / "m" / "predictions-old.csv").write_text("row\n")
    succeeded(run("fit", "iris", "--model", "linear", "--ridge", "1", "--out", "m"))
    assert {path.name for path in (folder / "m").iterdir()} == FILES
    assert metrics_of(folder / "m")["ridge"] == 1.0
    assert [path.name for path in folder.iterdir()] == ["m"]
    (folder / "m" / "thesis.txt").write_text("mine")
    refused(run("fit", "iris", "--out", "m"), "thesis.txt")
    assert (folder / "m" / "thesis.txt").read_text() == "mine"


def test_predict_refuses_tables_that_do_not_fit(run, folder):
    table = mixed_table()
    table.write_csv(folder / "shop.csv")
    succeeded(run("fit", "shop.csv", "--target", "bought", "--model", "linear", "--out", "m"))
    table.drop("size", "colour").write_csv(folder / "few.csv")
    refused(run("predict", "m", "few.csv"), "few.csv lacks the columns 'size', 'colour'")
    table.with_columns(weight=pl.lit("heavy")).write_csv(folder / "text.csv")
    refused(run("predict", "m", "text.csv"), "column 'weight', row 1", "'heavy' where a number must be")
    refused(run("predict", "m", "absent.csv"), "absent.csv does not exist")
    refused(run("predict", "m", "shop.csv", "--out", "shop.csv"), "is the new data itself")
    assert sorted(path.name for path in folder.iterdir()) == ["few.csv", "m", "shop.csv", "text.csv"]
    assert {path.name for path in (folder / "m").iterdir()} == FILES
    table.drop("bought").reverse().select(sorted(table.columns[:-1])).write_csv(folder / "new.csv")
    succeeded(run("predict", "m", "new.csv"))
    ours, theirs = (pl.read_csv(folder / "m" / "predictions-new.csv"), pl.read_csv(folder / "m" / "predictions.csv"))
    last = theirs[-1, "row"]
    assert ours[60 - last, "score yes"] == pytest.approx(theirs[-1, "score yes"], abs=1e-12)
