import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tangency.dynamics import gaussian_process, kernel_flow
from tangency.errors import InputError, NonFiniteError, SingularMatrixError
from tangency.estimators import NTKClassifier, NTKRegressor
from tangency.kernels.function import FunctionKernel
from tests.oracles.flow import FeatureKernel

KERNEL = FeatureKernel(features=60, inputs=3)


def data(outputs=(), n=20, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = 4.0 + np.sin(x @ rng.normal(size=(3, *outputs))) + 0.1 * rng.normal(size=(n, *outputs))
    return x, y, rng.normal(size=(6, 3))


def labels(n=30, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return np.eye(3)[y] * 1.2 + 0.6 * rng.normal(size=(n, 3)), y


@pytest.mark.parametrize(
    "estimator",
    [
        NTKRegressor(rbf_kernel),
        NTKRegressor(FunctionKernel(rbf_kernel), inference="nngp"),
        NTKRegressor(rbf_kernel, time=50.0, ridge=0.1),
        NTKClassifier(rbf_kernel),
        NTKClassifier(FunctionKernel(rbf_kernel), inference="nngp"),
    ],
    ids=["flow", "process", "early", "classifier", "process-classifier"],
)
def test_scikit_learn_checks(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert failed == set()
    assert sum(result["status"] == "passed" for result in results) > 45


@pytest.mark.parametrize("outputs", [(), (1,), (2,)])
@pytest.mark.parametrize("time", [None, 5.0])
def test_regressor_is_a_flow_on_centred_targets(outputs, time):
    x, y, x_new = data(outputs)
    model = NTKRegressor(KERNEL, ridge=0.1, time=time).fit(x, y)
    flow = kernel_flow(KERNEL, x, y - y.mean(axis=0), ridge=0.1)
    mean = flow(x_new, time) + y.mean(axis=0)
    np.testing.assert_allclose(model.predict(x_new), mean, rtol=1e-12)
    assert model.ridge_ == 0.1 and model.ridge_path_ is None
    np.testing.assert_allclose(model.intercept_, y.mean(axis=0))
    first, deviation = model.predict(x_new, return_std=True)
    second, covariance = model.predict(x_new, return_cov=True)
    assert np.array_equal(first, second) and first.shape == deviation.shape == (6, *outputs)
    expected = np.sqrt(flow.variance(x_new, time))
    np.testing.assert_allclose(deviation.reshape(6, -1), expected[:, None] * np.ones(outputs or 1), rtol=1e-12)
    np.testing.assert_allclose(covariance, flow.covariance(x_new, time), rtol=1e-12)


def test_bayesian_regressor_is_a_gaussian_process():
    x, y, x_new = data()
    model = NTKRegressor(KERNEL, ridge=0.1, inference="nngp").fit(x, y)
    process = gaussian_process(KERNEL, x, y - y.mean(), ridge=0.1)
    mean, deviation = model.predict(x_new, return_std=True)
    np.testing.assert_allclose(mean, process.mean(x_new) + y.mean(), rtol=1e-12)
    np.testing.assert_allclose(deviation, np.sqrt(process.variance(x_new)), rtol=1e-12)
    np.testing.assert_allclose(model.predict(x_new, return_cov=True)[1], process.covariance(x_new), rtol=1e-12)
    assert not hasattr(model, "flow_")


@pytest.mark.parametrize("inference", ["ntk", "nngp"])
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_leave_one_out_score_equals_refits(inference, outputs):
    x, y, _ = data(outputs)
    model = NTKRegressor(KERNEL, inference=inference).fit(x, y)
    refits = [
        clone(model).set_params(ridge=model.ridge_).fit(np.delete(x, i, 0), np.delete(y, i, 0)).predict(x[i : i + 1])[0]
        for i in range(len(x))
    ]
    assert model.leave_one_out_score_ == pytest.approx(r2_score(y, np.array(refits)), rel=1e-9)
    errors = model.ridge_path_[:, 1]
    chosen = np.flatnonzero(model.ridge_path_[:, 0] == model.ridge_)[0]
    assert errors[chosen] == errors.min() == pytest.approx(np.mean((y - np.array(refits)) ** 2), rel=1e-9)


def test_classifier_leave_one_out_score_equals_refits():
    x, y = labels()
    model = NTKClassifier(KERNEL).fit(x, y)
    refits = [
        clone(model).set_params(ridge=model.ridge_).fit(np.delete(x, i, 0), np.delete(y, i)).predict(x[i : i + 1])[0]
        for i in range(len(x))
    ]
    assert model.leave_one_out_score_ == np.mean(np.array(refits) == y)
    assert 0.5 < model.leave_one_out_score_ < 1.0
    assert model.ridge_path_[:, 1].min() == pytest.approx(1 - model.leave_one_out_score_)


@pytest.mark.parametrize("inference", ["ntk", "nngp"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classifier_scores_and_labels(inference, classes):
    x, y = labels()
    x, y = x[y < classes], y[y < classes]
    model = NTKClassifier(KERNEL, ridge=0.1, inference=inference).fit(x, y)
    scores = model.decision_function(x)
    targets = np.eye(classes)[y] - 1 / classes
    matrix = KERNEL(x) if inference == "ntk" else KERNEL.nngp(x)
    expected = matrix @ np.linalg.solve(matrix + 0.1 * np.eye(len(x)), targets)
    np.testing.assert_allclose(scores, expected if classes == 3 else expected[:, 1], atol=1e-11)
    np.testing.assert_array_equal(model.predict(x), expected.argmax(axis=1))
    assert model.score(x, y) > 0.9


@pytest.mark.parametrize(
    "names", [np.array(["b", "a", "c"]), np.array(["b", "a", "c"], object), np.array([7, -1, 3]), np.array([2.0, 0, 1])]
)
def test_labels_of_any_type(names):
    x, y = labels()
    model = NTKClassifier(KERNEL, ridge=0.1).fit(x, names[y])
    reference = NTKClassifier(KERNEL, ridge=0.1).fit(x, y)
    np.testing.assert_array_equal(model.classes_, np.sort(names))
    np.testing.assert_array_equal(model.predict(x), names[reference.predict(x)])
    assert model.predict(x).dtype == names.dtype


def test_a_single_class_is_refused_by_name():
    with pytest.raises(InputError, match="only 1 class, 'spam', in 20 rows"):
        NTKClassifier(KERNEL).fit(data()[0], ["spam"] * 20)


def test_time_is_passed_on():
    x, y = labels()
    early, late = (NTKClassifier(KERNEL, ridge=0.1, time=time).fit(x, y) for time in (1e-3, None))
    assert np.abs(early.decision_function(x)).max() < 1e-2 < np.abs(late.decision_function(x)).max()


def test_fit_leaves_parameters_alone_and_clones_agree():
    x, y, x_new = data()
    model = NTKRegressor(RBF(1.0), time=3.0)
    before = model.get_params()
    model.fit(x, y)
    assert all(model.get_params()[name] is value for name, value in before.items())
    np.testing.assert_array_equal(clone(model).fit(x, y).predict(x_new), model.predict(x_new))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x_new), model.predict(x_new))


def test_pipelines_and_searches():
    x, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), NTKClassifier(RBF(1.0))),
        {"ntkclassifier__ridge": ["auto", 0.1], "ntkclassifier__kernel": [RBF(1.0), FunctionKernel(rbf_kernel)]},
        cv=3,
        error_score="raise",
    ).fit(x, y)
    assert search.best_score_ > 0.93
    x, y = load_diabetes(return_X_y=True)
    model = make_pipeline(StandardScaler(), NTKRegressor(RBF(5.0)))
    assert cross_val_score(model, x[:200], y[:200], cv=3, error_score="raise").mean() > 0.3


