"""DeclarativeNode: an optimisation problem, written as on paper, and nothing else."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from .errors import InputError
from .problem import Problem
from .solution import Solution
from .solver import as_solver

if TYPE_CHECKING:
    from .manifold import Manifold
    from .solver import Solver


class DeclarativeNode(abc.ABC):
    """A node whose output solves  min_y f(x₁, …, xₙ, y)  subject to  h(x₁, …, xₙ, y) = 0.

    Only `objective` must be written, for ONE problem and in plain torch; the library batches it,
    measures each solution against it and differentiates the solution by the implicit function
    theorem. A node holds settings, never state: the same node may serve many layers.

    Example, the point of the unit circle nearest to x:

        class Nearest(ddnkit.DeclarativeNode):
            manifold = Sphere()
            input_dims = (1,)
            def objective(self, x, y):
                return ((y - x) ** 2).sum()
            def solve(self, x):
                return x / x.norm()

    Source: Gould, Hartley and Campbell, *Deep Declarative Networks* (equality-constrained nodes).
    """

    # (*xs: Any, **named: Any) below is how a type checker is told that an override may have any
    # parameters: an objective is written as `def objective(self, A, b, y)`.

    #: The constraint set of y, if it is a manifold.
    manifold: Manifold | None = None
    #: What solves the problem where `solve` is not overridden: a registered name or a Solver. A class with
    #: inequality constraints or bounds that names none has "interior_point", one with a manifold and no
    #: equations beside it "riemannian".
    solver: str | Solver = "newton"
    #: True: `solve` and `adjoint` take the whole batch at once, with one batch dimension in front.
    batched_solve: bool = False
    #: Dimensions of each input of one problem, e.g. ``(2, 0)``; None for inputs that are not tensors.
    input_dims: Sequence[int | None] | None = None
    #: Largest stationarity and infeasibility that pass, relative; None: by dtype (see Certificate).
    tolerance: float | None = None
    #: What to do with a solution that fails its certificate: "raise", "warn", "nan" or "mask".
    policy: str = "warn"
    #: What the gradient is where a constraint is weakly active (holds as an equation, with a multiplier of
    #: zero), so that the solution has a kink: "raise" or "warn" (the policy acts, and what is given is
    #: as "least_norm"), "least_norm" (as if it stays active) or "one_sided" (as if it does not).
    degenerate: str = "warn"
    #: From how many points a layer has the `solver` start: the node's `initial_point` and others around it;
    #: the best minimum that they lead to is kept. Or ``starts(*xs)``: all points of one problem, (k, *y).
    starts: Any = 1
    #: "least_norm": where the solutions form a set, that of least Euclidean norm is meant. None: there is
    #: one.
    selection: str | None = None
    #: Backward form that "auto" takes for this node; None lets the library choose.
    preferred_backward: ClassVar[str | None] = None

    def __init_subclass__(cls, **named: Any) -> None:
        """Newton's method takes no inequalities and knows no manifold: a class that has some, and names no
        solver, has another."""
        super().__init_subclass__(**named)
        own = cls.__mro__[: cls.__mro__.index(DeclarativeNode)]
        stated = {name for kind in own for name in vars(kind)}
        # What this method has set on a class of which this is a subclass was named by nobody.
        if any("solver" in vars(kind) and "_chosen_solver" not in vars(kind) for kind in own):
            return
        chosen = DeclarativeNode.solver
        if stated & {"inequality_constraints", "bounds"}:
            chosen = "interior_point"
        elif cls.manifold is not None and "equality_constraints" not in stated:
            chosen = "riemannian"
        if chosen != cls.solver:
            cls.solver, cls._chosen_solver = chosen, True

    def __new__(cls, *args: Any, **named: Any) -> Any:
        """Says which member is missing, and which of the class's own was likely meant."""
        if getattr(cls, "__abstractmethods__", None):
            from .members import missing

            raise InputError(missing(cls))
        following = super().__new__
        if following is not object.__new__:
            return following(cls, *args, **named)
        if (args or named) and cls.__init__ is object.__init__:
            # Python leaves this to `__new__` where a class has one.
            raise TypeError(f"{cls.__name__}() takes no arguments")
        return following(cls)

    @abc.abstractmethod
    def objective(self, *xs: Any, **named: Any) -> Tensor:
        """``objective(x₁, …, xₙ, y=y)``: f of one problem, a scalar."""

    def equality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """``equality_constraints(x₁, …, xₙ, y=y)``: h of one problem, of any shape, zero if feasible."""
        return None

    def inequality_constraints(self, *xs: Any, **named: Any) -> Tensor | None:
        """``inequality_constraints(x₁, …, xₙ, y=y)``: g of one problem, of any shape, g ≤ 0 if feasible."""
        return None

    #: Optional. ``bounds(*xs) -> (lower, upper)``: the least and the largest y of one problem, a number or a
    #: tensor each (a tuple or dictionary of them where y has several parts); None, and infinite entries,
    #: for free. Bounds that depend on nothing may be the pair itself: ``bounds = (0.0, None)``.
    bounds: Any = None

    @property
    def has_inequalities(self) -> bool:
        """Whether the node has inequality constraints, or bounds."""
        stated = type(self).inequality_constraints
        return stated is not DeclarativeNode.inequality_constraints or self.bounds is not None

    @property
    def constrained(self) -> bool:
        """Whether the node has equality constraints of its own, beside a manifold's."""
        return type(self).equality_constraints is not DeclarativeNode.equality_constraints

    def solve(self, *xs: Any, **named: Any) -> Tensor | Solution:
        """The solution of one problem (of the whole batch if `batched_solve`).

        The default runs the node's `solver`, which takes whole batches.
        """
        problem = Problem.single(self, xs)
        return problem.item_solution(self.solve_problem(problem))

    def solve_problem(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """Solve a whole batch with the node's `solver`, from ``start`` if it is given."""
        solver = as_solver(self.solver)
        reason = solver.refusal(problem)
        if reason is not None:
            raise InputError(f"solver '{solver.name}' cannot solve {type(self).__name__}: {reason}")
        found = solver.solve(problem, start)
        wrong = _misfit(found, problem.batch_size)
        if wrong:
            raise InputError(f"solver '{solver.name}' returned {wrong}")
        return found

    def initial_point(self, *xs: Any, **named: Any) -> Tensor:
        """Where an iterative solver starts on one problem; needed only where one is used."""
        raise InputError(
            f"{type(self).__name__} has neither `solve` nor `initial_point`: an iterative solver "
            "needs to know the shape of y and where to start; write one of the two"
        )

    def sample_inputs(self) -> tuple[Any, ...]:
        """One random instance of the inputs, a tuple: what `check` and the docs draw from."""
        raise InputError(
            f"{type(self).__name__} has no `sample_inputs`: give the inputs, or write a "
            "`sample_inputs(self)` that returns one random instance as a tuple"
        )

    #: Optional. ``adjoint(*xs, y, v, aux=…) -> tuple``: the gradient v·dy/dxᵢ for each input (None
    #: for those without one), which the backward form "closed_form" uses. ``aux`` is passed where
    #: `solve` returned a Solution that carries some. Takes one problem, or the whole batch if
    #: `batched_solve`. An adjoint that solves a system by iterations returns a `ddnkit.Adjoint`, which
    #: has room for the residual.
    adjoint: Any = None

    #: Optional, beside `adjoint`. ``tangent_inverse(*xs, y)`` returns a function of right sides r that
    #: gives z = (P G P)⁺ P r on the tangent space, G the Hessian of the Lagrangian: forward mode and
    #: higher derivatives in closed form. r is (k, *y) for one problem, (k, B, *y) if `batched_solve`.
    tangent_inverse: Any = None

    #: Optional. ``fixed_point(*xs, y) -> y``: a map T of one problem with y = T(x, y) at the solution,
    #: which the backward form "fixed_point" uses. See `FixedPointNode`.
    fixed_point: Any = None

    #: Optional. ``precondition(*xs, y, v) -> v``: a symmetric positive definite approximation of the
    #: inverse Hessian of the Lagrangian of one problem, for the backward form "krylov".
    precondition: Any = None

    # Whether `solver` is the one that `__init_subclass__` has chosen for the class.
    _chosen_solver: ClassVar[bool]

    # ``_direct_call(layer, xs, start, return_multipliers)``: what a layer's call gives, of a node of ddnkit's
    # own that solves, certifies and differentiates without the general way; None to have it go that way, or
    # the `Solution` (`Problem.known`) that it goes on from.
    _direct_call: Any = None

    # Optional, for `ddnkit bench`: ``bench_inputs(self, *size)``, inputs for a y of that size, and
    # ``bench_sizes``, the sizes it takes by default.


def _misfit(found: object, size: int) -> str:
    """What is wrong with what a solver returned for a batch of ``size``; "" if nothing is."""
    if not isinstance(found, Solution):
        return f"a {type(found).__name__}; expected a ddnkit.Solution"
    if not isinstance(found.y, Tensor) or found.y.shape[:1] != (size,):
        given = tuple(found.y.shape) if isinstance(found.y, Tensor) else type(found.y).__name__
        return f"a Solution with y {given}; expected a tensor of the whole batch, ({size}, *y)"
    for name in ("status", "iterations"):
        shape = tuple(getattr(getattr(found, name), "shape", ()))
        if shape not in ((), (1,), (size,)):
            return f"a Solution with {name} of shape {shape}; expected one for each item, ({size},)"
    return ""
