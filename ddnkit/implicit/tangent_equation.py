"""z = (P G P)⁺ P r: the linear system of the implicit function theorem, on the tangent space.

G = D²_yy L(θ, y, ν) is symmetric and P(θ, y) projects on the tangent space of the constraints, so that
z solves the symmetric system  P G P z + c (I − P) z = P r  for any c ≠ 0.

Derivative. Let u be the solution for the right side a, and q_z = r − G z, q_u = a − G u, which are
normal to the constraints. Differentiating the system and pairing with its solution for a gives
    ⟨a, dz⟩ = ⟨u, dr⟩ + dS,      S(θ, y, ν) = ⟨u, P q_z⟩ + ⟨q_u, P z⟩ − ⟨u, G z⟩,
where S is differentiated at fixed u, z, q. (The terms with c cancel: for a projector P dP P = 0 and
(I − P) dP (I − P) = 0.) The same in the other direction:
    dz = (P G P)⁺ P [dr − dG z − G dP z + dP q_z] + dP z.
Both are written with solutions of this same equation, so that they can be differentiated again.

Several right sides (k, B, m) share G, P and, where a form factorises, the factorisation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import grad

from ..backward.form import BackwardForm, system_solution
from ..lagrangian import constraint_set, hessian_product, pushforward
from ..problem import Problem
from .function import Equation, Unfold, fold_operand, solution_of


class LinearSystems:
    """The linear systems that the equations ask for, solved in numbers by a backward form.

    By itself it keeps nothing: one evaluation is as good as another. `Call` is one that belongs to a call
    of a layer.
    """

    policy = "warn"

    def __init__(self, form: BackwardForm):
        self.form = form

    def solve_system(
        self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """z (k, B, m), and μ (k, B, p) of a form that has it where the gradient is made of it."""
        found = system_solution(self.form.tangent_solve(problem, y, nu), r, multipliers)
        return found.z, found.mu

    def solve_tangent(self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor) -> Tensor:
        """z (k, B, m)."""
        return self.solve_system(problem, y, nu, r, multipliers=False)[0]


class TangentEquation(Equation):
    """Operands: those of the problem, y (B, *y), ν, and r (k, B, m).

    Outputs: z (k, B, m), and as a number without a derivative the form's μ (k, B, p), or (k, B, 0).
    """

    auxiliary = 1

    def __init__(self, call: LinearSystems, problem: Problem):
        self.call = call
        self.problem = problem

    def apply(self, y: Tensor, nu: Tensor, r: Tensor) -> Tensor:
        """z for right sides r (k, B, m); zero for items that the policy "mask" drops."""
        z, _ = self.solve_unmasked(y, nu, r)
        return z.nan_to_num(nan=0.0) if self.call.policy == "mask" else z

    def solve_unmasked(self, y: Tensor, nu: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """The same with NaN for them, and μ."""
        z, mu = solution_of(self, *self.problem.operands, y, nu, r)
        return z, mu

    def _split(self, operands: Sequence[Tensor]) -> tuple[Problem, Tensor, Tensor, Tensor]:
        *theta, y, nu, r = operands
        return self.problem.with_operands(theta), y, nu, r

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By the call's backward form."""
        problem, y, nu, r = self._split(operands)
        z, mu = self.call.solve_system(problem, y, nu, r)
        return z, r[..., :0].clone() if mu is None else mu

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """The gradient of S, and u for r."""
        *theta, y, nu, r = operands
        problem = self.problem.with_operands(theta)
        z, a = outputs[0], cotangents[0]
        equation = TangentEquation(self.call, problem)
        u = equation.apply(y, nu, a)
        gradients: list[Tensor | None] = [None] * len(operands)
        gradients[-1] = u
        inner = [i for i in wrt if i < len(operands) - 1 and operands[i].is_floating_point()]
        if not inner:
            return gradients
        q_z = r - hessian_product(problem, y, nu, z)
        q_u = a - hessian_product(problem, y, nu, u)

        def S(*values: Tensor) -> Tensor:
            moved = list(operands[:-1])
            for i, value in zip(inner, values, strict=True):
                moved[i] = value
            *theta, y, nu = moved
            problem = self.problem.with_operands(theta)
            tangent = constraint_set(problem, y)
            curvature = hessian_product(problem, y, nu, z)
            return (u * (tangent.project(q_z) - curvature)).sum() + (q_u * tangent.project(z)).sum()

        found = grad(S, argnums=tuple(range(len(inner))))(*(operands[i] for i in inner))
        for i, gradient in zip(inner, found, strict=True):
            gradients[i] = gradient
        return gradients

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """dz along the tangents of the operands."""
        *theta, y, nu, r = operands
        problem = self.problem.with_operands(theta)
        z, dr = outputs[0], tangents[-1]
        moving = tangents[:-1]
        q = r - hessian_product(problem, y, nu, z)

        def along(function: object) -> Tensor:
            def of_operands(*values: Tensor) -> Tensor:
                *theta, y, nu = values
                return function(self.problem.with_operands(theta), y, nu)  # type: ignore[operator]

            return pushforward(of_operands, operands[:-1], moving)

        dP_z = along(lambda problem, y, nu: constraint_set(problem, y).project(z))
        right = along(
            lambda problem, y, nu: (
                constraint_set(problem, y).project(q) - hessian_product(problem, y, nu, z)
            )
        )
        right = right - hessian_product(problem, y, nu, dP_z)
        if dr is not None:
            right = right + dr
        return (TangentEquation(self.call, problem).apply(y, nu, right) + dP_z,)

    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """More right sides where only r is mapped, otherwise a larger batch."""
        *rest, r = operands
        *rest_dims, r_dim = in_dims
        right = r.unsqueeze(0).expand(size, *r.shape) if r_dim is None else r.movedim(r_dim, 0)
        k, B, m = right.shape[1:]
        if all(dim is None for dim in rest_dims):
            inside = right.reshape(size * k, B, m)
            return self, [*rest, inside], lambda z: z.reshape(size, k, B, z.shape[-1])
        batched = [*self.problem.operands_batched, True, True]
        folded, flags = fold_operands(rest, rest_dims, batched, size, B)
        problem = self.problem.resize(folded[:-2], size * B, flags[:-2])
        inside = right.movedim(0, 1).reshape(k, size * B, m)

        def unfold(z: Tensor) -> Tensor:
            return z.reshape(k, size, B, z.shape[-1]).movedim(1, 0)

        return TangentEquation(self.call, problem), [*folded, inside], unfold


def fold_operands(
    operands: Sequence[Tensor],
    dims: Sequence[int | None],
    batched: Sequence[bool],
    size: int,
    batch_size: int,
) -> tuple[list[Tensor], list[bool]]:
    """Operands of a batch ``size`` times as large, and which of them carry it."""
    folded, flags = [], []
    for x, dim, own in zip(operands, dims, batched, strict=True):
        shared = dim is None and not own
        folded.append(
            x if shared else fold_operand(x, dim, size, batched=own, batch_size=batch_size)
        )
        flags.append(not shared)
    return folded, flags