def test_images_are_inputs_too():
    def pixels(a, b):
        return rbf_kernel(a.reshape(len(a), -1), b.reshape(len(b), -1))

    x = np.random.default_rng(0).normal(size=(10, 4, 4, 2))
    model = NTKRegressor(pixels, ridge=0.1).fit(x, np.arange(10.0))
    flat = NTKRegressor(rbf_kernel, ridge=0.1).fit(x.reshape(10, -1), np.arange(10.0))
    np.testing.assert_allclose(model.predict(x), flat.predict(x.reshape(10, -1)), rtol=1e-12)
    with pytest.raises(InputError, match=r"an example of x has shape \(4, 2, 2\)"):
        model.predict(np.ones((1, 4, 2, 2)))


def test_scores_that_are_not_defined_are_none():
    x, y, _ = data()
    one = NTKRegressor(KERNEL, ridge=0.1).fit(x[:1], y[:1])
    assert one.leave_one_out_score_ is None and one.predict(x[:1]) == pytest.approx(y[:1])
    assert NTKRegressor(KERNEL, ridge=0.1).fit(x, np.ones(20)).leave_one_out_score_ is None
    x[1], y[1] = x[0], y[0]
    duplicated = NTKRegressor(KERNEL, ridge=0.0).fit(x, y)
    assert duplicated.leave_one_out_score_ is None
    np.testing.assert_allclose(duplicated.predict(x), y, atol=1e-9)


def test_contradictory_rows_at_ridge_zero_are_refused_by_fit():
    x, y, _ = data()
    x[1], y[1] = x[0], y[0] + 1
    for inference in ("ntk", "nngp"):
        with pytest.raises(SingularMatrixError) as caught:
            NTKRegressor(KERNEL, ridge=0.0, inference=inference).fit(x, y)
        NTKRegressor(KERNEL, ridge=caught.value.smallest_ridge, inference=inference).fit(x, y)
        NTKRegressor(KERNEL, inference=inference).fit(x, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"inference": "mcmc"}, "inference is 'mcmc'"),
        ({"inference": "nngp", "time": 1.0}, "does not train"),
        ({"ridge": "best"}, "ridge is 'best'"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"time": -1.0}, "t holds -1.0"),
        ({"time": [1.0, 2.0]}, "time is"),
        ({"kernel": "rbf"}, "give a function"),
    ],
)
def test_bad_parameters(parameters, message):
    x, y, _ = data()
    with pytest.raises(InputError, match=message):
        NTKRegressor(**({"kernel": KERNEL} | parameters)).fit(x, y)


def test_bad_data():
    x, y, x_new = data()
    with pytest.raises(NotFittedError):
        NTKRegressor(KERNEL).predict(x)
    with pytest.raises(NotFittedError):
        NTKClassifier(KERNEL).decision_function(x)
    model = NTKRegressor(KERNEL, ridge=0.1).fit(x, y)
    with pytest.raises(InputError, match="ask for one"):
        model.predict(x_new, return_std=True, return_cov=True)
    with pytest.raises(ValueError, match="2 features, but NTKRegressor is expecting 3"):
        model.predict(x_new[:, :2])
    x_new[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="X is not finite: row 4 has NaN"):
        model.predict(x_new)
    x[7, 0] = np.inf
    with pytest.raises(NonFiniteError, match="X is not finite: row 7 has inf"):
        NTKRegressor(KERNEL).fit(x, y)
    with pytest.raises(InputError, match="n_samples = 1"):
        NTKRegressor(KERNEL).fit(x[:1], y[:1])
