"""Draws docs/figure.svg, the README's figure: `python docs/figure.py`."""

from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import tangency as tg
from tangency.report import KernelMatrixDisplay, LearningCurveDisplay, sorted_rows

inputs, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(inputs / 16, labels, random_state=0)
kernel = tg.limit(lambda key: eqx.nn.MLP(64, 10, width_size=512, depth=3, activation=jax.nn.relu, key=key))
flow = tg.NTKClassifier(kernel).fit(x, y).flow_

times = np.geomspace(1e-1, 1e6, 60)
train, test = (
    np.mean(np.argmax(outputs, axis=-1) == truth[None], axis=1)
    for outputs, truth in ((flow.train(times), y), (flow(x_test, t=times), y_test))
)
rows = sorted_rows(y)
figure = Figure(figsize=(10, 4), layout="constrained")
left, right = figure.subplots(1, 2)
LearningCurveDisplay.compute(times, train, test, metric="accuracy").plot(left)
left.set_title("All of training, in closed form", fontsize=11)
names = tuple(str(digit) for digit in range(10))
KernelMatrixDisplay.compute(kernel(x[rows]), y[rows], class_names=names).plot(right)
right.set_title("The NTK of the digits, sorted by class", fontsize=11)
FigureCanvasSVG(figure).print_svg(Path(__file__).with_name("figure.svg"), metadata={"Date": None})
