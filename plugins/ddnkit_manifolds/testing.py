"""Problems with known derivatives on every manifold, for `ddnkit.testing.sweep`.

    rows = ddnkit.testing.sweep(ddnkit_manifolds.testing.bank())

Where a solution has a formula, its Jacobian is that of the formula, by torch; formulas by eigenvectors and
singular vectors have it on paper. What a quotient leaves open is not looked at: see `KnownProblem.observed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev

from ddnkit.testing import ClosedFormProblem, KnownProblem
from ddnkit.testing.matrices import polar_factor, polar_jacobian
from ddnkit.testing.parts import join_parts

from .copies import Copies
from .low_rank import FixedRank
from .open_sets import Birkhoff, Euclidean, Positive, PositiveSimplex
from .orthonormal import Grassmann, SpecialEuclidean, SpecialOrthogonal, Stiefel
from .product import Product
from .spheres import Hyperbolic, Oblique, Sphere
from .stereographic import Stereographic
from .symmetric import SPD


class _ByFormula(ClosedFormProblem):
    """A problem whose formula torch can differentiate as often as it is asked to."""

    def jacobians(self, *xs: Any, y: Any, **named: Any) -> tuple[Tensor, ...]:
        """Of the formula."""
        found = jacrev(
            lambda *xs: join_parts(self.observed(self.answer(*xs))), argnums=tuple(range(len(xs)))
        )(*xs)
        assert isinstance(found, tuple)
        return found


# -- spheres ---------------------------------------------------------------------------------------


class NearestUnitVector(_ByFormula):
    """min ½‖y − x‖² on the sphere: x/‖x‖."""

    manifold = Sphere()
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return (y - x).square().sum() / 2

    def initial_point(self, x: Tensor) -> Tensor:
        """All entries equal."""
        return torch.ones_like(x) / len(x) ** 0.5

    def answer(self, x: Tensor) -> Tensor:
        """x/‖x‖."""
        return x / x.norm()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (4,) normal."""
        return (torch.randn(4, dtype=torch.float64),)


