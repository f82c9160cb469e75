"""The NTK of a finite network as an operator: its products against the dense kernel, in float64."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator, cg, eigsh

import tangency as tg
from tangency.empirical import operator as operator_module
from tangency.empirical.model import opened
from tangency.errors import InputError, MemoryLimitError
from tests.empirical.checks import close
from tests.oracles.jacobian import ntk

pytestmark = pytest.mark.usefixtures("double_precision")


def flat(full):
    """`[n, m, o, p]` as a matrix, an example's outputs side by side."""
    n, m, o, p = full.shape
    return full.transpose(0, 2, 1, 3).reshape(n * o, m * p)


def network(p, x):
    return p["v"] @ jnp.tanh(p["w"] @ x + p["b"])


@pytest.fixture
def parameters(rng):
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in (("w", (6, 4)), ("b", (6,)), ("v", (3, 6)))}


@pytest.fixture
def x(rng):
    return rng.normal(size=(7, 4))


@pytest.fixture
def y(rng):
    return rng.normal(size=(5, 4))


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_products_are_traced_once_for_all_operators_of_a_kernel(parameters, x, rng, outputs, monkeypatch):
    traces = []
    original = operator_module.output_vector
    monkeypatch.setattr(operator_module, "output_vector", lambda *a: traces.append(1) or original(*a))
    kernel = tg.empirical(network, parameters, outputs=outputs)
    v = rng.normal(size=(kernel.operator(x).shape[0], 2))
    first = kernel.operator(x) @ v
    count = len(traces)
    assert count
    np.testing.assert_array_equal(kernel.operator(x) @ v, first)
    others = {name: 2 * array for name, array in parameters.items()}
    moved = kernel.at(opened(network, others)).operator(x) @ v
    assert len(traces) == count
    close(moved, tg.empirical(network, others, outputs=outputs).operator(x).to_dense() @ v, 1e-12)


@pytest.mark.parametrize("memory", [None, 6000])
@pytest.mark.parametrize("outputs", ["mean", "full", 1, "functional", "functionals"])
def test_every_contract(parameters, x, y, rng, outputs, memory):
    chosen = {"functional": rng.normal(size=3), "functionals": rng.normal(size=(2, 3))}.get(outputs, outputs)
    rates = {"w": 2.0, "b": rng.uniform(size=6), "v": rng.uniform(size=(3, 6))}
    kernel = tg.empirical(network, parameters, outputs=chosen, learning_rate=rates, memory=memory)
    flat_rates = [rates["b"], rates["v"].ravel(), 2.0]
    dense = ntk(network, parameters, x, y, flat_rates)
    rows = {"mean": None, "full": np.eye(3), 1: np.eye(3)[[1]]}.get(outputs, chosen)
    if rows is None:
        expected = np.einsum("nmoo->nm", dense) / 3
    else:
        rows = np.atleast_2d(rows)
        expected = flat(np.einsum("ao,nmop,bp->nmab", rows, dense, rows))
    operator = kernel.operator(x, y)
    assert operator.shape == expected.shape and operator.dtype == np.float64
    v, u = rng.normal(size=(expected.shape[1], 3)), rng.normal(size=(len(expected), 3))
    close(operator @ v, expected @ v, 1e-12)
    if memory is not None:
        assert any(size < whole for size, whole in zip(sizes(operator, 3), (7, 6), strict=True))
    else:
        close(operator.rmatmat(u), expected.T @ u, 1e-12)
        close(operator.T @ u, expected.T @ u, 1e-12)


def test_complex_vectors(parameters, x, y, rng):
    kernel = tg.empirical(network, parameters)
    v = rng.normal(size=5) + 1j * rng.normal(size=5)
    close(kernel.operator(x, y) @ v, kernel(x, y) @ v, 1e-12)


def sizes(operator, q):
    """Examples and passes at once."""
    matrix = operator._matrix
    found = matrix._sizes(*matrix._passes(matrix._x1), q)
    return found["examples"], found["together"]


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_symmetric_operators(parameters, x, rng, outputs):
    kernel = tg.empirical(network, parameters, outputs=outputs)
    dense = kernel(x)
    dense = flat(dense) if dense.ndim == 4 else dense
    operator, o = kernel.operator(x), len(dense) // 7
    close(operator @ np.eye(len(dense)), dense, 1e-12)
    close(operator.to_dense(), dense, 1e-13)
    close(operator.diagonal(), np.diag(dense), 1e-12)
    assert operator.trace() == pytest.approx(np.trace(dense), rel=1e-12)
    assert operator.T is operator
    picked = dense.reshape(7, o, 7, o)[[4, 1]][:, :, 2:4].reshape(2 * o, 2 * o)
    close(operator.block([4, 1], slice(2, 4)), picked, 1e-12)
    d = rng.uniform(size=7)
    centre = np.kron(np.eye(7) - 1 / 7, np.eye(o))
    weights = np.diag(np.repeat(d, o))
    for found, expected in (
        (operator.centred(), centre @ dense @ centre),
        (operator.weighted(d).centred(), centre @ weights @ dense @ weights @ centre),
        (operator.centred(columns=False), centre @ dense),
    ):
        close(found @ np.eye(len(dense)), expected, 1e-11)
        close(found.to_dense(), expected, 1e-11)
        close(
            found.block([4, 1], slice(2, 4)), expected.reshape(7, o, 7, o)[[4, 1]][:, :, 2:4].reshape(2 * o, -1), 1e-11
        )
        if found.T is found:
            close(found.diagonal(), np.diag(expected), 1e-11)
    estimate = operator.estimate_trace(200)
    assert abs(estimate.value - np.trace(dense)) < 4 * estimate.standard_error


