"""Problems with known answers, and an assertion, for anyone's solver, backward form or node.

    for problem in ddnkit.testing.bank():
        xs = problem.node.sample_inputs()
        layer = ddnkit.DeclarativeLayer(problem.node, backward="mine")
        ...compare with problem.jacobians(*xs, y=layer(*xs))

All are in float64. L = f − νᵀh; each class states its problem, its answer and its derivative.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from .checking.run import check
from .node import DeclarativeNode


class KnownProblem(DeclarativeNode):
    """A node whose solution has a known Jacobian."""

    @abc.abstractmethod
    def jacobians(self, *xs: Any, **named: Any) -> tuple[Tensor, ...]:
        """dy/dxᵢ at the solution y, for each tensor input, of shape y.shape + xᵢ.shape."""

    @abc.abstractmethod
    def sample_inputs(self) -> tuple[Any, ...]:
        """One random instance."""


def bank() -> list[KnownProblem]:
    """One node of each known problem."""
    return [
        Polynomial(),
        LinearOnCircle(),
        LinearOnScaledCircle(),
        QuadraticOnSphere(),
        PseudoHuberAverage(),
        AnalyticCentre(),
        Ridge(),
        EqualityQP(),
        AffineConstraint(),
        SingularHessian(),
        RepeatedConstraint(),
    ]


def assert_gradients(node: DeclarativeNode, *xs: Any, **settings: Any) -> None:
    """Assert that `ddnkit.check` finds nothing wrong with ``node``; the report is the message."""
    report = check(node, *xs, **settings)
    assert report.ok, f"\n{report}"


class Polynomial(KnownProblem):
    """min x y⁴ + 2x²y³ − 12y², x > 0: stationary at 0 and (−3x² ± √(9x⁴+96x))/4x."""

    input_dims = (0,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The polynomial."""
        return x * y**4 + 2 * x**2 * y**3 - 12 * y**2

    def solve(self, x: Tensor) -> Tensor:
        """The stationary point with the least value."""
        root = (9 * x**4 + 96 * x).sqrt()
        points = torch.stack([torch.zeros_like(x), -3 * x**2 + root, -3 * x**2 - root]) / (4 * x)
        return points[self.objective(x, points).argmin()]

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """y′ = −(y³ + 3xy²)/(3xy² + 3x²y − 6)."""
        return (-(y**3 + 3 * x * y**2) / (3 * x * y**2 + 3 * x**2 * y - 6),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x in [0.5, 1.5]."""
        return (0.5 + torch.rand((), dtype=torch.float64),)


class LinearOnCircle(KnownProblem):
    """min y₁ + x y₂ on ‖y‖² = 1: y = −(1, x)/√(1+x²)."""

    input_dims = (0,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """y₁ + x y₂."""
        return y[0] + x * y[1]

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − 1."""
        return (y**2).sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        """The closed form."""
        return -torch.stack([torch.ones_like(x), x]) / (1 + x**2).sqrt()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """(x, −1)/(1+x²)^{3/2}."""
        return (torch.stack([x, -torch.ones_like(x)]) / (1 + x**2) ** 1.5,)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x normal."""
        return (torch.randn((), dtype=torch.float64),)


class LinearOnScaledCircle(KnownProblem):
    """min y₁ + x₁ y₂ on ‖y‖² = x₂²: the constraint depends on the input; y = −|x₂|(1, x₁)/√(1+x₁²)."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """y₁ + x₁ y₂."""
        return y[0] + x[0] * y[1]

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − x₂²."""
        return (y**2).sum() - x[1] ** 2

    def solve(self, x: Tensor) -> Tensor:
        """The closed form."""
        one = torch.ones_like(x[0])
        return -x[1].abs() * torch.stack([one, x[0]]) / (1 + x[0] ** 2).sqrt()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Columns |x₂|(x₁, −1)/(1+x₁²)^{3/2} and −sgn(x₂)(1, x₁)/√(1+x₁²)."""
        one = torch.ones_like(x[0])
        first = x[1].abs() * torch.stack([x[0], -one]) / (1 + x[0] ** 2) ** 1.5
        second = -x[1].sign() * torch.stack([one, x[0]]) / (1 + x[0] ** 2).sqrt()
        return (torch.stack([first, second], dim=1),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x₁ normal, |x₂| in [0.5, 1.5]."""
        x = torch.randn(2, dtype=torch.float64)
        x[1] = x[1].sign() * (0.5 + torch.rand((), dtype=torch.float64))
        return (x,)


class QuadraticOnSphere(KnownProblem):
    """min ½‖y‖² − xᵀy on ‖y‖² = 1: y = x/‖x‖."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y‖² − xᵀy."""
        return (y**2).sum() / 2 - x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """‖y‖² − 1."""
        return (y**2).sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        """x/‖x‖."""
        return x / x.norm()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """(I − yyᵀ)/‖x‖."""
        return ((torch.eye(len(x), dtype=x.dtype) - torch.outer(y, y)) / x.norm(),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x normal in R⁴."""
        return (torch.randn(4, dtype=torch.float64),)


class PseudoHuberAverage(KnownProblem):
    """min Σ α²(√(1 + (y−xᵢ)²/α²) − 1), α a number and not a tensor: a robust mean."""

    input_dims = (1, None)

    def objective(self, x: Tensor, alpha: float, y: Tensor) -> Tensor:
        """Σ α²(√(1 + (y−xᵢ)²/α²) − 1)."""
        return (alpha**2 * ((1 + (y - x) ** 2 / alpha**2).sqrt() - 1)).sum()

    def initial_point(self, x: Tensor, alpha: float) -> Tensor:
        """The median."""
        return x.median()

    def jacobians(self, x: Tensor, alpha: float, y: Tensor) -> tuple[Tensor, ...]:
        """wᵢ/Σw with wᵢ = (1 + (y−xᵢ)²/α²)^{−3/2}."""
        w = (1 + (y - x) ** 2 / alpha**2) ** -1.5
        return (w / w.sum(),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x normal in R⁵, α = 0.7."""
        return torch.randn(5, dtype=torch.float64), 0.7


class AnalyticCentre(KnownProblem):
    """min −Σ log(bᵢ − aᵢᵀy): the analytic centre of a polytope; s = b − Ay, H = Aᵀ diag(s⁻²) A."""

    input_dims = (2, 1)

    def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """−Σ log(bᵢ − aᵢᵀy), infinite outside the polytope."""
        slack = b - A @ y
        return -torch.where(slack > 0, slack, torch.nan).log().sum()

    def initial_point(self, A: Tensor, b: Tensor) -> Tensor:
        """The origin, inside for b > 0."""
        return A.new_zeros(A.shape[1])

    def jacobians(self, A: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂b = H⁻¹Aᵀ diag(s⁻²); ∂y/∂A by differentiating Aᵀs⁻¹ = 0."""
        s = b - A @ y
        H = A.T @ torch.diag(s**-2) @ A
        wrt_b = torch.linalg.solve(H, A.T @ torch.diag(s**-2))
        # d(Aᵀs⁻¹) = dAᵀ s⁻¹ + Aᵀ diag(s⁻²)(dA y + A dy) − … = 0 for b fixed.
        n = len(y)
        eye = torch.eye(n, dtype=A.dtype)
        direct = torch.einsum("kj,i->kij", eye, 1 / s)
        through = torch.einsum("ik,i,j->kij", A, s**-2, y)
        wrt_A = -torch.linalg.solve(H, (direct + through).reshape(n, -1)).reshape(n, *A.shape)
        return wrt_A, wrt_b

    def sample_inputs(self) -> tuple[Any, ...]:
        """A box in R² cut by two random half-planes."""
        box = torch.cat([torch.eye(2), -torch.eye(2)]).double()
        A = torch.cat([box, torch.randn(2, 2, dtype=torch.float64)])
        return A, 1 + torch.rand(6, dtype=torch.float64)


class Ridge(KnownProblem):
    """min ½‖X w − t‖²/n + ½λ‖w‖²: (XᵀX + nλI) w = Xᵀt, with respect to t and λ."""

    input_dims = (None, 1, 0)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(9)
        self.X = torch.randn(6, 3, generator=generator, dtype=torch.float64)

    def objective(self, _: None, t: Tensor, lam: Tensor, y: Tensor) -> Tensor:
        """½‖X w − t‖²/n + ½λ‖w‖²."""
        return ((self.X @ y - t) ** 2).sum() / (2 * len(t)) + lam / 2 * (y**2).sum()

    def solve(self, _: None, t: Tensor, lam: Tensor) -> Tensor:
        """The normal equations."""
        return torch.linalg.solve(self._matrix(t, lam), self.X.T @ t)

    def jacobians(self, _: None, t: Tensor, lam: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """dw/dt = (XᵀX + nλI)⁻¹Xᵀ, dw/dλ = −n (XᵀX + nλI)⁻¹ w."""
        matrix = self._matrix(t, lam)
        return torch.linalg.solve(matrix, self.X.T), -len(t) * torch.linalg.solve(matrix, y)

    def sample_inputs(self) -> tuple[Any, ...]:
        """t normal, λ in [0.1, 1.1]."""
        return None, torch.randn(6, dtype=torch.float64), 0.1 + torch.rand((), dtype=torch.float64)

    def _matrix(self, t: Tensor, lam: Tensor) -> Tensor:
        return self.X.T @ self.X + len(t) * lam * torch.eye(self.X.shape[1], dtype=t.dtype)


class EqualityQP(KnownProblem):
    """min ½yᵀQy + cᵀy, y₁ + y₂ = b, Q = [[4,1],[1,2]]; at c = (1,1), b = 1: y = (¼,¾), ν = 2.75."""

    input_dims = (1, 0)

    def objective(self, c: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """½yᵀQy + cᵀy."""
        return y @ self._Q(y) @ y / 2 + c @ y

    def equality_constraints(self, c: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """y₁ + y₂ − b."""
        return y.sum() - b

    def initial_point(self, c: Tensor, b: Tensor) -> Tensor:
        """The origin."""
        return torch.zeros_like(c)

    def jacobians(self, c: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """∂y/∂c = −¼[[1,−1],[−1,1]], ∂y/∂b = (¼,¾)."""
        wrt_c = torch.tensor([[-0.25, 0.25], [0.25, -0.25]], dtype=c.dtype)
        return wrt_c, torch.tensor([0.25, 0.75], dtype=c.dtype)

    def sample_inputs(self) -> tuple[Any, ...]:
        """c and b normal."""
        return torch.randn(2, dtype=torch.float64), torch.randn((), dtype=torch.float64)

    @staticmethod
    def _Q(like: Tensor) -> Tensor:
        return torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=like.dtype, device=like.device)


class AffineConstraint(KnownProblem):
    """min ½‖y−x‖², 1ᵀy = 1: y = x + (1 − 1ᵀx)/m, J = I − 11ᵀ/m."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y−x‖²."""
        return ((y - x) ** 2).sum() / 2

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """1ᵀy − 1."""
        return y.sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        """The projection."""
        return x + (1 - x.sum()) / len(x)

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """I − 11ᵀ/m."""
        return (torch.eye(len(x), dtype=x.dtype) - 1 / len(x),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x normal in R⁴."""
        return (torch.randn(4, dtype=torch.float64),)


class SingularHessian(KnownProblem):
    """min ½(y₁−x₁)² s.t. y₂ = x₂: H is singular, the KKT system is not; y = x, J = I."""

    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½(y₁−x₁)²."""
        return (y[0] - x[0]) ** 2 / 2

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """y₂ − x₂."""
        return y[1] - x[1]

    def solve(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()

    def jacobians(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """I."""
        return (torch.eye(2, dtype=x.dtype),)

    def sample_inputs(self) -> tuple[Any, ...]:
        """x normal in R²."""
        return (torch.randn(2, dtype=torch.float64),)


class RepeatedConstraint(SingularHessian):
    """The same with its constraint written twice: rank-deficient, and J = I all the same."""

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """(y₂ − x₂, 2(y₂ − x₂))."""
        return torch.stack([y[1] - x[1], 2 * (y[1] - x[1])])
