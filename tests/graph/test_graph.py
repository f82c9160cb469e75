"""The graph is a contract of its own: it can be built by hand, ordered, printed and evaluated without any model."""

import jax
import numpy as np
import pytest

from tangency.graph import (
    IDENTITY,
    Constant,
    Factor,
    Graph,
    Input,
    ParameterLeaf,
    ParameterStatistics,
    Segment,
    Signal,
    SumLeaf,
    Term,
    WeightLeaf,
)
from tangency.graph.layout import Layout, Repeat, Width, refine
from tangency.graph.printing import number
from tangency.limit.explain import explain, summary
from tangency.limit.recursion import Recursion


def linear_network():
    """f = V (W x + b) with 3 inputs: K = σ_v² (σ_w² ⟨x, x'⟩/3 + σ_b²)."""
    w = ParameterStatistics("w", (8, 3), 0.0, 2 / 3, 2 / 3)
    b = ParameterStatistics("b", (8,), 0.0, 0.0, None)
    v = ParameterStatistics("v", (1, 8), 0.0, 1 / 8, 1 / 8)
    x = Input((3,))
    first = WeightLeaf(w, (Segment(3, (Term(x),)),))
    bias = ParameterLeaf(b)
    one = Constant.of(1.0)
    total = SumLeaf(Segment(8, (Term(one, (Factor(IDENTITY, first),)), Term(one, (Factor(IDENTITY, bias),)))))
    last = WeightLeaf(v, (Segment(8, (Term(one, (Factor(IDENTITY, total),)),)),))
    output = Signal(Layout(((),)), (Segment(1, (Term(one, (Factor(IDENTITY, last),)),)),))
    return Graph(output, (3,), name="by hand"), (first, bias, total, last)


def test_leaves_come_after_what_they_are_made_from():
    graph, (first, bias, total, last) = linear_network()
    assert set(graph.leaves) == {first, bias, total, last}
    assert graph.leaves.index(first) < graph.leaves.index(total) < graph.leaves.index(last)
    assert graph.leaves.index(bias) < graph.leaves.index(total)


def test_a_graph_built_by_hand_is_evaluated(rng):
    graph, _ = linear_network()
    x, y = rng.normal(size=3), rng.normal(size=3)
    with jax.enable_x64(True):
        k, theta = Recursion(graph, (jax.numpy.asarray(x), jax.numpy.asarray(y))).kernels(tangent=True)
    inner = 2 / 3 * x @ y
    np.testing.assert_allclose(k, inner, rtol=1e-14)
    # Θ = K (readout) + K (first weight) + 1 (the bias of zero variance, learning rate 1).
    np.testing.assert_allclose(theta, 2 * inner + 1, rtol=1e-14)


def test_it_prints_its_recursion():
    graph, _ = linear_network()
    assert "by hand" in summary(graph)
    assert "w @ x" in summary(graph)
    assert "σ_w² = 2" in summary(graph)
    text = explain(graph, "text")
    assert "K[u1] = 2/3·⟨x, x′⟩" in text
    assert "Θ[u2] = Θ[u1] + 1" in text
    latex = explain(graph, "latex")
    assert latex.startswith("\\begin{align*}")
    assert r"K[u_{1}] &= \tfrac{2}{3}\,\langle x, x' \rangle" in latex
    assert latex.count("{") == latex.count("}")


def test_a_signal_fits_its_layout():
    with pytest.raises(ValueError, match="do not fit"):
        Signal(Layout(((Repeat(2),), (Width(0, 3),))), (Segment(3, (), (2,)),))
    with pytest.raises(ValueError, match="do not fill a width of 3"):
        Signal(Layout(((Width(0, 3),),)), (Segment(2, ()),))


def test_axes_are_refined_where_their_cuts_agree():
    assert refine([6], [2, 3]) == (2, 3)
    assert refine([12], [2, 6], [4, 3]) == (2, 2, 3)
    assert refine([6], [2, 3], [3, 2]) is None
    assert refine([1]) == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "1/3"),
        (2.0, "2"),
        (0.1, "0.1"),
        (1 / 64, "1/64"),
        (np.pi, "3.14159"),
        (1e-6, "1e−06"),
        (float("nan"), "nan"),
        (-1 / 3, "−1/3"),
    ],
)
def test_numbers_are_written_as_people_do(value, text):
    assert number(value) == text
