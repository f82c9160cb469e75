import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.metrics.pairwise import rbf_kernel

from tangency.errors import InputError, MemoryLimitError, NonFiniteError
from tangency.gram import available_memory, factorisation_bytes, gram, gram_rows, matrix, require_factorisation
from tangency.kernels.base import Kernel
from tangency.kernels.function import FunctionKernel
from tests.oracles.flow import FeatureKernel

KERNEL = FeatureKernel(features=7, inputs=3)


def examples(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3))


class Stub(Kernel):
    """Returns what it is told to."""

    def __init__(self, result, kinds=("nngp", "ntk", "both")):
        self.result, self.kinds = result, kinds

    def evaluate(self, kind, x1, x2=None, *, progress=None):
        self.seen = (kind, x1, x2)
        return self.result

    def diagonal(self, kind, x):
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["nngp", "ntk", "both"])
def test_values_are_the_kernels(kind):
    x1, x2 = examples(4), examples(5, seed=1)
    np.testing.assert_array_equal(gram(KERNEL, x1, x2, kind=kind), KERNEL.evaluate(kind, x1, x2))
    symmetric = gram(KERNEL, x1, kind=kind)
    np.testing.assert_array_equal(symmetric, np.swapaxes(symmetric, -1, -2))


def test_none_is_passed_on_and_never_guessed():
    stub, x = Stub(np.eye(2)), np.ones((2, 3))
    gram(stub, x)
    assert stub.seen[2] is None
    gram(stub, x, x)
    assert stub.seen[2] is not None


@pytest.mark.parametrize(
    "x", [[[1, 2, 3]], np.ones((1, 3), dtype=np.uint8), jnp.ones((1, 3), dtype=jnp.bfloat16), [[True, False, True]]]
)
def test_inputs_are_cast_to_float64(x):
    stub = Stub(np.ones((1, 1), dtype=np.float32))
    assert gram(stub, x).dtype == np.float64
    assert stub.seen[1].dtype == np.float64


def test_examples_may_have_any_shape():
    stub = Stub(np.ones((2, 2)))
    gram(stub, np.ones((2, 8, 8, 3)))
    gram(stub, np.ones(2))


@pytest.mark.parametrize(
    ("x1", "x2", "error", "message"),
    [
        (np.ones((0, 3)), None, InputError, r"x1 is empty: its shape is \(0, 3\)"),
        (np.ones((3, 0)), None, InputError, "x1 is empty"),
        (1.0, None, InputError, "x1 is a single number"),
        ([["a", "b"]], None, InputError, "x1 has dtype"),
        ([[1.0], [1.0, 2.0]], None, InputError, "x1 is ragged"),
        (np.ones((2, 3)) * 1j, None, InputError, "x1 has dtype complex"),
        (np.ones((2, 3)), np.ones((2, 4)), InputError, r"\(3,\) but one of x2 has \(4,\)"),
        ([[1.0], [np.inf], [np.nan]], None, NonFiniteError, "x1 is not finite: row 1 has inf"),
        (np.ones((2, 1)), [[1.0], [2.0], [np.nan]], NonFiniteError, "x2 is not finite: row 2 has NaN"),
    ],
)
def test_bad_inputs(x1, x2, error, message):
    with pytest.raises(error, match=message) as caught:
        gram(KERNEL, x1, x2)
    assert "\n" not in str(caught.value)


def test_bad_kinds():
    with pytest.raises(InputError, match="kind is 'theta'"):
        gram(KERNEL, examples(2), kind="theta")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no 'nngp' kernel; it has ntk"):
        gram(Stub(np.eye(2), kinds=("ntk",)), examples(2), kind="nngp")


def test_non_finite_results_name_the_pair():
    result = np.ones((3, 4))
    result[1, 2], result[2, 0] = np.nan, np.inf
    with pytest.raises(NonFiniteError, match=r"NTK of x1\[1\] and x2\[2\] is nan"):
        gram(Stub(result), examples(3), examples(4))
    with pytest.raises(NonFiniteError, match=r"NTK of x1\[1\] and x2\[2\]"):
        gram(Stub(np.stack([np.ones((3, 4)), result])), examples(3), examples(4), kind="both")
    with pytest.raises(NonFiniteError, match="NNGP of"):
        gram(Stub(np.stack([result, np.ones((3, 4))])), examples(3), examples(4), kind="both")


def test_results_of_another_shape_are_refused():
    with pytest.raises(InputError, match="one value per pair"):
        gram(Stub(np.ones((2, 2, 5, 5))), examples(2))


def test_progress_is_handed_to_the_kernel():
    calls = []
    gram(KERNEL, examples(2), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]


