"""Model folders: what is written is what is read, whole or not at all, and never code."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest

from tangency.cli import store
from tangency.cli.columns import Column
from tangency.cli.model import FittedModel
from tangency.cli.preprocessing import Preprocessing
from tangency.errors import InputError

COLUMNS = (Column("a", "numeric"), Column("c", "category"))
FRAME = pl.DataFrame({"a": [1.0, None, 3.0], "c": ["x", None, "y"]})


@pytest.fixture
def model():
    preprocessing = Preprocessing.fit(FRAME, COLUMNS)
    x = preprocessing(FRAME)
    return FittedModel(
        spec="linear",
        task="classification",
        target="y",
        columns=COLUMNS,
        preprocessing=preprocessing,
        ridge=0.1,
        time=None,
        inputs=x,
        targets=np.eye(3) - 1 / 3,
        coefficients=np.arange(9.0).reshape(3, 3) / 7,
        probe=x @ x.T,
        labels=np.array(["no", "yes", "żółw"]),
    )


@pytest.fixture
def saved(model, tmp_path):
    store.write_folder(tmp_path / "m", store.model_files(model))
    return tmp_path / "m"


def test_every_field_survives(model, saved):
    loaded = store.load_model(saved)
    for name in ("spec", "task", "target", "columns", "ridge", "time", "centre", "scale"):
        assert getattr(loaded, name) == getattr(model, name), name
    for name in ("inputs", "targets", "coefficients", "probe", "labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
    np.testing.assert_array_equal(loaded.preprocessing(FRAME), model.preprocessing(FRAME))
    assert loaded.preprocessing.feature_names == model.preprocessing.feature_names


def test_a_pickle_in_the_arrays_is_never_loaded(saved):
    class Bomb:
        def __reduce__(self):
            return (open, (str(saved / "ran"), "w"))

    np.savez(saved / "arrays.npz", inputs=np.array([Bomb()], dtype=object))
    content = (saved / "arrays.npz").read_bytes()
    description = json.loads((saved / "model.json").read_text())
    description["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    (saved / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="is damaged"):
        store.load_model(saved)
    assert not (saved / "ran").exists()


def test_changed_arrays_are_refused(saved):
    content = bytearray((saved / "arrays.npz").read_bytes())
    content[-40] ^= 1
    (saved / "arrays.npz").write_bytes(bytes(content))
    with pytest.raises(InputError, match="is not the file that was written"):
        store.load_model(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"format": "something"}, "not a folder that tangency fit wrote"),
        ({"columns": [{"name": "a"}]}, "is damaged"),
        ({"preprocessing": {}}, "is damaged"),
    ],
)
def test_bad_descriptions(saved, change, words):
    description = json.loads((saved / "model.json").read_text()) | change
    (saved / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=words):
        store.load_model(saved)


def test_a_kernel_that_changed_since_the_fit_is_refused(saved):
    with pytest.raises(InputError, match="no longer gives the kernel"):
        store.load_model(saved).kernel()


def test_a_write_that_fails_leaves_the_old_folder_and_nothing_else(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(self, target):
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return original(self, target)

    original = store.Path.rename
    monkeypatch.setattr(store.Path, "rename", full)
    with pytest.raises(InputError, match="No space left on device"):
        store.write_folder(saved, {"model.json": b"{}"})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["m"]


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "m").mkdir()
    store.write_folder(tmp_path / "m", {"model.json": b"{}"})
    assert (tmp_path / "m" / "model.json").read_bytes() == b"{}"
