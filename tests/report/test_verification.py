"""The figures and the page of a verification."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tangency import report
from tangency.dynamics.verification import LIMIT_DESCENT, LIMIT_FLOW
from tests.report.verifications import NASTY, verification

CASES = {
    "usual": {},
    "without test examples": {"tested": False},
    "one network": {"widths": (8,), "seeds": (0,)},
    "diverged": {"diverged": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_well_formed_and_self_contained(case):
    result = verification(**CASES[case])
    page = report.verification_html(result, title=NASTY, facts=[("data", NASTY)], notes=[NASTY])
    elements = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    ids = [element.get("id") for element in elements.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 0
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    text = "".join(elements.itertext())
    assert all(sentence in text for sentence in result.verdict())
    assert text.count(NASTY) >= 4
    marked = [row for row in elements.iter("tr") if row.get("class") == "ours"]
    assert [next(row.itertext()) for row in marked] == [f"{result.widths[-1]}"]


def test_numbers_behind_the_figures():
    result = verification()
    error = report.TrainingErrorDisplay.from_verification(result, width=8, seed=1)
    np.testing.assert_allclose(
        error.network, np.sqrt(np.mean((result.run(8, 1).network[:, :5] - result.y) ** 2, (1, 2)))
    )
    assert error.band == pytest.approx(0.1 * error.network[0])
    drift = report.KernelDriftDisplay.from_verification(result)
    np.testing.assert_array_equal(drift.steps, [0, 3, 10])
    np.testing.assert_allclose(drift.drift[0], np.array([0, 0.3, 0.5]) / 8 * 1.05)
    gap = report.GapDisplay.from_verification(result, part="test")
    np.testing.assert_allclose(gap.gaps[LIMIT_FLOW], result.gap(LIMIT_FLOW, part="test")[-1].mean(axis=0))
    outputs = report.OutputsDisplay.from_verification(result)
    assert outputs.network.shape == outputs.predicted.shape == (4, 3)
    assert len({name.rpartition(" ")[2] for name in outputs.names}) == 3
    assert LIMIT_DESCENT in error.predicted


def test_the_verdict_says_how_lazy_and_what_diverged():
    lazy = verification().verdict()
    assert "is lazy" in lazy[0] and "power −0.5" in " ".join(lazy)
    assert "is nearly lazy" in verification(widths=(2, 4)).verdict()[0]
    assert lazy[-1].startswith("Remark of the limit")
    broken = " ".join(verification(diverged=True).verdict())
    assert "training diverged" in broken and "Width 64, seed 1: diverged at step 2" in broken
    assert "not lazy" in verification(widths=(0.2, 0.4)).verdict()[0]


def test_percent():
    assert [report.percent(value) for value in (0.0123, 1.5, 1e9, np.nan)] == [
        "1.2 %",
        "150.0 %",
        "diverged",
        "diverged",
    ]