def test_memory_limit_says_what_is_needed_and_what_would_fit():
    x = examples(1000)
    with pytest.raises(MemoryLimitError, match=r"1000 × 1000 .* 0.00745 GiB .* about 353 rows would fit"):
        gram(KERNEL, x, memory=10**6)
    with pytest.raises(MemoryLimitError, match="about 1250 rows would fit"):
        gram(KERNEL, examples(2000), examples(100), memory=10**6)
    with pytest.raises(MemoryLimitError, match="about 250 rows"):
        gram(KERNEL, x, kind="both", memory=10**6)
    gram(KERNEL, examples(353), memory=10**6)
    with pytest.raises(InputError, match="memory is 0"):
        gram(KERNEL, x, memory=0)


def test_the_default_limit_is_the_machine():
    available = available_memory()
    assert available is not None and 0 < available < 2**50
    views = np.broadcast_to(0.0, (10_000_000, 1))
    with pytest.raises(MemoryLimitError, match="10000000 × 10000000"):
        gram(KERNEL, views)


def test_factorisation_counts_kernels_vectors_and_workspace():
    assert factorisation_bytes(100) == 4 * 8 * 100**2
    assert factorisation_bytes(100, 2) == 5 * 8 * 100**2
    require_factorisation(100, 1, factorisation_bytes(100))
    with pytest.raises(MemoryLimitError, match="101 rows .* about 100 rows would fit"):
        require_factorisation(101, 1, factorisation_bytes(100))


def test_rows_come_in_blocks_with_their_own_numbers(monkeypatch):
    monkeypatch.setattr(matrix, "ENTRIES_AT_ONCE", 20)
    x, x_train = examples(7), examples(5, seed=1)
    blocks = list(gram_rows(KERNEL, x, x_train, "both"))
    assert [rows for rows, _ in blocks] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    joined = np.concatenate([block for _, block in blocks], axis=1)
    np.testing.assert_allclose(joined, KERNEL.evaluate("both", x, x_train), rtol=1e-14)

    def undefined_at_one(x1, x2):
        return np.where(x1[:, :1] == 1.0, np.nan, 1.0) * np.ones((len(x1), len(x2)))

    x[5, 0] = 1.0
    with pytest.raises(NonFiniteError, match=r"x\[5\] and training x\[0\]"):
        list(gram_rows(FunctionKernel(undefined_at_one), x, x_train, "ntk"))


@pytest.mark.parametrize("k", [rbf_kernel, ConstantKernel(2.0) * RBF(0.7)])
def test_function_kernels_of_scikit_learn(k):
    kernel, x1, x2 = FunctionKernel(k), examples(130), examples(4, seed=1)
    np.testing.assert_array_equal(kernel(x1, x2), k(x1, x2))
    np.testing.assert_array_equal(kernel.nngp(x1, x2), kernel(x1, x2))
    np.testing.assert_allclose(kernel.diagonal("ntk", x1), k(x1, x1).diagonal(), rtol=1e-14)
    assert kernel.diagonal("both", x1).shape == (2, 130)
    assert kernel.evaluate("both", x1, x2).shape == (2, 130, 4)


def test_function_kernels_are_exactly_symmetric():
    def uneven(x1, x2):
        return x1 @ x2.T * (1 + 1e-12 * np.arange(len(x2)))

    x = examples(6)
    assert not np.array_equal(uneven(x, x), uneven(x, x).T)
    matrix = FunctionKernel(uneven)(x)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.tril(matrix), np.tril(uneven(x, x)))


def test_white_noise_is_no_part_of_a_function_kernel():
    kernel, x = FunctionKernel(RBF() + WhiteKernel(3.0)), examples(3)
    np.testing.assert_allclose(kernel(x), RBF()(x), rtol=1e-14)
    np.testing.assert_allclose(kernel.diagonal("ntk", x), 1.0, rtol=1e-14)


def test_function_kernels_written_in_jax_keep_the_precision_of_their_input():
    kernel = FunctionKernel(lambda x1, x2: jnp.exp(x1 @ x2.T))
    x = examples(4)
    assert kernel(x).dtype == np.float64 and isinstance(kernel(x), np.ndarray)
    np.testing.assert_allclose(kernel(x), np.exp(x @ x.T), rtol=1e-13)
    assert kernel(x.astype(np.float32)).dtype == np.float32
    traced = kernel(jnp.asarray(x, dtype=jnp.float32))
    assert isinstance(traced, jnp.ndarray) and traced.dtype == jnp.float32
    assert np.array_equal(traced, traced.T)
    assert isinstance(kernel.diagonal("both", jnp.ones((3, 3))), jnp.ndarray)


def test_function_kernels_return_the_dtype_of_their_input():
    kernel = FunctionKernel(lambda x1, x2: np.ones((len(x1), len(x2))))
    assert kernel(np.ones((2, 3), dtype=np.float32)).dtype == np.float32
    assert kernel(np.ones((2, 3), dtype=int)).dtype == np.float64


def test_bad_function_kernels():
    with pytest.raises(InputError, match="give a function"):
        FunctionKernel("rbf")  # type: ignore[arg-type]

    def rbf_like(x1, x2):
        return np.ones(len(x1))

    with pytest.raises(InputError, match=r"rbf_like.* returned shape \(2,\); \[2, 2\]"):
        FunctionKernel(rbf_like)(examples(2))
