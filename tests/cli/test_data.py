"""Reading tables: what comes out, and the one line that says why nothing does."""

import numpy as np
import polars as pl
import pytest

from tangency.cli.columns import Column, as_numbers, describe_columns, infer_task, inputs, target_name, target_values
from tangency.cli.data import DATA_SETS, read_table
from tangency.errors import InputError, NonFiniteError


def write(folder, text, name="data.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_csv_values_kinds_and_missing_cells(tmp_path):
    table = read_table(write(tmp_path, "a,b,c,y\n1, x ,01,1\nNA,?,02,2\n\n3.5,y,01,1\n"))
    columns = describe_columns(table, "y")
    assert columns == (Column("a", "numeric"), Column("b", "category"), Column("c", "numeric"))
    frame = inputs(table, columns)
    assert frame["a"].to_list() == [1.0, None, 3.5]
    assert frame["b"].to_list() == ["x", None, "y"]


def test_text_codes_keep_their_zeros(tmp_path):
    table = read_table(write(tmp_path, "code,y\n01,1\nA1,2\n02,1\n"))
    frame = inputs(table, describe_columns(table, "y"))
    assert frame["code"].to_list() == ["01", "A1", "02"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_are_recognised(tmp_path, separator):
    table = read_table(write(tmp_path, "a,y\n1,2\n3,4\n".replace(",", separator)))
    assert table.columns == ["a", "y"]


def test_parquet_keeps_its_types(tmp_path):
    path = tmp_path / "data.parquet"
    pl.DataFrame({"a": [1.5, None], "b": ["1", "2"], "c": [True, False], "y": [0, 1]}).write_parquet(path)
    table = read_table(str(path))
    assert [c.kind for c in describe_columns(table, "y")] == ["numeric", "category", "category"]
    assert np.isnan(as_numbers(table, "a")[1])


def test_npz_takes_inputs_and_target_and_says_what_it_left(tmp_path):
    path = tmp_path / "data.npz"
    images = np.arange(24.0).reshape(3, 2, 4)
    np.savez(path, X=images, y=np.array([0, 1, 0]), fold=np.arange(2))
    table = read_table(str(path))
    assert target_name(table, None) == "y"
    np.testing.assert_array_equal(inputs(table, describe_columns(table, "y")).to_numpy(), images.reshape(3, 8))
    assert "fold" in table.notes[0]


def test_npz_of_named_columns(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, width=np.arange(4.0), kind=np.array(["a", "b", "a", "b"]), size=np.arange(4.0) * 2)
    table = read_table(str(path), "size")
    assert describe_columns(table, "size") == (Column("width", "numeric"), Column("kind", "category"))


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_that_ship(name):
    table = read_table(name)
    target = target_name(table, None)
    assert infer_task(table, target) == ("regression" if name == "diabetes" else "classification")
    assert all(column.kind == "numeric" for column in describe_columns(table, target))


def test_a_folder_does_not_hide_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert read_table("iris").frame.height == 150


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"], "classification"),
        (["true", "false"], "classification"),
        ([str(i) for i in range(20)], "classification"),
        ([str(i) for i in range(21)], "regression"),
        (["0.5", "1.5"], "regression"),
        (["1.0", "2.0"], "classification"),
    ],
)
def test_task_is_inferred_from_the_target(tmp_path, values, task):
    table = read_table(write(tmp_path, "a,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values))))
    assert infer_task(table, "y") == task
    assert infer_task(table, "y", "regression") == "regression"


def test_labels_are_integers_where_they_can_be(tmp_path):
    table = read_table(write(tmp_path, "a,y,z\n1,2,u\n2,10,v\n"))
    np.testing.assert_array_equal(target_values(table, "y", "classification"), [2, 10])
    assert target_values(table, "z", "classification").tolist() == ["u", "v"]


MOSTLY = "a,y\n" + "".join(f"{i},{i}\n" for i in range(19)) + "abc,1\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty"]),
        ("a,y\n", ["has no rows"]),
        ("a,a\n1,2\n", ["more than one column is called 'a'"]),
        ("a,y\n1,2,3\n", ["cannot be read as .csv"]),
        ("y\n1\n2\n", ["no column besides the target"]),
        ("a,y\n,1\nNA,2\n", ["column 'a' is empty"]),
        ("a,y\n7,1\n7,2\n", ["column 'a' is constant (always 7)"]),
        (MOSTLY, ["column 'a'", "row 20", "'abc' where a number must be"]),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        describe_columns(read_table(write(tmp_path, text)), "y")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_infinity_is_named_by_row(tmp_path):
    table = read_table(write(tmp_path, "a,y\n1,2\ninf,3\n"))
    with pytest.raises(NonFiniteError, match="column 'a', row 2"):
        inputs(table, describe_columns(table, "y"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_npz_with_a_value_that_is_not_finite(tmp_path, value):
    path, x = tmp_path / "data.npz", np.zeros((3, 2))
    x[2, 1] = value
    np.savez(path, X=x, y=np.arange(3))
    with pytest.raises(NonFiniteError, match=r"array 'X': (nan|inf) at \[2, 1\]"):
        read_table(str(path))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((3, 2)), "y": np.zeros(2)}, "one row an example"),
        ({"X": np.zeros((3, 2), complex), "y": np.zeros(3)}, "neither numbers nor text"),
        ({"X": np.array([{}, {}]), "y": np.zeros(2)}, "Python objects"),
    ],
)
def test_bad_npz(tmp_path, arrays, words):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=words):
        read_table(str(path))


def test_target_that_is_missing_names_the_first_row(tmp_path):
    table = read_table(write(tmp_path, "a,y\n1,2\n2,\n3,\n"))
    with pytest.raises(InputError, match=r"missing in 2 rows \(first: row 2\)"):
        target_values(table, "y", "regression")


def test_unknown_target_suggests(tmp_path):
    table = read_table(write(tmp_path, "price,size\n1,2\n3,4\n"))
    with pytest.raises(InputError, match="no column 'prise'; did you mean 'price'"):
        target_name(table, "prise")
    with pytest.raises(InputError, match="--target; columns are 'price', 'size'"):
        target_name(table, None)
