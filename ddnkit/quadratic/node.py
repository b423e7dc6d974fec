"""QPNode: a quadratic program whose data are the inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, nearest_choice
from ..node import DeclarativeNode
from ..problem import Problem
from ..solution import Solution, Status
from .call import in_matrices
from .program import QuadraticProgram
from .solver import solve

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer

#: Dimensions of each input of one problem.
_DIMS = {"Q": 2, "q": 1, "A": 2, "b": 1, "G": 2, "h": 1, "lower": 1, "upper": 1}
_PAIRS = (("A", "b"), ("G", "h"))


class QPNode(DeclarativeNode):
    """min ½ yᵀQy + qᵀy over y (n,) subject to A y = b, G y ≤ h and lower ≤ y ≤ upper.

    Q is symmetric and positive semidefinite; its symmetric part is what is used. Every input may be one for
    the whole batch, or one for each item, and is differentiated.

    All items are solved at once, by block pivoting where Q is definite and by an interior point where it is
    not, each until its conditions of optimality hold to rounding; the factors of the last system serve the
    gradient too. What is left is given to the node's `solver`.

    Args:
        constraints: the inputs besides Q (n, n) and q (n,), in the order in which they are given to the
            layer: A (p, n) and b (p,), G (k, n) and h (k,), lower (n,), upper (n,). Entries of lower and
            upper may be infinite.

    Example:
        >>> layer = ddnkit.DeclarativeLayer(ddnkit.QPNode("G", "h", "lower"))
        >>> y = layer(Q, q, G, h, lower)              # Q: (8, 5, 5), q: (8, 5), G: (3, 5)  ->  (8, 5)
        >>> y, multipliers = layer(Q, q, G, h, lower, return_multipliers=True)

    Source: Amos and Kolter, *OptNet* (ICML 2017), for quadratic programs as layers.
    """

    solver = "interior_point"

    def __init__(self, *constraints: str):
        self.names = ("Q", "q", *constraints)
        for name in constraints:
            if name not in _DIMS or name in ("Q", "q"):
                choices = [known for known in _DIMS if known not in ("Q", "q")]
                raise InputError(f"QPNode: no input {name!r}.{nearest_choice(str(name), choices)}")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"QPNode: an input is named twice in {', '.join(constraints)}")
        for pair in _PAIRS:
            if len(set(pair) & set(constraints)) == 1:
                raise InputError(f"QPNode: {pair[0]} and {pair[1]} go together")
        self.input_dims: tuple[int, ...] = tuple(_DIMS[name] for name in self.names)

    def _data(self, xs: Sequence[Any]) -> dict[str, Tensor]:
        if any(isinstance(x, Tensor) and not x.is_floating_point() for x in xs):
            dtype = _dtype_of(xs)
            xs = [
                x.to(dtype) if isinstance(x, Tensor) and not x.is_floating_point() else x
                for x in xs
            ]
        return dict(zip(self.names, xs, strict=True))

    def objective(self, *xs: Any, **named: Any) -> Tensor:
        """½ yᵀQy + qᵀy."""
        data, y = self._data(xs), named["y"]
        value: Tensor = 0.5 * y @ (data["Q"] @ y) + data["q"] @ y
        return value

    def equality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """A y − b."""
        data = self._data(xs)
        return data["A"] @ named["y"] - data["b"] if "A" in data else None

    def inequality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """G y − h, negative for rows that say nothing."""
        data = self._data(xs)
        if "G" not in data:
            return None
        # No bound, or a row of zeros as where programs of fewer rows are filled up: both say nothing of y.
        G, h = data["G"], data["h"]
        empty = (h == torch.inf) | ((G == 0).all(dim=-1) & (h >= 0))
        return (G @ named["y"] - h).masked_fill(empty, -1.0)

    def bounds(self, *xs: Any) -> tuple[Tensor | None, Tensor | None]:
        """lower, upper."""
        data = self._data(xs)
        return data.get("lower"), data.get("upper")

    def initial_point(self, *xs: Any, **named: Any) -> Tensor:
        """0, or the bound nearest to it."""
        data = self._data(xs)
        y = torch.zeros_like(data["q"])
        return y.clamp(min=data.get("lower"), max=data.get("upper")) if self._has_bounds else y

    def solve_problem(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """All items at once in matrices; those that this does not solve by the node's solver, from there."""
        if not problem.batch_size or not self.is_plain:
            return super().solve_problem(problem, start)
        if problem.known is not None:
            every = torch.arange(problem.batch_size, device=problem.known.y.device)
            solution = problem.known.of_items(every)
        else:
            program = self.program(problem.inputs, problem.batch_size)
            if start is not None and start.shape != program.q.shape:
                raise InputError(
                    f"QPNode: start has shape {tuple(start.shape)}, but y has {tuple(program.q.shape)}"
                )
            found = solve(program, None if start is None else start.detach().double())
            solution = found.solution(program, _dtype_of(problem.inputs))
        assert isinstance(solution.status, Tensor)
        rest = (solution.status != int(Status.CONVERGED)).nonzero()[:, 0]
        if len(rest):
            self._solve_rest(problem, solution, rest, start)
        return solution

    def _direct_call(
        self, layer: DeclarativeLayer, xs: Sequence[Any], start: Any, return_multipliers: bool
    ) -> Any:
        return in_matrices(self, layer, xs, start, return_multipliers)

    @property
    def is_plain(self) -> bool:
        """Whether the program is what this class says it is, with one solution meant, and its solver is not
        another one's choice."""
        kind = type(self)
        return (
            self.selection is None
            and self.starts == 1
            and self.solver == QPNode.solver
            and all(getattr(kind, name) is getattr(QPNode, name) for name in _FUNCTIONS)
        )

    def program(self, xs: Sequence[Tensor], size: int) -> QuadraticProgram:
        """The batch in float64, each input (B, …) or (1, …)."""
        self._refuse_shapes(xs)
        given = {}
        for name, x in self._data(xs).items():
            shared = len(x) > 1 and x.stride(0) == 0
            given[name] = (x[:1] if shared else x).detach()
        return QuadraticProgram.from_data(given, size)

    def _refuse_shapes(self, xs: Sequence[Any]) -> None:
        """Raise where the inputs, each with a batch dimension, do not make one program."""
        shapes = {}
        for name, x in self._data(xs).items():
            if not isinstance(x, Tensor):
                raise InputError(f"QPNode: {name} is a {type(x).__name__}, not a tensor")
            shapes[name] = tuple(x.shape[1:])
        n = shapes["q"][0]
        if not n:
            raise InputError("QPNode: q has no entries: there is nothing to solve for")
        for name, shape in shapes.items():
            of_rows = next((pair for pair in _PAIRS if name in pair), None)
            rows = n if of_rows is None else shapes[of_rows[0]][0]
            expected = (rows, n)[: _DIMS[name]]
            if shape != expected:
                beside = (
                    f"q {shapes['q']}"
                    if of_rows is None or name == of_rows[0]
                    else (f"{of_rows[0]} {shapes[of_rows[0]]}")
                )
                raise InputError(
                    f"QPNode: {name} has shape {shape} (for one item) beside {beside}; expected {expected}"
                )

    def _solve_rest(
        self, problem: Problem, solution: Solution, items: Tensor, start: Tensor | None
    ) -> None:
        """Put what the node's solver makes of these items into the solution."""
        flags = problem.operands_batched
        operands = [x[items] if own else x for x, own in zip(problem.operands, flags, strict=True)]
        part = problem.resize(operands, len(items), flags)
        near = solution.y[items]
        finite = near.isfinite().all(dim=1, keepdim=True)
        others = part.start() if start is None else start[items]
        found = super().solve_problem(part, torch.where(finite, near, others.to(near)))
        assert isinstance(solution.status, Tensor) and isinstance(solution.iterations, Tensor)
        found = found.batched(len(items))
        solution.y[items] = found.y.to(solution.y)
        solution.status[items] = torch.as_tensor(found.status)
        solution.iterations[items] += torch.as_tensor(found.iterations)
        if solution.multipliers is not None and found.multipliers is not None:
            for old, new in zip(solution.multipliers, found.multipliers, strict=True):
                old[items] = new.to(old)

    @property
    def _has_bounds(self) -> bool:
        return bool({"lower", "upper"} & set(self.names))


def _dtype_of(xs: Sequence[Any]) -> torch.dtype:
    """That of y: which the inputs that have a derivative share."""
    floating = [x.dtype for x in xs if isinstance(x, Tensor) and x.is_floating_point()]
    return functools.reduce(torch.promote_types, floating or [torch.get_default_dtype()])


#: What a subclass may not change for its program to be solved in matrices.
_FUNCTIONS = (
    "objective", "equality_constraints", "inequality_constraints", "bounds", "solve", "solve_problem",
    "manifold", "adjoint", "_data", "_direct_call",
)  # fmt: skip
