"""Mean and variance of every parameter of a freshly initialised model, derived from its initialiser's jaxpr."""

from .interpret import initialiser_statistics as initialiser_statistics
from .leaves import InitialiserStatistics as InitialiserStatistics
from .leaves import UnresolvedInitialiser as UnresolvedInitialiser