class RayleighQuotient(ClosedFormProblem):
    """min yᵀAy on the sphere, seen as yyᵀ: the projector on the eigenvector of the least eigenvalue."""

    manifold = Sphere()
    input_dims = (2,)
    regular_hessian = False

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """yᵀAy."""
        return y @ A @ y

    def initial_point(self, A: Tensor) -> Tensor:
        """The answer, rounded."""
        return self.answer(A).round(decimals=1)

    def observed(self, y: Tensor) -> Tensor:
        """yyᵀ."""
        return y.unsqueeze(-1) * y.unsqueeze(-2)

    def answer(self, A: Tensor) -> Tensor:
        """An eigenvector."""
        return torch.linalg.eigh(_symmetric(A))[1][:, 0]

    def jacobians(self, A: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Of the projector."""
        return (_of_projector(A, 1),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (4, 4) with eigenvalues 1, 2, 3, 4, and a skew part that does not matter."""
        return (_with_eigenvalues(4),)


class NearestUnitVectorAbove(_ByFormula):
    """min ½‖y − x‖² on the sphere and y ≥ 0, for an x with two negative entries: x₊/‖x₊‖."""

    manifold = Sphere()
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return (y - x).square().sum() / 2

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """−y."""
        return -y

    def initial_point(self, x: Tensor) -> Tensor:
        """All entries equal."""
        return torch.ones_like(x) / len(x) ** 0.5

    def answer(self, x: Tensor) -> Tensor:
        """x₊/‖x₊‖."""
        above = x.clamp_min(0)
        return above / above.norm()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (5,) with entries from ½ to 3/2, two of them negative."""
        x = 0.5 + torch.rand(5, dtype=torch.float64)
        return (x * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64),)


class NearestUnitColumns(_ByFormula):
    """max tr(AᵀY) over matrices with unit columns: each column of A divided by its length."""

    manifold = Oblique()
    input_dims = (2,)

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """−tr(AᵀY)."""
        return -(A * y).sum()

    def initial_point(self, A: Tensor) -> Tensor:
        """All entries equal."""
        return torch.ones_like(A) / len(A) ** 0.5

    def answer(self, A: Tensor) -> Tensor:
        """aⱼ/‖aⱼ‖."""
        return A / A.norm(dim=0)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (3, 2) normal."""
        return (torch.randn(3, 2, dtype=torch.float64),)


class HyperbolicMean(_ByFormula):
    """min −Σₖ⟨xₖ, y⟩ in hyperbolic space, for points x above the rows of X: y = Σx/√−⟨Σx, Σx⟩."""

    manifold = Hyperbolic()
    input_dims = (2,)

    def objective(self, X: Tensor, y: Tensor) -> Tensor:
        """−Σₖ⟨xₖ, y⟩."""
        total = self.manifold.project(torch.nn.functional.pad(X, (1, 0))).sum(dim=0)
        return total[0] * y[0] - total[1:] @ y[1:]

    def initial_point(self, X: Tensor) -> Tensor:
        """(1, 0, 0, 0)."""
        return torch.eye(4, dtype=X.dtype)[0]

    def answer(self, X: Tensor) -> Tensor:
        """Σx/√−⟨Σx, Σx⟩."""
        total = self.manifold.project(torch.nn.functional.pad(X, (1, 0))).sum(dim=0)
        return total / (total[0] ** 2 - total[1:] @ total[1:]).sqrt()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """X (2, 3) normal."""
        return (torch.randn(2, 3, dtype=torch.float64),)


# -- orthonormal columns ---------------------------------------------------------------------------


class PolarFactor(ClosedFormProblem):
    """max tr(AᵀY) over matrices with orthonormal columns: Procrustes' problem."""

    manifold = Stiefel()
    input_dims = (2,)

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """−tr(AᵀY)."""
        return -(A * y).sum()

    def initial_point(self, A: Tensor) -> Tensor:
        """The first columns of the identity."""
        return torch.eye(*A.shape, dtype=A.dtype)

    def answer(self, A: Tensor) -> Tensor:
        """The polar factor."""
        return polar_factor(A)

    def jacobians(self, A: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Of the polar factor."""
        return (polar_jacobian(A),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (4, 2)."""
        A = torch.randn(4, 2, dtype=torch.float64)
        return (A + polar_factor(A) / 2,)


class LeadingSubspace(ClosedFormProblem):
    """max tr(UᵀAU) over subspaces: the eigenvectors of the two largest eigenvalues span it; seen as UUᵀ."""

    manifold = Grassmann()
    input_dims = (2,)
    regular_hessian = False

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """−tr(UᵀAU)."""
        return -(y * (A @ y)).sum()

    def initial_point(self, A: Tensor) -> Tensor:
        """The answer, rounded."""
        return self.answer(A).round(decimals=1)

    def observed(self, y: Tensor) -> Tensor:
        """UUᵀ."""
        return y @ y.mT

    def answer(self, A: Tensor) -> Tensor:
        """A basis of the subspace."""
        return torch.linalg.eigh(_symmetric(A))[1][:, -2:]

    def jacobians(self, A: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Of the projector: less that on the two others."""
        return (-_of_projector(A, len(A) - 2),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (4, 4) with eigenvalues 1, 2, 3, 4, and a skew part that does not matter."""
        return (_with_eigenvalues(4),)


class SubspaceAcross(LeadingSubspace):
    """The same at right angles to a = (1, 1, −½, 0): Uᵀa = 0 for every basis U of a subspace, or for none."""

    def equality_constraints(self, A: Tensor, y: Tensor) -> Tensor:
        """Uᵀa."""
        return y[0] + y[1] - y[2] / 2

    def _complement(self, A: Tensor) -> Tensor:
        across = A.new_tensor([1.0, 1.0, -0.5, 0.0])
        return torch.linalg.svd(across.unsqueeze(0))[2][1:].mT

    def answer(self, A: Tensor) -> Tensor:
        """A basis of the subspace."""
        Q = self._complement(A)
        return Q @ torch.linalg.eigh(_symmetric(Q.mT @ A @ Q))[1][:, -2:]

    def jacobians(self, A: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Of the projector in the complement of the direction."""
        Q = self._complement(A)
        inner = -_of_projector(Q.mT @ A @ Q, 1)
        return (torch.einsum("ia,jb,abcd,kc,ld->ijkl", Q, Q, inner, Q, Q),)


class NearestRotation(_ByFormula):
    """min ½‖Y − A‖² over rotations of space (Wahba's problem), for an A with a negative determinant too."""

    manifold = SpecialOrthogonal()
    input_dims = (2,)

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """½‖Y − A‖²."""
        return (y - A).square().sum() / 2

    def initial_point(self, A: Tensor) -> Tensor:
        """The answer, rounded."""
        return self.answer(A).round(decimals=1)

    def answer(self, A: Tensor) -> Tensor:
        """U diag(1, 1, ±1) Vᵀ."""
        return _nearest_rotation(A)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (3, 3) with singular values about 3, 2, 1, of either sign of the determinant."""
        U, V = (polar_factor(torch.randn(3, 3, dtype=torch.float64)) for _ in range(2))
        return (U @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ V.mT,)


_POINTS = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0], [1.0, 1, 1], [-1, 0.5, 2]]).double()


class Registration(_ByFormula):
    """min ½Σₖ‖R pₖ + t − qₖ‖² over rigid motions [R | t] of five points p: Kabsch's formula."""

    manifold = SpecialEuclidean()
    input_dims = (2,)

    def objective(self, Q: Tensor, y: Tensor) -> Tensor:
        """½Σₖ‖R pₖ + t − qₖ‖²."""
        moved = _POINTS.to(Q) @ y[:, :-1].mT + y[:, -1]
        return (moved - Q).square().sum() / 2

    def initial_point(self, Q: Tensor) -> Tensor:
        """No motion."""
        return torch.eye(3, 4, dtype=Q.dtype)

    def answer(self, Q: Tensor) -> Tensor:
        """The nearest rotation to Σ(q − q̄)(p − p̄)ᵀ, and t = q̄ − R p̄."""
        P = _POINTS.to(Q)
        R = _nearest_rotation((Q - Q.mean(dim=0)).mT @ (P - P.mean(dim=0)))
        return torch.cat([R, (Q.mean(dim=0) - R @ P.mean(dim=0)).unsqueeze(-1)], dim=-1)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """The points moved, with noise."""
        R = _nearest_rotation(torch.randn(3, 3, dtype=torch.float64))
        t, noise = torch.randn(3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        return (_POINTS @ R.mT + t + noise / 10,)


# -- other matrices --------------------------------------------------------------------------------


class SteinLoss(_ByFormula):
    """min tr(Y⁻¹A) + log det Y over positive definite matrices: the symmetric part of A."""

    manifold = SPD()
    input_dims = (2,)

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """tr(Y⁻¹A) + log det Y."""
        return torch.linalg.solve(y, _symmetric(A)).trace() + torch.logdet(y)

    def initial_point(self, A: Tensor) -> Tensor:
        """The identity."""
        return torch.eye(len(A), dtype=A.dtype)

    def answer(self, A: Tensor) -> Tensor:
        """½(A + Aᵀ)."""
        return _symmetric(A)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (3, 3) with eigenvalues 1, 2, 3, and a skew part that does not matter."""
        return (_with_eigenvalues(3),)


class GeometricMean(KnownProblem):
    """min tr(A⁻¹Y) + tr(Y⁻¹B) over positive definite matrices, as a mean of A and B: Y A⁻¹Y = B.

    By differentiating that, dY is the solution of the linear equation
        dY A⁻¹Y + Y A⁻¹dY = dB + Y A⁻¹dA A⁻¹Y.
    """

    manifold = SPD("log_euclidean")
    input_dims = (2, 2)

    def objective(self, A: Tensor, B: Tensor, y: Tensor) -> Tensor:
        """tr(A⁻¹Y) + tr(Y⁻¹B)."""
        return (
            torch.linalg.solve(_symmetric(A), y).trace()
            + torch.linalg.solve(y, _symmetric(B)).trace()
        )

    def initial_point(self, A: Tensor, B: Tensor) -> Tensor:
        """The arithmetic mean."""
        return (_symmetric(A) + _symmetric(B)) / 2

    def solve(self, A: Tensor, B: Tensor) -> Tensor:
        """A^½(A^−½BA^−½)^½A^½."""
        root = _root(_symmetric(A))
        inverse = torch.linalg.inv(root)
        return _symmetric(root @ _root(_symmetric(inverse @ _symmetric(B) @ inverse)) @ root)

    def jacobians(self, A: Tensor, B: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """By the linear equation."""
        n, X = len(A), torch.linalg.solve(_symmetric(A), y)  # A⁻¹Y
        eye = torch.eye(n, dtype=A.dtype)
        # Row-major: vec(P Z Q) = (P ⊗ Qᵀ) vec Z.
        left = torch.kron(eye, X.mT) + torch.kron(X.mT, eye)
        both = torch.eye(n * n, dtype=A.dtype).reshape(n, n, n, n)
        half = ((both + both.transpose(0, 1)) / 2).reshape(n * n, n * n)
        wrt_B = torch.linalg.solve(left, half)
        wrt_A = torch.linalg.solve(left, torch.kron(X.mT, X.mT) @ half)
        return wrt_A.reshape(n, n, n, n), wrt_B.reshape(n, n, n, n)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A, B (3, 3) with eigenvalues 1, 2, 3."""
        return _with_eigenvalues(3), _with_eigenvalues(3)


class TruncatedSVD(ClosedFormProblem):
    """min ½‖LRᵀ − A‖² over matrices of rank 2: the largest singular values and their vectors; seen as LRᵀ.

    With P, Q the projectors on the left and right singular vectors, X = PA and dX = P dA + dP A.
    """

    manifold = FixedRank(4)
    input_dims = (2,)
    regular_hessian = False

    def objective(self, A: Tensor, y: Tensor) -> Tensor:
        """½‖LRᵀ − A‖²."""
        return (self.manifold.matrix(y) - A).square().sum() / 2

    def initial_point(self, A: Tensor) -> Tensor:
        """The answer, rounded."""
        return self.answer(A).round(decimals=1)

    def observed(self, y: Tensor) -> Tensor:
        """LRᵀ."""
        return self.manifold.matrix(y)

    def answer(self, A: Tensor) -> Tensor:
        """Balanced factors."""
        return self.manifold.of_matrix(A, 2)

    def jacobians(self, A: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """P is the projector of AAᵀ."""
        S = A @ A.mT
        of_P = -_of_projector(S, len(S) - 2)
        U = torch.linalg.eigh(S)[1][:, -2:]
        eye = torch.eye(A.shape[1], dtype=A.dtype)
        # d(AAᵀ)ₖₗ/dAₖⱼ = Aₗⱼ, and the same for the other factor.
        by_A = torch.einsum("iskl,lj->iskj", of_P + of_P.mT, A)
        first = torch.einsum("ik,jl->ijkl", U @ U.mT, eye)
        return (first + torch.einsum("iskl,sj->ijkl", by_A, A),)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """A (4, 3) with singular values 4, 2, 1."""
        U, V = (polar_factor(torch.randn(n, 3, dtype=torch.float64)) for n in (4, 3))
        return (U @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ V.mT,)


class SoftmaxOnSimplex(_ByFormula):
    """min Σ yₖ log yₖ − xᵀy over probabilities: softmax(x)."""

    manifold = PositiveSimplex()
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ yₖ log yₖ − xᵀy."""
        return (y * y.log()).sum() - x @ y

    def initial_point(self, x: Tensor) -> Tensor:
        """All equal."""
        return torch.full_like(x, 1 / len(x))

    def answer(self, x: Tensor) -> Tensor:
        """softmax(x)."""
        return torch.softmax(x, -1)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (4,) normal."""
        return (torch.randn(4, dtype=torch.float64),)


class Exponential(_ByFormula):
    """min Σ yₖ (log yₖ − 1) − xᵀy over positive y: exp(x)."""

    manifold = Positive()
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ yₖ (log yₖ − 1) − xᵀy."""
        return (y * (y.log() - 1)).sum() - x @ y

    def initial_point(self, x: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(x)

    def answer(self, x: Tensor) -> Tensor:
        """exp(x)."""
        return x.exp()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (3,) normal."""
        return (torch.randn(3, dtype=torch.float64),)


class PointOfBall(_ByFormula):
    """min ½‖y − x‖² over the ball model of hyperbolic space, for x in it: x."""

    manifold = Stereographic()
    input_dims = (1,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return (y - x).square().sum() / 2

    def initial_point(self, x: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(x)

    def answer(self, x: Tensor) -> Tensor:
        """x."""
        return x.clone()

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (3,) of length ½ at most."""
        x = torch.randn(3, dtype=torch.float64)
        return (x / (1 + x.norm()) / 2,)


class EntropicPairs(_ByFormula):
    """min Σ yᵢⱼ log yᵢⱼ − ⟨X, y⟩ over doubly stochastic 2×2 matrices.

    They have one freedom, p = y₁₁ = y₂₂, for which 2 log(p/(1 − p)) = x₁₁ + x₂₂ − x₁₂ − x₂₁.
    """

    manifold = Birkhoff()
    input_dims = (2,)

    def objective(self, X: Tensor, y: Tensor) -> Tensor:
        """Σ yᵢⱼ log yᵢⱼ − ⟨X, y⟩."""
        return (y * y.log()).sum() - (X * y).sum()

    def initial_point(self, X: Tensor) -> Tensor:
        """All equal."""
        return torch.full_like(X, 0.5)

    def answer(self, X: Tensor) -> Tensor:
        """p by the logistic function."""
        signs = X.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
        return torch.sigmoid(signs * (signs * X).sum(dim=(-2, -1), keepdim=True) / 2)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """X (2, 2) normal."""
        return (torch.randn(2, 2, dtype=torch.float64),)


class NearestUnitRows(_ByFormula):
    """min ½‖y − x‖² over matrices with rows of length 1, as copies of a sphere: each row over its length."""

    manifold = Copies(Sphere())
    input_dims = (2,)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return (y - x).square().sum() / 2

    def initial_point(self, x: Tensor) -> Tensor:
        """The answer."""
        return self.answer(x)

    def answer(self, x: Tensor) -> Tensor:
        """Each row over its length."""
        return x / x.norm(dim=-1, keepdim=True)

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """x (2, 3) normal."""
        return (torch.randn(2, 3, dtype=torch.float64),)


# -- products --------------------------------------------------------------------------------------


class Pose(Registration):
    """`Registration` of y = (R, t)."""

    manifold = Product(SpecialOrthogonal(), Euclidean())  # type: ignore[assignment]

    def objective(self, Q: Tensor, y: Any) -> Tensor:
        """½Σₖ‖R pₖ + t − qₖ‖²."""
        R, t = y
        return (_POINTS.to(Q) @ R.mT + t - Q).square().sum() / 2

    def initial_point(self, Q: Tensor) -> Any:
        """No motion."""
        return torch.eye(3, dtype=Q.dtype), torch.zeros(3, dtype=Q.dtype)

    def answer(self, Q: Tensor) -> Any:
        """Kabsch's."""
        both = super().answer(Q)
        return both[:, :-1], both[:, -1]


class PoseAround(Pose):
    """The same of points around their mean, y a dictionary: R as it was, and t = q̄."""

    manifold = Product(SpecialOrthogonal(), Euclidean())

    def objective(self, Q: Tensor, y: Any) -> Tensor:
        """½Σₖ‖R(pₖ − p̄) + t − qₖ‖²."""
        P = _POINTS.to(Q)
        return ((P - P.mean(dim=0)) @ y["R"].mT + y["t"] - Q).square().sum() / 2

    def initial_point(self, Q: Tensor) -> Any:
        """No motion."""
        return {"R": torch.eye(3, dtype=Q.dtype), "t": torch.zeros(3, dtype=Q.dtype)}

    def answer(self, Q: Tensor) -> Any:
        """R, and q̄."""
        return {"R": super().answer(Q)[0], "t": Q.mean(dim=0)}


class PoseWithin(PoseAround):
    """The same with ‖t‖ ≤ 1, which is active: t = q̄/‖q̄‖."""

    def inequality_constraints(self, Q: Tensor, y: Any) -> Tensor:
        """‖t‖² − 1."""
        return (y["t"].square().sum() - 1).reshape(1)

    def answer(self, Q: Tensor) -> Any:
        """R, and q̄/‖q̄‖."""
        found = super().answer(Q)
        return {"R": found["R"], "t": found["t"] / found["t"].norm()}

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Far enough for the bound."""
        (Q,) = super().sample_inputs()
        mean = Q.mean(dim=0)
        return (Q + mean * 2 / mean.norm(),)


class PoseThrough(PoseAround):
    """The same with Σt = 1: t = q̄ − ⅓(Σq̄ − 1)."""

    def equality_constraints(self, Q: Tensor, y: Any) -> Tensor:
        """Σt − 1."""
        return y["t"].sum() - 1

    def answer(self, Q: Tensor) -> Any:
        """R, and the nearest t."""
        found = super().answer(Q)
        return {"R": found["R"], "t": found["t"] - (found["t"].sum() - 1) / 3}


class SubspaceAndVector(ClosedFormProblem):
    """max tr(UᵀAU) + xᵀv over subspaces and unit vectors: a quotient beside a manifold; seen as (UUᵀ, v)."""

    manifold = Product(Grassmann(), Sphere())
    input_dims = (2, 1)
    regular_hessian = False
    _subspace, _vector = LeadingSubspace(), NearestUnitVector()

    def objective(self, A: Tensor, x: Tensor, y: Any) -> Tensor:
        """−tr(UᵀAU) − xᵀv."""
        return -(y[0] * (A @ y[0])).sum() - x @ y[1]

    def initial_point(self, A: Tensor, x: Tensor) -> Any:
        """Of each."""
        return self._subspace.initial_point(A), self._vector.initial_point(x)

    def observed(self, y: Any) -> Any:
        """(UUᵀ, v)."""
        return y[0] @ y[0].mT, y[1]

    def answer(self, A: Tensor, x: Tensor) -> Any:
        """Of each."""
        return self._subspace.answer(A), self._vector.answer(x)

    def jacobians(self, A: Tensor, x: Tensor, y: Any) -> tuple[Tensor, ...]:
        """Of each, and nothing of the other."""
        (of_U,) = self._subspace.jacobians(A, y=y[0])
        (of_v,) = self._vector.jacobians(x, y=y[1])
        n, k = len(of_U) ** 2, len(of_v)
        wrt_A = torch.cat([of_U.reshape(n, *A.shape), of_U.new_zeros(k, *A.shape)])
        return wrt_A, torch.cat([of_v.new_zeros(n, len(x)), of_v])

    def sample_inputs(self) -> tuple[Tensor, ...]:
        """Of each."""
        return *self._subspace.sample_inputs(), *self._vector.sample_inputs()


def bank() -> list[KnownProblem]:
    """One of each."""
    return [
        NearestUnitVector(),
        RayleighQuotient(),
        NearestUnitVectorAbove(),
        NearestUnitColumns(),
        HyperbolicMean(),
        PolarFactor(),
        LeadingSubspace(),
        SubspaceAcross(),
        NearestRotation(),
        Registration(),
        SteinLoss(),
        GeometricMean(),
        TruncatedSVD(),
        SoftmaxOnSimplex(),
        Exponential(),
        PointOfBall(),
        EntropicPairs(),
        NearestUnitRows(),
        Pose(),
        PoseAround(),
        PoseWithin(),
        PoseThrough(),
        SubspaceAndVector(),
    ]


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


def _with_eigenvalues(n: int) -> Tensor:
    Q = polar_factor(torch.randn(n, n, dtype=torch.float64))
    skew = torch.randn(n, n, dtype=torch.float64)
    return Q @ torch.diag(torch.arange(1.0, n + 1, dtype=torch.float64)) @ Q.mT + (skew - skew.mT)


def _of_projector(A: Tensor, count: int) -> Tensor:
    """The derivative (n, n, n, n) of the projector on eigenvectors of the ``count`` least eigenvalues λ of
    ½(A + Aᵀ): dP = Σᵢⱼ (vᵢvⱼᵀ + vⱼvᵢᵀ) vᵢᵀdA vⱼ / (λᵢ − λⱼ) for i among them and j not."""
    values, V = torch.linalg.eigh(_symmetric(A))
    inside, outside = V[:, :count], V[:, count:]
    gaps = 1 / (values[:count].unsqueeze(-1) - values[count:])
    one = torch.einsum("ai,bj,ij,ci,dj->abcd", inside, outside, gaps, inside, outside)
    both = one + one.transpose(0, 1)
    found: Tensor = (both + both.mT) / 2
    return found


def _nearest_rotation(A: Tensor) -> Tensor:
    """The trace of RᵀA at its largest. By U diag(1, …, ±1) Vᵀ, for distinct singular values."""
    U, _, V = torch.linalg.svd(A)
    sign = torch.linalg.det(U @ V).detach().sign()
    return torch.cat([U[:, :-1], U[:, -1:] * sign], dim=-1) @ V


def _root(A: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values.sqrt()) @ vectors.mT
