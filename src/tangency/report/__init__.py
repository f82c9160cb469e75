"""Self-contained HTML pages about a fitted kernel or a verification; each figure's numbers can be had undrawn."""

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
from .verification import GapDisplay as GapDisplay
from .verification import KernelDriftDisplay as KernelDriftDisplay
from .verification import OutputsDisplay as OutputsDisplay
from .verification import TrainingErrorDisplay as TrainingErrorDisplay
from .verification import WidthScalingDisplay as WidthScalingDisplay
from .verification_page import percent as percent
from .verification_page import verification_html as verification_html
from .verification_page import versions as versions
