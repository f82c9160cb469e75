"""A kernel and data -> a matrix in float64, checked, and refused when memory would not hold it."""

from ..memory import available_memory as available_memory
from ..memory import factorisation_bytes as factorisation_bytes
from ..memory import require_factorisation as require_factorisation
from .arguments import check_examples as check_examples
from .arguments import check_new_examples as check_new_examples
from .arguments import check_targets as check_targets
from .matrix import gram as gram
from .matrix import gram_blocks as gram_blocks
from .matrix import gram_rows as gram_rows
