"""Problems for the sweep that the bank cannot hold: on the plugins' manifolds, and of other makes."""

import torch
from ddnkit_etf import NearestETF
from ddnkit_etf.simplex import reduce
from ddnkit_manifolds import Sphere, Stiefel
from ddnkit_manifolds import testing as on_manifolds

import ddnkit
from ddnkit import testing
from ddnkit.testing.matrices import polar_factor, polar_jacobian


class QuadraticOnSphere(testing.ClosedFormProblem):
    """min ½‖y‖² − xᵀy over the manifold S³: y = x/‖x‖, J = (I − yyᵀ)/‖x‖."""

    manifold = Sphere()
    input_dims = (1,)

    @property
    def label(self):
        return "QuadraticOnSphere(manifold)"

    def objective(self, x, y):
        return (y**2).sum() / 2 - x @ y

    def initial_point(self, x):
        return torch.ones_like(x) / len(x) ** 0.5

    def answer(self, x):
        return x / x.norm()

    def jacobians(self, x, y):
        return ((torch.eye(len(x), dtype=x.dtype) - torch.outer(y, y)) / x.norm(),)

    def sample_inputs(self):
        return (torch.randn(4, dtype=torch.float64),)


class SphereCutByPlane(testing.ClosedFormProblem):
    """max xᵀy over the manifold S³ and aᵀy = b: constraints of a manifold and others together.

    y = p + ρ q/‖q‖ with p = ab/‖a‖², q = x − a(aᵀx)/‖a‖², ρ² = 1 − ‖p‖². J by differentiating that.
    """

    manifold = Sphere()
    input_dims = (1, 1, 0)

    def objective(self, x, a, b, y):
        return -(x @ y)

    def equality_constraints(self, x, a, b, y):
        return a @ y - b

    def initial_point(self, x, a, b):
        return self.answer(x, a, b).round(decimals=1)

    def answer(self, x, a, b):
        p, q = a * b / (a @ a), x - a * (a @ x) / (a @ a)
        return p + (1 - p @ p).sqrt() * q / q.norm()

    def jacobians(self, x, a, b, y):
        return torch.func.jacrev(self.answer, argnums=(0, 1, 2))(x, a, b)

    def sample_inputs(self):
        x, a = torch.randn(2, 4, dtype=torch.float64)
        return x, a, a.norm() * (torch.rand((), dtype=torch.float64) - 0.5)


class ProcrustesOnStiefel(testing.ClosedFormProblem):
    """max tr(PᵀY) over the manifold St(d, C)."""

    manifold = Stiefel()
    input_dims = (2,)

    def __init__(self, case, d, C):
        self.case, self.size = case, (d, C)
        self.differentiable_solve = case != "equal"

    @property
    def label(self):
        d, C = self.size
        return f"ProcrustesOnStiefel({self.case}, {d}×{C})"

    def objective(self, Y, y):
        return -(y * Y).sum()

    def initial_point(self, Y):
        return torch.eye(*self.size, dtype=Y.dtype)

    def answer(self, Y):
        return polar_factor(Y)

    def jacobians(self, Y, y):
        return (polar_jacobian(Y),)

    def sample_inputs(self):
        Y = torch.randn(*self.size, dtype=torch.float64)
        if self.case == "equal":
            return (1.5 * polar_factor(Y),)
        # Away from det Y = 0, where the polar factor jumps if d = C.
        return (Y + polar_factor(Y) / 2,)


class BrockettOnStiefel(testing.KnownProblem):
    """Brockett's problem over the manifold, solved by Newton's method."""

    analytic = False
    manifold = Stiefel()
    input_dims = (2, 2)

    def objective(self, A, B, y):
        N = torch.arange(y.shape[-1], 0, -1, dtype=y.dtype)
        return (y * (A @ y) * N).sum() - (B * y).sum()

    def initial_point(self, A, B):
        return polar_factor(B)

    def sample_inputs(self):
        return testing.Brockett().sample_inputs()


class KnownNearestETF(NearestETF, testing.KnownProblem):
    """ddnkit_etf's node, in plain and reduced form: U = polar(A), A = 2HM̃ + δP; U E = polar(A E).

    Cases are those of `testing.NearestSimplexETF`, and "d = C − 1", reduced alone.
    """

    well_conditioned = False

    def __init__(self, case, *, reduced=False, delta=1e-3):
        super().__init__(delta, reduced=reduced)
        self.case = case

    @property
    def label(self):
        form = ", reduced" if self.reduced else ""
        return f"NearestETF({self.case}{form}{'' if self.delta else ', δ = 0'})"

    def jacobians(self, H, P, y):
        C = H.shape[-1]
        scale = 2 / (C - 1) ** 0.5
        X = scale * H if P is None else scale * H + self.delta * P
        if self.reduced:
            E = reduce(torch.eye(C, dtype=H.dtype))
            wrt_X = torch.einsum("kcil,jl->kcij", polar_jacobian(X @ E), E)
            wrt_H = scale * wrt_X
        else:
            centring = torch.eye(C, dtype=H.dtype) - 1 / C
            wrt_X = polar_jacobian(X - scale * H.mean(dim=1, keepdim=True))
            wrt_H = scale * wrt_X @ centring
        return (wrt_H,) if P is None else (wrt_H, self.delta * wrt_X)

    def sample_inputs(self):
        if self.case == "d = C − 1":
            H, P = torch.randn(2, 3, 4, dtype=torch.float64)
            return H / H.norm(), polar_factor(P)
        H, P = testing.NearestSimplexETF(self.case).sample_inputs()
        return H, P if self.delta else None


