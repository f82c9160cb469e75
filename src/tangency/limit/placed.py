"""Functions of leaves at labelled positions of one example."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..graph.elementwise import Elementwise
from ..graph.signal import Factor, JointLeaf, Leaf, ParameterStatistics, StopLeaf, is_noise

Labels = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """A factor at labelled positions of one example. `over` labels the positions of the field it stands in."""

    function: Elementwise
    leaf: Leaf
    side: int
    labels: Labels
    over: Labels
    stopped: bool = False

    @classmethod
    def of(cls, factor: Factor, side: int, over: Labels) -> Placed:
        leaf, stopped = factor.leaf, False
        while isinstance(leaf, StopLeaf):
            leaf, stopped = leaf.leaf, True
        return cls(factor.function, leaf, side, tuple(over[axis] for axis in factor.axes), over, stopped)

    @property
    def variable(self) -> tuple[Leaf, int, Labels]:
        return self.leaf, self.side, self.labels

    @property
    def roots(self) -> frozenset[ParameterStatistics]:
        return self.leaf.roots

    @property
    def is_map(self) -> bool:
        """Whether it is a linear map of activations, itself."""
        return self.function.is_identity and not self.leaf.gaussian and not (self.is_joint or is_noise(self.leaf))

    @property
    def is_joint(self) -> bool:
        """Whether it is a function of several Gaussians."""
        return isinstance(self.leaf, JointLeaf)

    @property
    def is_bare(self) -> bool:
        """Whether it is its leaf itself, with its gradient."""
        return self.function.is_identity and not self.stopped

    def differentiated(self) -> Placed:
        return replace(self, function=self.function.derivative)

    def anywhere(self) -> Placed:
        """The same factor with labels counted from zero and no side: what its variance depends on."""
        names: dict[int, int] = {}
        for label in (*self.labels, *self.over):
            names.setdefault(label, len(names))
        own, over = (tuple(names[label] for label in labels) for labels in (self.labels, self.over))
        return replace(self, side=0, labels=own, over=over, stopped=False)
