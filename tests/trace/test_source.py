"""The user's line behind an equation."""

import contextlib
import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from tangency.trace.source import source_line


class Layer(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x):
        with contextlib.nullcontext():
            return functools.reduce(lambda a, b: a * b, [self.linear(x), x])


def lines(function, *args) -> list[str | None]:
    return [source_line(eqn) for eqn in jax.make_jaxpr(function)(*args).eqns]


def layer() -> Layer:
    return Layer(eqx.nn.Linear(3, 3, key=jax.random.key(0)))


def test_innermost_line_of_the_user_through_libraries():
    line = Layer.__call__.__code__.co_firstlineno + 2
    for found in lines(layer(), jnp.ones(3)):
        assert found is not None and found.endswith(f"test_source.py:{line}")


def test_library_code_alone_has_no_line():
    assert lines(layer().linear, jnp.ones(3)) == [None, None]


def test_path_is_relative_below_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "project" / "package"
    folder.mkdir(parents=True)
    file = folder / "model.py"
    file.write_text("def f(x):\n    return x + 1\n")
    namespace: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    monkeypatch.chdir(tmp_path / "project")
    assert lines(namespace["f"], 1.0) == ["package/model.py:2"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lines(namespace["f"], 1.0) == ["package/model.py:2"]
    monkeypatch.chdir(folder)
    assert lines(namespace["f"], 1.0) == ["model.py:2"]