class PairOfParts(testing.KnownProblem):
    """min ½‖u − a‖² + ¼v⁴ + ½v² − vs over y = (u, v), u (2,) and v a number, Σu + v = 1, by Newton's method.

    u = a + ν and v³ + v = s + ν, so that J follows from one equation for dν.
    """

    input_dims = (1, 0)

    def objective(self, a, s, y):
        u, v = y
        return ((u - a) ** 2).sum() / 2 + v**4 / 4 + v**2 / 2 - v * s

    def equality_constraints(self, a, s, y):
        u, v = y
        return u.sum() + v - 1

    def initial_point(self, a, s):
        return torch.zeros_like(a), torch.ones_like(s)

    def jacobians(self, a, s, y):
        # dν(2 + k) = −Σda − k ds with k = 1/(3v² + 1).
        k = 1 / (3 * y[1] ** 2 + 1)
        nu_a = torch.full_like(a, -1 / (2 + k))
        nu_s = -k / (2 + k)
        wrt_a = torch.cat([torch.eye(2, dtype=a.dtype) + nu_a, (k * nu_a).unsqueeze(0)])
        wrt_s = torch.stack([nu_s, nu_s, k * (1 + nu_s)])
        return wrt_a, wrt_s

    def sample_inputs(self):
        return torch.randn(2, dtype=torch.float64), torch.randn((), dtype=torch.float64)


class EquilibriumOfParts(ddnkit.FixedPointNode, testing.KnownProblem):
    """p = tanh(a q + x), q = ½ sin p over y = {"p", "q"}: a fixed point of several parts."""

    input_dims = (0, 1)

    def fixed_point(self, a, x, y):
        return {"p": torch.tanh(a * y["q"] + x), "q": y["p"].sin() / 2}

    def initial_point(self, a, x):
        return {"p": torch.zeros_like(x), "q": torch.zeros_like(x)}

    def jacobians(self, a, x, y):
        # dp = D(a dq + q da + dx), dq = E dp with D = 1 − p², E = ½ cos p, entry by entry.
        D, E = 1 - y["p"] ** 2, y["p"].cos() / 2
        S = D / (1 - a * D * E)
        wrt_x = torch.cat([torch.diag(S), torch.diag(E * S)])
        return torch.cat([S * y["q"], E * S * y["q"]]), wrt_x

    def sample_inputs(self):
        return torch.rand((), dtype=torch.float64), torch.randn(3, dtype=torch.float64)


class PartsWithAdjoint(testing.TwoPartQP):
    """`TwoPartQP` with an adjoint of its own, which is given parts."""

    def adjoint(self, a, B, w, c, y, v):
        p, q = a.numel(), B.numel()
        s = p + q / w
        nu = y["u"][0] - a[0]
        along = v["u"].sum() + v["V"].sum() / w  # vᵀe
        wrt_w = nu * q / (s * w**2) * along - nu / w**2 * v["V"].sum()
        return v["u"] - along / s, v["V"] - along / s, wrt_w, along / s


class PenaltyOfModule(torch.nn.Module, testing.KnownProblem):
    """min ½‖y − x‖² + ½e^θ‖y‖² + ¼‖y‖⁴, θ a parameter of the node, which is a module itself.

    ky = x with k = 1 + e^θ + ‖y‖²:  (kI + 2yyᵀ) dy = dx − e^θ y dθ.
    """

    input_dims = (1,)

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

    def objective(self, x, y):
        square = (y**2).sum()
        return ((y - x) ** 2).sum() / 2 + self.theta.exp() * square / 2 + square**2 / 4

    def initial_point(self, x):
        return x / 2

    def jacobians(self, x, y):
        e, n = self.theta.detach().exp(), len(y)
        k = 1 + e + y @ y
        return (torch.linalg.inv(k * torch.eye(n, dtype=y.dtype) + 2 * torch.outer(y, y)),)

    def parameter_jacobians(self, x, y):
        (wrt_x,) = self.jacobians(x, y)
        return {"theta": -self.theta.detach().exp() * wrt_x @ y}

    def sample_inputs(self):
        return (torch.randn(3, dtype=torch.float64),)


def more_problems():
    """One of each."""
    return [
        QuadraticOnSphere(),
        SphereCutByPlane(),
        ProcrustesOnStiefel("generic", 5, 3),
        ProcrustesOnStiefel("equal", 5, 3),
        ProcrustesOnStiefel("generic", 3, 3),
        BrockettOnStiefel(),
        KnownNearestETF("generic"),
        KnownNearestETF("missing"),
        KnownNearestETF("collapsed"),
        KnownNearestETF("square"),
        KnownNearestETF("generic", reduced=True),
        KnownNearestETF("missing", reduced=True),
        KnownNearestETF("collapsed", reduced=True),
        KnownNearestETF("collapsed", reduced=True, delta=0),
        KnownNearestETF("square", reduced=True),
        KnownNearestETF("d = C − 1", reduced=True),
        KnownNearestETF("generic", reduced=True, delta=0),
        PairOfParts(),
        EquilibriumOfParts(),
        PartsWithAdjoint(),
        PenaltyOfModule(),
        *on_manifolds.bank(),
    ]
