"""The page: well formed, self-contained, small, and safe with any name."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tangency import report

NASTY = '<script>alert("1")</script> & $x_{'


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    labels = np.sort(rng.integers(0, 2, 400))
    names = (NASTY, "b")
    matrix = report.KernelMatrixDisplay.compute(x @ x.T + np.eye(400), labels, class_names=names)
    confusion = report.ConfusionMatrixDisplay.compute(labels, labels, class_names=names)
    return report.render(
        report.Report(
            title=f"title {NASTY}",
            summary=f"summary {NASTY}",
            facts=[("data", NASTY)],
            metric_names=["accuracy"],
            metric_rows=[(NASTY, ["0.9"]), ("constant", ["0.5"])],
            figures=[
                report.FigureCard("kernel", "Kernel matrix", NASTY, matrix),
                report.FigureCard("confusion", "Confusion matrix", "caption", confusion),
            ],
            graph=NASTY,
            recursion="Θ < Θ′ & K",
            latex=r"\Theta^{(1)} < 1",
            notes=[NASTY],
            footer="footer",
        )
    )


def elements(page):
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_it_is_well_formed_with_unique_ids(page):
    ids = [element.get("id") for element in elements(page).iter() if element.get("id")]
    assert ids
    assert len(ids) == len(set(ids))


def test_it_refers_to_nothing_outside(page):
    for element in elements(page).iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("src", "href"):
                assert value.startswith(("#", "data:")), value
    assert "@import" not in page
    assert not re.search(r"url\(\s*['\"]?(?!#)", page)
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert targets
    assert all(f'id="{target}"' in page for target in targets)


def test_names_are_text_and_never_markup(page):
    assert "<script" not in page
    text = "".join(elements(page).itertext())
    assert text.count("<script>alert") >= 6
    assert "Θ < Θ′ & K" in text


def test_it_is_small(page):
    assert len(page.encode()) < 2_000_000


def test_the_first_row_is_marked(page):
    rows = [row for row in elements(page).iter("tr") if row.get("class") == "ours"]
    assert len(rows) == 1
