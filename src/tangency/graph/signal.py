"""Random fields in normal form: sums of Known coefficients times univariate functions of random leaves.

A field lives over *positions* (pixels, tokens, time) and over a *width*, along which it is independent and identically
distributed. Every leaf has axes of its own over positions; a factor says which axes of the field they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from .elementwise import IDENTITY, Elementwise
from .known import ONE, Known, Operation, is_number
from .layout import Layout
from .space import Window


@dataclass(frozen=True, eq=False)
class ParameterStatistics:
    """What the limit needs to know of one array of parameters.

    `variance` is that of one entry at initialisation, `learning_rate` that of one entry in training (None: a
    zero-variance weight whose rate nobody gave). `noise` is drawn anew for each example, as dropout's masks are.
    A piece of an array names the `whole` and the `interval` (axis, start, stop) of it.
    """

    name: str
    shape: tuple[int, ...]
    mean: float
    variance: float
    learning_rate: float | None
    distribution: str = "normal"
    noise: bool = False
    whole: ParameterStatistics | None = None
    interval: tuple[int, int, int] | None = None

    @property
    def origin(self) -> ParameterStatistics:
        """The array that this is a piece of, or itself."""
        return self if self.whole is None else self.whole.origin

    @property
    def rate(self) -> float:
        """The learning rate of an entry; 1 for a bias or scale of zero variance whose rate nobody gave."""
        return 1.0 if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, eq=False)
class Leaf:
    """A random field, independent and identically distributed over the width, with zero mean where it is Gaussian.

    `source` is the line of the user's model that made it.
    """

    source: str | None = field(default=None, kw_only=True)

    @property
    def roots(self) -> frozenset[ParameterStatistics]:
        """The parameters it came from; disjoint roots mean independent, with zero tangent."""
        raise TypeError(f"{type(self).__name__} is not a leaf")

    @property
    def space(self) -> tuple[int, ...]:
        """The lengths of its axes over positions."""
        return ()

    @property
    def inputs(self) -> tuple[Segment, ...]:
        """The signals it was made from."""
        return ()

    @property
    def bases(self) -> tuple[Leaf, ...]:
        """The leaves it is a view of."""
        return ()

    @property
    def indices(self) -> tuple[Known, ...]:
        """The Known values that say how it is made: indices, matrices."""
        return ()

    @property
    def gaussian(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class ParameterLeaf(Leaf):
    """A bias-like parameter less its mean, times `scale`; one entry for each position and place along the width.

    With zero variance (a zero bias, a LayerNorm scale at 1) its value is 0 and only its tangent counts.
    """

    parameter: ParameterStatistics
    scale: float = 1.0
    positions: tuple[int, ...] = ()

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset((self.parameter,))

    @property
    def space(self) -> tuple[int, ...]:
        return self.positions

    @property
    def gaussian(self) -> bool:
        return not self.parameter.noise

    @property
    def degenerate(self) -> bool:
        return self.parameter.variance == 0.0


@dataclass(frozen=True, eq=False)
class EmbeddingLeaf(Leaf):
    """scale · the rows of a parameter that Known indices pick, one row for each position."""

    weight: ParameterStatistics
    index: Known
    scale: float = 1.0

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset((self.weight,))

    @property
    def space(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def indices(self) -> tuple[Known, ...]:
        return (self.index,)


@dataclass(frozen=True, eq=False)
class WeightLeaf(Leaf):
    """scale · W s: a weight contracted with a signal, a Gaussian by the central limit theorem over the width.

    Attributes:
        weight: the weight, of mean zero.
        input: the signal, in parts along its width.
        scale: a number.
        contracted: axes of the signal's positions that are summed over, each with weights of its own (flatten).
        unshared: axes of the signal's positions where the weights are other ones at each position (locally connected).
        windows: (axis, window) for each axis of positions along which the weight slides (convolution).
        groups: into how many independent groups the width is cut; with one unit in a group (depthwise), the result
            keeps the law of its input's products with the weight and is no Gaussian.
        stopped: whether the weight has no gradient in this use; its input keeps its own.
    """

    weight: ParameterStatistics
    input: tuple[Segment, ...]
    scale: float = 1.0
    contracted: tuple[int, ...] = ()
    unshared: tuple[int, ...] = ()
    windows: tuple[tuple[int, Window], ...] = ()
    groups: int = 1
    stopped: bool = False

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        own = frozenset((self.weight,))
        return own if self.gaussian else own.union(*(segment.roots for segment in self.input))

    @cached_property
    def space(self) -> tuple[int, ...]:
        windows = dict(self.windows)
        lengths = enumerate(self.input[0].space)
        return tuple(
            windows[axis].output_length(length) if axis in windows else length
            for axis, length in lengths
            if axis not in self.contracted
        )

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return self.input

    @property
    def gaussian(self) -> bool:
        return not self.depthwise

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.width

    @property
    def width(self) -> int:
        return sum(segment.size for segment in self.input)

    @property
    def fan_in(self) -> int:
        """How many products are summed for one unit."""
        positions = prod(self.input[0].space[axis] for axis in self.contracted)
        return self.width // self.groups * positions * prod(window.size for _, window in self.windows)


@dataclass(frozen=True, eq=False)
class SumLeaf(Leaf):
    """A sum of Gaussian terms, which is one Gaussian again."""

    segment: Segment

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.segment.roots

    @property
    def space(self) -> tuple[int, ...]:
        return self.segment.space

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return (self.segment,)


@dataclass(frozen=True, eq=False)
class LinearLeaf(Leaf):
    """A linear map over positions of a random signal: a sum (`matrix` and `window` None), windowed sums, or a matrix.

    The map acts on one `axis` of the signal's positions. The matrix is Known, of shape (*batch, out, in), where `batch`
    names axes of the signal's positions. Gaussian where the signal is.
    """

    segment: Segment
    axis: int
    window: Window | None = None
    matrix: Known | None = None
    batch: tuple[int, ...] = ()

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.segment.roots

    @cached_property
    def space(self) -> tuple[int, ...]:
        lengths: list[int] = list(self.segment.space)
        if self.window is not None:
            lengths[self.axis] = self.window.output_length(lengths[self.axis])
        elif self.matrix is not None:
            lengths[self.axis] = self.matrix.shape[-2]
        else:
            del lengths[self.axis]
        return tuple(lengths)

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return (self.segment,)

    @property
    def indices(self) -> tuple[Known, ...]:
        return () if self.matrix is None else (self.matrix,)

    @property
    def gaussian(self) -> bool:
        return self.segment.leaf is not None and self.segment.leaf.gaussian


@dataclass(frozen=True, eq=False)
class ViewLeaf(Leaf):
    """A leaf seen through a rearrangement of its positions or of its width; no arithmetic."""

    leaf: Leaf

    @property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.leaf.roots

    @property
    def space(self) -> tuple[int, ...]:
        return self.leaf.space

    @property
    def bases(self) -> tuple[Leaf, ...]:
        return (self.leaf,)

    @property
    def gaussian(self) -> bool:
        return self.leaf.gaussian


@dataclass(frozen=True, eq=False)
class SelectLeaf(ViewLeaf):
    """Positions picked along one axis by Known indices; the axis gives way to the axes of `index`."""

    axis: int
    index: Known

    @property
    def space(self) -> tuple[int, ...]:
        return (*self.leaf.space[: self.axis], *self.index.shape, *self.leaf.space[self.axis + 1 :])

    @property
    def indices(self) -> tuple[Known, ...]:
        return (self.index,)


@dataclass(frozen=True, eq=False)
class MergeLeaf(ViewLeaf):
    """`axes` of the positions, in that order, made into one, which comes last."""

    axes: tuple[int, ...]

    @property
    def space(self) -> tuple[int, ...]:
        lengths = self.leaf.space
        rest = [length for axis, length in enumerate(lengths) if axis not in self.axes]
        return (*rest, prod(lengths[axis] for axis in self.axes))


@dataclass(frozen=True, eq=False)
class CopiesLeaf(ViewLeaf):
    """Independent copies along a new last axis of positions: a piece of the width that is used as positions."""

    length: int

    @property
    def space(self) -> tuple[int, ...]:
        return (*self.leaf.space, self.length)


@dataclass(frozen=True, eq=False)
class StopLeaf(ViewLeaf):
    """The same random field, without a gradient."""


@dataclass(eq=False)
class Loop:
    """A recurrence of `length` steps: what each of its `parts` of state is after a step, over all times at once."""

    length: int
    parts: int
    parameters: frozenset[ParameterStatistics]
    outputs: list[Segment] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class CarryLeaf(Leaf):
    """A part of the state that the steps of a loop receive, over all times: zero first, then the step's own result."""

    loop: Loop
    part: int

    @property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.loop.parameters

    @property
    def space(self) -> tuple[int, ...]:
        return (self.loop.length,)

    @property
    def gaussian(self) -> bool:
        return False

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return tuple(self.loop.outputs)