def test_solvers_take_it(parameters, x, rng):
    kernel = tg.empirical(network, parameters, outputs="full")
    dense, operator, b = flat(kernel(x)), kernel.operator(x), rng.normal(size=21)
    expected = np.linalg.solve(dense + np.eye(21), b)
    found, code = cg(operator + aslinearoperator(np.eye(21)), b, rtol=1e-13)
    assert code == 0
    close(found, expected)
    close(eigsh(operator, 2, return_eigenvectors=False), np.linalg.eigvalsh(dense)[-2:])

    def solve(x, b):
        own = kernel.operator(x).as_lineax()
        assert lineax.is_symmetric(own) and lineax.is_positive_semidefinite(own)
        ridge = own + lineax.IdentityLinearOperator(own.in_structure())
        total = lineax.TaggedLinearOperator(ridge, lineax.positive_semidefinite_tag)
        return lineax.linear_solve(total, b, lineax.CG(rtol=1e-13, atol=1e-13)).value

    close(jax.jit(solve)(x, b), expected)
    close(kernel(x[:2], x), kernel(x)[:2])


def test_lineax_of_two_sets_can_be_transposed(parameters, x, y, rng):
    kernel = tg.empirical(network, parameters, memory=20000)
    operator = kernel.operator(x, y).as_lineax()
    u = rng.normal(size=7)
    assert not lineax.is_symmetric(operator)
    close(operator.T.mv(jnp.asarray(u)), kernel(x, y).T @ u)


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_complex_networks_are_hermitian(rng, x, y, outputs):
    p = {k: jnp.asarray(rng.normal(size=s) + 1j * rng.normal(size=s)) for k, s in (("w", (5, 4)), ("v", (2, 5)))}
    kernel = tg.empirical(lambda p, x: p["v"] @ jnp.sin(p["w"] @ x) + p["v"].conj().sum(1), p, outputs=outputs)
    dense, square = kernel(x, y), kernel(x)
    dense, square = (flat(a) if a.ndim == 4 else a for a in (dense, square))
    operator, own = kernel.operator(x, y), kernel.operator(x)
    n, m = dense.shape
    v, u = rng.normal(size=m) + 1j * rng.normal(size=m), rng.normal(size=n) + 1j * rng.normal(size=n)
    assert operator.dtype == np.complex128
    close(operator @ v, dense @ v, 1e-12)
    close(operator.H @ u, dense.conj().T @ u, 1e-12)
    close(operator.T @ u, dense.T @ u, 1e-12)
    close(own.H @ u, square @ u, 1e-12)
    close(own.T @ u, square.T @ u, 1e-12)
    centre = np.kron(np.eye(7) - 1 / 7, np.eye(n // 7))
    close(own.centred().to_dense(), centre @ square @ centre, 1e-11)
    close(own.centred().diagonal(), np.diag(centre @ square @ centre), 1e-11)
    close(own.trace(), np.trace(square).real, 1e-12)
    close(eigsh(own, 2, return_eigenvectors=False), np.linalg.eigvalsh(square)[-2:])
    with pytest.raises(InputError, match="as_lineax: the kernel is complex"):
        own.as_lineax()


def test_precision_follows_the_examples(x, rng):
    with jax.enable_x64(False):
        p = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in (("w", (6, 4)), ("b", (6,)), ("v", (3, 6)))}
        kernel = tg.empirical(network, p)
        operator, single = kernel.operator(x), kernel.operator(x.astype(np.float32))
        close(operator @ np.ones(7), kernel(x).sum(1), 1e-12)
        assert operator.dtype == np.float64 and single.dtype == np.float32
        close(single @ np.ones(7, np.float32), kernel(x).sum(1), 1e-5)
        close(single.as_lineax().mv(jnp.ones(7)), kernel(x).sum(1), 1e-5)


def test_refusals(parameters, x, y):
    with pytest.raises(InputError, match='outputs="diagonal" is one matrix for each output'):
        tg.empirical(network, parameters, outputs="diagonal").operator(x)
    kernel = tg.empirical(network, parameters)
    with pytest.raises(InputError, match="kind: a finite network has an NTK only"):
        kernel.operator(x, kind="nngp")
    with pytest.raises(InputError, match="an example of x1 has shape"):
        kernel.operator(x, y[:, :2])
    with pytest.raises(MemoryLimitError, match="needs .* GiB even for one example at a time"):
        tg.empirical(network, parameters, memory=1000).operator(x) @ np.ones(7)
    with pytest.raises(ValueError, match="(?i)dimension mismatch"):
        kernel.operator(x, y) @ np.ones(7)
