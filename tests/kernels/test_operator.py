"""Kernel matrices as linear operators, through tiles: infinite-width kernels and plain functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, aslinearoperator, cg, eigsh

import tangency as tg
from tangency.errors import InputError, NonFiniteError
from tangency.kernels import tiles


def close(found, expected, tolerance=1e-12):
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def exponential(x1, x2):
    return jnp.exp(x1 @ x2.T / 4) * (1 + x1.sum(1, keepdims=True) * x2.sum(1, keepdims=True).T)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr("tangency.kernels.tile_matrix.TILE", 4)
    monkeypatch.setattr("tangency.kernels.base.TILE", 4)
    assert tiles.TILE > 4


@pytest.fixture
def x(rng):
    return rng.normal(size=(11, 3))


@pytest.fixture
def y(rng):
    return rng.normal(size=(6, 3))


@pytest.fixture
def kernel():
    return tg.FunctionKernel(exponential)


@pytest.fixture(scope="module")
def limit():
    return tg.limit(lambda key: eqx.nn.MLP(3, 1, 16, 2, activation=jax.nn.relu, key=key))


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_products_of_the_limit_kernel(limit, x, y, rng, kind):
    whole, cross = limit.evaluate(kind, x), limit.evaluate(kind, x, y)
    operator, other = limit.operator(x, kind=kind), limit.operator(x, y, kind=kind)
    assert isinstance(operator, LinearOperator) and operator.shape == (11, 11) and operator.dtype == np.float64
    v, w, u = rng.normal(size=11), rng.normal(size=(11, 3)), rng.normal(size=6)
    close(operator @ v, whole @ v)
    close(operator @ w, whole @ w)
    close(operator.T @ v, whole @ v)
    close(other @ u, cross @ u)
    close(other @ u[:, None], (cross @ u)[:, None])
    close(other.rmatvec(v), cross.T @ v)
    close(other.T @ w, cross.T @ w)
    close((w.T @ other), w.T @ cross)
    close(operator.diagonal(), np.diag(whole))
    assert operator.trace() == pytest.approx(np.trace(whole), rel=1e-13)
    close(operator.to_dense(), whole)


def test_float32_examples_give_a_float32_operator(limit, x):
    single = x.astype(np.float32)
    operator = limit.operator(single)
    assert operator.dtype == np.float32
    found = operator @ np.ones(11, np.float32)
    assert found.dtype == np.float32
    close(found, limit(x).sum(1), 1e-5)
    close(limit.operator(jnp.asarray(single)) @ np.ones(11, np.float32), found, 1e-6)


def test_blocks_and_tiles(kernel, x, y):
    dense = kernel(x, y)
    operator = kernel.operator(x, y)
    close(operator.block(slice(2, 5), [4, 0]), dense[2:5][:, [4, 0]])
    close(operator.block(-1, slice(None, None, 2)), dense[-1:, ::2])
    found = np.full((11, 6), np.nan)
    count = 0
    for rows, columns, tile in operator.tiles(4):
        found[rows, columns] = tile
        count += 1
    close(found, dense)
    assert count == 6


def test_no_product_computes_more_than_a_tile(x, rng):
    seen = []

    def counted(x1, x2):
        seen.append((len(x1), len(x2)))
        return exponential(x1, x2)

    operator = tg.FunctionKernel(counted).operator(x)
    operator @ rng.normal(size=(11, 2))
    assert max(max(pair) for pair in seen) == 4
    assert len(seen) == 6


@pytest.mark.parametrize("other", [False, True])
def test_centring_and_weights(kernel, x, y, rng, other):
    second = y if other else None
    dense = np.asarray(kernel(x, second))
    n, m = dense.shape
    d, e = rng.uniform(size=n), rng.uniform(size=m)
    left, right = np.eye(n) - 1 / n, np.eye(m) - 1 / m
    operator = kernel.operator(x, second)
    weights = (d, e) if other else (d,)
    weighted = np.diag(d) @ dense @ np.diag(e if other else d)
    cases = [
        (operator.centred(), left @ dense @ right),
        (operator.centred(columns=False), left @ dense),
        (operator.centred(rows=False), dense @ right),
        (operator.centred(False, False), dense),
        (operator.weighted(*weights), weighted),
        (operator.weighted(d, e), np.diag(d) @ dense @ np.diag(e)),
        (operator.weighted(*weights).centred(), left @ weighted @ right),
        (operator.centred().weighted(d, e), np.diag(d) @ left @ dense @ right @ np.diag(e)),
    ]
    for found, expected in cases:
        close(found @ np.eye(m), expected, 1e-11)
        close(found.T @ np.eye(n), expected.T, 1e-11)
        close(found.to_dense(), expected, 1e-11)
        close(found.block([3, 1], slice(1, 5)), expected[[3, 1], 1:5], 1e-11)
    if not other:
        for k in (0, 3, 4, 6):
            close(cases[k][0].diagonal(), np.diag(cases[k][1]), 1e-11)
            assert cases[k][0].T is cases[k][0]
        with pytest.raises(InputError, match="trace: needs an operator of one set"):
            cases[5][0].trace()


def test_hutchinson_and_its_error(kernel, x):
    operator = kernel.operator(x)
    exact = operator.trace()
    found = operator.estimate_trace(probes=400, seed=3)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found == operator.estimate_trace(probes=400, seed=3)
    assert found != operator.estimate_trace(probes=400, seed=4)
    scores = np.array(
        [(e.value - exact) / e.standard_error for e in (operator.estimate_trace(64, seed) for seed in range(100))]
    )
    # The variance of a hundred Student scores lies within these bounds but for one time in ten thousand.
    assert abs(scores.mean()) < 0.4
    assert 0.5 < scores.var() < 1.7
    assert operator.centred().estimate_trace(400).value == pytest.approx(operator.centred().trace(), rel=0.2)


def test_scipy_solvers_take_it(limit, x, rng):
    dense, operator = limit(x), limit.operator(x)
    b = rng.normal(size=11)
    ridge = operator + 0.1 * aslinearoperator(np.eye(11))
    found, code = cg(ridge, b, rtol=1e-13)
    assert code == 0
    close(found, np.linalg.solve(dense + 0.1 * np.eye(11), b), 1e-10)
    close(eigsh(operator, 3, return_eigenvectors=False), np.linalg.eigvalsh(dense)[-3:], 1e-10)


def solved(operator, b, ridge):
    identity = lineax.IdentityLinearOperator(operator.in_structure())
    total = lineax.TaggedLinearOperator(operator + ridge * identity, lineax.positive_semidefinite_tag)
    return lineax.linear_solve(total, b, lineax.CG(rtol=1e-13, atol=1e-13)).value


def test_lineax_under_jit(limit, x, y, rng):
    with jax.enable_x64(True):
        b, u = rng.normal(size=11), rng.normal(size=6)
        operator = limit.operator(x).as_lineax()
        assert lineax.is_symmetric(operator) and lineax.is_positive_semidefinite(operator)
        expected = np.linalg.solve(limit(x) + 0.1 * np.eye(11), b)
        close(jax.jit(lambda b: solved(operator, b, 0.1))(b), expected, 1e-10)
        close(jax.jit(lambda x, b: solved(limit.operator(x).as_lineax(), b, 0.1))(x, b), expected, 1e-10)
        cross = limit.operator(x, y).centred().as_lineax()
        assert not lineax.is_symmetric(cross)
        centred = limit.operator(x, y).centred().to_dense()
        close(jax.jit(lambda u: cross.mv(u))(u), centred @ u, 1e-11)
        close(cross.T.mv(b), centred.T @ b, 1e-11)
        weighted = limit.operator(x).weighted(b).as_lineax()
        close(weighted.mv(b), limit.operator(x).weighted(b) @ b, 1e-11)


def test_lineax_follows_the_precision_of_jax(limit, x):
    operator = limit.operator(x).as_lineax()
    assert operator.in_structure().dtype == np.float32
    close(operator.mv(jnp.ones(11, jnp.float32)), limit(x).sum(1), 1e-5)


def test_refusals(kernel, limit, x, y):
    operator = kernel.operator(x)
    with pytest.raises(InputError, match='kind: expected "nngp" or "ntk" for an operator, got \'both\''):
        kernel.operator(x, kind="both")
    with pytest.raises(InputError, match="an example of x1 has shape"):
        kernel.operator(x, y[:, :2])
    with pytest.raises(InputError, match="x1: expected examples"):
        kernel.operator(x[:0])
    with pytest.raises(InputError, match="column_weights: x1 and x2 are not the same"):
        kernel.operator(x, y).weighted(np.ones(11))
    with pytest.raises(InputError, match="weights: expected 11 real numbers"):
        operator.weighted(np.ones(3))
    with pytest.raises(NonFiniteError, match=r"weights\[0\] is not finite"):
        operator.weighted(np.full(11, np.nan))
    with pytest.raises(InputError, match="rows: there are 11 examples"):
        operator.block([11], [0])
    with pytest.raises(InputError, match="columns: expected a slice"):
        operator.block([1], [0.5])
    with pytest.raises(InputError, match="probes: expected a whole number"):
        operator.estimate_trace(1)
    with pytest.raises(InputError, match="size: expected a whole number"):
        list(operator.tiles(0))
    with pytest.raises(NonFiniteError, match="the vector is not finite in row 2"):
        operator @ np.where(np.arange(11) == 2, np.inf, 1.0)
    with pytest.raises(NonFiniteError, match="the kernel's product is not finite at example 0"):
        tg.FunctionKernel(lambda a, b: np.full((len(a), len(b)), np.nan)).operator(x) @ np.ones(11)
    with pytest.raises(InputError, match="as_lineax: the kernel's function is not made of JAX"):
        tg.FunctionKernel(lambda a, b: np.exp(np.asarray(a) @ np.asarray(b).T)).operator(x).as_lineax()
    with pytest.raises(InputError, match="an operator on tracers has no values"):
        jax.jit(lambda x: kernel.operator(x) @ np.ones(11))(x)
    pooled = tg.limit(lambda key: eqx.nn.Conv1d(3, 4, 1, key=key))
    with pytest.raises(InputError, match="an operator needs one value for each pair"):
        pooled.operator(np.ones((2, 3, 5))) @ np.ones(2)