@dataclass(frozen=True, eq=False)
class JointLeaf(Leaf):
    """A function of several Gaussians: an elementwise `operation` on signals, or their sum where it is None.

    What is Known among the operands is a signal without randomness. Its expectations have no closed rule.
    """

    operation: Operation | None
    operands: tuple[Segment, ...]

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset().union(*(segment.roots for segment in self.operands))

    @property
    def space(self) -> tuple[int, ...]:
        return self.operands[0].space

    @property
    def inputs(self) -> tuple[Segment, ...]:
        return self.operands

    @property
    def gaussian(self) -> bool:
        return False


@dataclass(frozen=True)
class Factor:
    """φ(leaf); the leaf's axis i runs along the field's axis `axes[i]`."""

    function: Elementwise
    leaf: Leaf
    axes: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[Leaf, tuple[int, ...]]:
        """The random variable that the function is of."""
        return self.leaf, self.axes


@dataclass(frozen=True)
class Term:
    """coefficient · Π φ_i(leaf_i); the leaves, or their axes, differ, but for squares of maps of activations.

    The coefficient is a number, of shape `()`, or an array of shape (*positions, width), with length 1 along every axis
    where it is constant.
    """

    coefficient: Known = ONE
    factors: tuple[Factor, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether the coefficient differs from place to place along the width."""
        return bool(self.coefficient.shape) and self.coefficient.shape[-1] != 1

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(factor.leaf for factor in self.factors)

    @property
    def degenerate(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if is_degenerate(factor.leaf))

    @property
    def random(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if not is_degenerate(factor.leaf))


def is_degenerate(leaf: Leaf) -> bool:
    """Whether a leaf is a parameter of zero variance."""
    base = base_of(leaf)
    return isinstance(base, ParameterLeaf) and base.degenerate


def is_noise(leaf: Leaf) -> bool:
    """Whether a leaf is drawn anew for each example, as dropout's masks are."""
    base = base_of(leaf)
    return isinstance(base, ParameterLeaf) and base.parameter.noise


def base_of(leaf: Leaf) -> Leaf:
    """What a leaf is a view of, or itself."""
    while isinstance(leaf, ViewLeaf):
        leaf = leaf.leaf
    return leaf


@dataclass(frozen=True, eq=False)
class Segment:
    """`size` places along the width over which a signal is one sum of terms; `space` are its positions' lengths."""

    size: int
    terms: tuple[Term, ...]
    space: tuple[int, ...] = ()

    @cached_property
    def roots(self) -> frozenset[ParameterStatistics]:
        return frozenset().union(*(leaf.roots for term in self.terms for leaf in term.leaves))

    @property
    def is_known(self) -> bool:
        return not any(term.factors for term in self.terms)

    @property
    def leaf(self) -> Leaf | None:
        """The leaf that the segment simply is, if it is one."""
        if len(self.terms) != 1:
            return None
        term = self.terms[0]
        plain = len(term.factors) == 1 and term.factors[0].function.is_identity and is_number(term.coefficient, 1.0)
        return term.factors[0].leaf if plain else None


@dataclass(frozen=True, eq=False)
class Signal:
    """A random array of one example. `layout` says what each of its axes is; concatenations along the width are kept as
    segments."""

    layout: Layout
    segments: tuple[Segment, ...] = field()

    def __post_init__(self) -> None:
        if sum(segment.size for segment in self.segments) != self.layout.width:
            sizes = [segment.size for segment in self.segments]
            raise ValueError(f"segments of sizes {sizes} do not fill a width of {self.layout.width}")
        if any(segment.space != self.layout.space for segment in self.segments):
            raise ValueError(f"positions {[s.space for s in self.segments]} do not fit those of {self.layout}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape


def of_leaf(leaf: Leaf, axes: tuple[int, ...] | None = None) -> Term:
    """The leaf itself; by default its axes are the field's, one by one."""
    return Term(ONE, (Factor(IDENTITY, leaf, tuple(range(len(leaf.space))) if axes is None else axes),))
