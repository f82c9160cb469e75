"""Every bad input: one line on standard error, exit code 2, no traceback, nothing written."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from tests.cli.checks import mixed_table, refused, succeeded

NUMBERS = "a,b,y\n" + "".join(f"{i},{(i * 7) % 10},{i % 2}\n" for i in range(20))
WIDE = ",".join(f"c{i}" for i in range(30)) + "\n" + (",".join("0" * 30) + "\n") * 9
ONE_CLASS = "a,y\n" + "".join(f"{i},yes\n" for i in range(20))
CONSTANT_TARGET = "a,y\n" + "".join(f"{i},2.5\n" for i in range(20))
CONSTANT_COLUMN = "a,b,y\n" + "".join(f"{i},3,{i % 2}\n" for i in range(20))
EMPTY_COLUMN = "a,b,y\n" + "".join(f"{i},,{i % 2}\n" for i in range(20))
TEXT_IN_NUMBERS = "a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(19)) + "ten,1\n"
TEXT_TARGET = "a,y\n" + "".join(f"{i},{'uv'[i % 2]}\n" for i in range(20))
CONTRADICTION = "a,y\n" + "".join(f"{i // 2},{i}.5\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (NUMBERS, ["--target", "z"], ["has no column 'z'", "known are a, b, y"]),
        (WIDE, ["--target", "z"], ["has no column 'z'", "c3 and 6 more"]),
        (NUMBERS, [], ["name the target with --target", "'a', 'b', 'y'"]),
        (ONE_CLASS, ["--target", "y"], ["target 'y'", "one class only ('yes')"]),
        (CONSTANT_TARGET, ["--target", "y", "--task", "regression"], ["target 'y'", "a constant (2.5)"]),
        (CONSTANT_COLUMN, ["--target", "y"], ["column 'b' is constant (always 3)"]),
        (EMPTY_COLUMN, ["--target", "y"], ["column 'b' is empty"]),
        (TEXT_IN_NUMBERS, ["--target", "y"], ["column 'a', row 20", "'ten'"]),
        (TEXT_TARGET, ["--target", "y", "--task", "regression"], ["column 'y', row 1", "'u' where a number must be"]),
        (
            CONTRADICTION,
            ["--target", "y", "--ridge", "0"],
            ["equal inputs but different targets", "singular", "--ridge"],
        ),
        (NUMBERS, ["--target", "y", "--model", "mpl"], ["unknown model 'mpl'", "did you mean 'mlp'"]),
        (NUMBERS, ["--target", "y", "--model", "mlp:dept=2"], ["no option 'dept'", "did you mean 'depth'"]),
        (NUMBERS, ["--target", "y", "--model", "mlp:activation=rely"], ["unknown activation 'rely'"]),
        (NUMBERS, ["--target", "y", "--model", "nowhere_at_all:f"], ["cannot import 'nowhere_at_all'"]),
        (NUMBERS, ["--target", "y", "--ridge", "-1"], ["--ridge -1"]),
        (NUMBERS, ["--target", "y", "--ridge", "much"], ["--ridge much"]),
        (NUMBERS, ["--target", "y", "--time", "0"], ["--time 0"]),
        (NUMBERS, ["--target", "y", "--time", "nan"], ["--time nan"]),
        (NUMBERS, ["--target", "y", "--test", "1.5"], ["--test 1.5"]),
        (NUMBERS, ["--target", "y", "--test", "absent.csv"], ["absent.csv does not exist"]),
        (NUMBERS, ["--target", "y", "--task", "clustering"], ["clustering"]),
        (NUMBERS, ["--target", "y", "--seed", "-3"], ["seed"]),
        (NUMBERS, ["--target", "y", "--no-such-option"], ["--no-such-option"]),
        (NUMBERS, ["--target", "y", "--out", "data.csv"], ["data.csv is a file"]),
        (NUMBERS, ["--target", "y", "--out", "data.csv/sub"], ["data.csv is a file"]),
    ],
)
def test_refused_csv(run, folder, text, arguments, words):
    (folder / "data.csv").write_text(text)
    if "--model" not in arguments:
        arguments = [*arguments, "--model", "linear"]
    refused(run("fit", "data.csv", *arguments), *words)
    assert [path.name for path in folder.iterdir()] == ["data.csv"]


def test_the_smallest_ridge_that_is_named_works(run, folder):
    (folder / "data.csv").write_text(CONTRADICTION)
    arguments = ("fit", "data.csv", "--target", "y", "--model", "linear")
    message = run(*arguments, "--ridge", "0").stderr
    ridge = message.split("use --ridge ")[1].split()[0]
    succeeded(run(*arguments, "--ridge", ridge))


@pytest.mark.parametrize("data", ["absent.csv", "noend", "image.png", "."])
def test_files_that_cannot_be_data(run, folder, data):
    (folder / "noend").write_text("a,b\n1,2\n")
    (folder / "image.png").write_bytes(b"\x89PNG")
    refused(run("fit", data, "--target", "y"), data)
    assert not (folder / "tangency-absent").exists()


@pytest.mark.parametrize("name", ["broken.parquet", "broken.npz"])
def test_damaged_files(run, folder, name):
    (folder / name).write_bytes(b"PK\x03\x04 nothing of the kind")
    refused(run("fit", name, "--target", "y"), name)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_npz_that_is_not_finite(run, folder, value):
    x = np.random.default_rng(0).normal(size=(10, 2))
    x[4, 1] = value
    np.savez(folder / "data.npz", X=x, y=np.arange(10) % 2)
    refused(run("fit", "data.npz"), "array 'X'", "[4, 1]")


def test_more_rows_than_memory_allows(run, folder):
    n = 400_000
    pl.DataFrame({"a": np.arange(n) % 977, "y": np.arange(n) % 2}).write_csv(folder / "big.csv")
    refused(run("fit", "big.csv", "--target", "y", "--model", "linear"), "GiB", "rows")
    assert not (folder / "tangency-big").exists()


def test_a_folder_of_someone_else_is_left_alone(run, folder):
    (folder / "papers").mkdir()
    (folder / "papers" / "draft.txt").write_text("mine")
    refused(run("fit", "iris", "--out", "papers"), "not written by tangency")
    assert (folder / "papers" / "draft.txt").read_text() == "mine"


def test_a_test_file_without_the_target(run, folder):
    mixed_table().write_csv(folder / "train.csv")
    mixed_table().drop("bought").write_csv(folder / "test.csv")
    refused(run("fit", "train.csv", "--target", "bought", "--test", "test.csv"), "test.csv has no column 'bought'")


def test_predict_without_a_model(run, folder):
    refused(run("predict", "nowhere", "iris"), "nowhere does not exist")
    (folder / "empty").mkdir()
    refused(run("predict", "empty", "iris"), "not a folder that tangency fit wrote")


def test_explain_refuses_a_shape(run):
    refused(run("explain", "mlp", "--input-shape", "0"), "--input-shape 0")


def test_the_console_script_and_its_help_are_light(tmp_path):
    """In a process of its own: usage errors are one line, and help needs no numerical library of its own."""
    program = (
        "import sys, tangency; before = set(sys.modules)\n"
        "from tangency.cli import main\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'jax', 'sklearn', 'polars', 'matplotlib', 'scipy'}, new\n"
        "main()\n"
    )

    def script(*arguments):
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    helped = script("--help")
    assert helped.returncode == 0, helped.stderr
    assert all(command in helped.stdout for command in ("fit", "predict", "explain"))
    wrong = script("fitt")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.splitlines()) == 1


def test_no_command_shows_the_help(run):
    assert "explain" in succeeded(run()).stdout


def test_version(run):
    assert succeeded(run("--version")).stdout.startswith("tangency ")


def test_explain_prints_the_graph_and_the_recursion(run):
    text = succeeded(run("explain", "linear", "--input-shape", "7")).stdout
    assert "readout.weight" in text
    assert "Θ(x, x′)" in text
    assert "\\Theta" in succeeded(run("explain", "linear", "--input-shape", "7", "--latex")).stdout
