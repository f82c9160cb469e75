"""One self-contained HTML page about a fitted kernel; every figure's numbers can be had without drawing."""

from .kernel_matrix import KernelMatrixDisplay as KernelMatrixDisplay
from .kernel_matrix import sorted_rows as sorted_rows
from .learning_curve import LearningCurveDisplay as LearningCurveDisplay
from .learning_curve import time_grid as time_grid
from .outcome import ConfusionMatrixDisplay as ConfusionMatrixDisplay
from .outcome import PredictionDisplay as PredictionDisplay
from .page import FigureCard as FigureCard
from .page import Report as Report
from .page import render as render
from .spectrum import SpectrumDisplay as SpectrumDisplay
from .svg import figure_of as figure_of
from .svg import inline_svg as inline_svg
