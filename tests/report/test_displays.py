"""The numbers behind each figure, and that each can be drawn."""

import numpy as np
import pytest

from tangency import report


def displays(rng):
    x = rng.normal(size=(30, 3))
    kernel = x @ x.T + 3 * np.eye(30)
    labels = np.sort(rng.integers(0, 3, 30))
    names = ("plain", "$\\frac{broken", "<b>&amp;")
    times = np.logspace(0, 3, 5)
    return {
        "classes": report.KernelMatrixDisplay.compute(kernel, labels, class_names=names),
        "values": report.KernelMatrixDisplay.compute(kernel, np.sort(x[:, 0])),
        "spectrum": report.SpectrumDisplay.compute(np.linalg.eigvalsh(kernel), ridge=1.0),
        "low-ridge": report.SpectrumDisplay.compute(np.linalg.eigvalsh(kernel), ridge=1e-9),
        "curve": report.LearningCurveDisplay.compute(times, times, times[::-1], metric="RMSE", chosen=30.0),
        "confusion": report.ConfusionMatrixDisplay.compute(labels, labels[::-1], class_names=names),
        "predictions": report.PredictionDisplay.compute(x[:, 0], x[:, 1], np.abs(x[:, 2])),
    }


def test_kernel_matrix_has_a_unit_diagonal_and_is_scaled_by_it(rng):
    x = rng.normal(size=(6, 2))
    kernel = x @ x.T + np.eye(6)
    found = report.KernelMatrixDisplay.compute(kernel, np.arange(6.0)).similarity
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-14)
    assert found[1, 4] == pytest.approx(kernel[1, 4] / np.sqrt(kernel[1, 1] * kernel[4, 4]), rel=1e-14)


def test_rows_are_sorted_by_target_and_thinned_evenly():
    targets = np.tile([2, 0, 1], 500)
    rows = report.sorted_rows(targets, 300)
    assert rows.size == 300
    assert np.all(np.diff(targets[rows]) >= 0)
    assert np.abs(np.bincount(targets[rows]) - 100).max() <= 1
    np.testing.assert_array_equal(report.sorted_rows(np.array([3.0, 1.0, 2.0])), [1, 2, 0])


def test_spectrum_descends_and_counts_what_is_zero():
    found = report.SpectrumDisplay.compute(np.array([0.0, 1e-17, 2.0, 5.0]))
    np.testing.assert_array_equal(found.eigenvalues, [5.0, 2.0])
    assert found.dropped == 2


def test_confusion_matrix_counts_rows_as_true():
    found = report.ConfusionMatrixDisplay.compute(np.array([0, 0, 1]), np.array([0, 1, 1]), class_names=("a", "b"))
    np.testing.assert_array_equal(found.counts, [[1, 1], [0, 1]])


def test_time_grid_covers_the_fastest_and_the_slowest_mode():
    eigenvalues, ridge = np.array([0.5, 2.0, 100.0]), 0.5
    times = report.time_grid(eigenvalues, ridge)
    rates = (eigenvalues + ridge) / 3
    assert np.all(1 - np.exp(-rates * times[0]) < 0.05)
    assert np.all(np.exp(-rates * times[-1]) < 1e-4)
    assert np.all(np.diff(np.log(times)) > 0)


def test_time_grid_of_a_singular_matrix_is_finite():
    assert np.isfinite(report.time_grid(np.array([0.0, 1.0]), 0.0)).all()


def test_many_points_are_thinned():
    values = np.arange(5000.0)
    assert report.PredictionDisplay.compute(values, values, values).true.size <= 1500


@pytest.mark.parametrize("name", sorted(displays(np.random.default_rng(0))))
def test_every_display_draws_without_leaving_the_page(rng, name):
    svg = report.inline_svg(displays(rng)[name], name)
    assert svg.startswith("<svg")
    assert svg == report.inline_svg(displays(np.random.default_rng(0))[name], name)
    assert "<metadata" not in svg
    assert "<style" not in svg
    assert 'href="http' not in svg


def test_drawing_leaves_pyplot_alone(rng):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    report.inline_svg(displays(rng)["curve"], "curve")
    assert dict(mpl.rcParams) == before
