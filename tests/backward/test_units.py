"""The linear system of the way back in any units: entropies, transport, unknowns and constraints of any size.

References are solutions of the same system with 60 decimal digits.
"""

import warnings

import mpmath
import numpy as np
import pytest
import torch
from bounds import eps, rounding
from hypothesis import given, settings
from hypothesis import strategies as st

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.backward import Dense
from ddnkit.linalg import KKTInverse
from ddnkit.linalg.kkt import ONE_UNIT

FORMS = {
    "auto": "auto",
    "dense": "dense",
    "krylov": "krylov",
    "embedded_field": "embedded_field",
    "schur": Dense(schur=True),
}
DTYPES = st.sampled_from([torch.float64, torch.float32])
#: Promised of a gradient, in either.
PROMISED = {torch.float64: 1e-8, torch.float32: 1e-4}


def exact(x):
    """Numbers of 60 digits."""
    with mpmath.workdps(60):
        convert = np.vectorize(lambda value: mpmath.mpf(float(value)), otypes=[object])
        return convert(x.detach().double().numpy() if isinstance(x, torch.Tensor) else x)


def exact_solution(matrix, right):
    """By elimination, in 60 digits."""
    with mpmath.workdps(60):
        K = np.concatenate([matrix, right[:, None]], axis=1)
        for k in range(len(K)):
            pivot = max(range(k, len(K)), key=lambda i: abs(K[i, k]))
            K[[k, pivot]] = K[[pivot, k]]
            K[k] = K[k] / K[k, k]
            others = K[:, k].copy()
            others[k] = mpmath.mpf(0)
            K = K - others[:, None] * K[k][None]
        return K[:, -1]


def apart(found, right):
    """Relative difference of two lists of tensors, taken together."""
    found, right = (torch.cat([x.detach().double().flatten() for x in xs]) for xs in (found, right))
    return float((found - right).norm() / right.norm())


# -- entropies -------------------------------------------------------------------------------------


class Softmax(DeclarativeNode):
    input_dims = (1,)

    def objective(self, s, y):
        return -(s @ y) + (y * y.log()).sum()

    def equality_constraints(self, s, y):
        return y.sum() - 1

    def solve(self, s):
        return torch.softmax(s, -1)


SOFTMAX = {
    "form": st.sampled_from(list(FORMS)),
    "dtype": DTYPES,
    "scale": st.sampled_from([1, 5, 10, 20]),
    "policy": st.sampled_from(["raise", "nan", "mask"]),
    "certify": st.sampled_from(["fast", "full"]),
    "size": st.sampled_from([(8, 16), (1, 3), (2, 70)]),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=12, deadline=None)
@given(**SOFTMAX)
def test_softmax_at_any_scale(**drawn):
    check_softmax(**drawn)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(**SOFTMAX)
def test_more_of_softmax_at_any_scale(**drawn):
    check_softmax(**drawn)


def check_softmax(form, dtype, scale, policy, certify, size, seed):
    torch.manual_seed(seed)
    s = (scale * torch.randn(size, dtype=torch.float64)).to(dtype)
    # Of a probability that is 0, −y log y has no derivative: that is another case.
    s = s.clamp(min=s.amax(dim=-1, keepdim=True) - 80).requires_grad_()
    w = torch.randn(size[1], dtype=dtype)
    layer = DeclarativeLayer(Softmax(), backward=FORMS[form], policy=policy, certify=certify)
    (gradient,) = torch.autograd.grad(layer(s) @ w, s, torch.ones(size[0], dtype=dtype))
    wide = s.detach().double().requires_grad_()
    (right,) = torch.autograd.grad((torch.softmax(wide, -1) @ w.double()).sum(), wide)
    # Some roundings of each probability, in a sum of so many; the gradient may cancel in that sum. In
    # units of curvature 1 the system is of condition 1; up to a ratio of the curvatures 1/p of ONE_UNIT it is
    # solved in y's own, and then of that condition (in float32: in float64, which leaves nothing of it).
    p = torch.softmax(wide.detach(), -1)
    ratios = (p.amax(dim=-1) / p.amin(dim=-1)).tolist()
    for found, there, ratio in zip(gradient, right, ratios, strict=True):
        condition = ratio if dtype == torch.float64 and ratio <= ONE_UNIT else 1
        bound = rounding(dtype, 8 * size[1], size=float(w.norm()), condition=condition)
        assert float((found.double() - there).norm()) < bound
    assert layer.certificate.verdicts() == ["trusted"] * size[0]


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("certify", ["fast", "full"])
@pytest.mark.covering
def test_what_is_left_of_a_saturated_softmax_has_its_own_digits(form, dtype, certify):
    """The largest probability rounds to 1: its gradient is 1e-15 of what cancels in it."""
    s = torch.tensor([[0.0, -33, -36, -50], [-40, -34, 0, -41]], dtype=dtype, requires_grad=True)
    w = torch.tensor([-0.98, 0.64, -0.21, 1.3], dtype=dtype)
    layer = DeclarativeLayer(Softmax(), FORMS[form], policy="raise", certify=certify)
    (found,) = torch.autograd.grad((layer(s) @ w).sum(), s)
    with mpmath.workdps(60):
        for row, g in zip(exact(s), found, strict=True):
            p = [mpmath.exp(x) for x in row]
            p = [x / sum(p) for x in p]
            right = [p[i] * sum(p[j] * (w[i].item() - w[j].item()) for j in range(4))
                     for i in range(4)]  # fmt: skip
            right = torch.tensor([float(x) for x in right], dtype=torch.float64)
            assert apart([g], [right]) < PROMISED[dtype]
    assert layer.certificate.verdicts() == ["trusted"] * 2


class InOneUnit(DeclarativeNode):
    """min s ½(y − x)ᵀG(y − x)."""

    input_dims = (1, 0)

    def objective(self, x, s, y):
        G = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 4.0]], dtype=y.dtype)
        return s * ((y - x) @ (G @ (y - x)) / 2)

    def solve(self, x, s):
        return x.clone()


SQUARES_OVERFLOW = [
    *((torch.float64, size) for size in (1e-300, 1e-160, 1e160, 1e300)),
    *((torch.float32, size) for size in (1e-30, 1e30)),
]


@pytest.mark.parametrize("form", [*FORMS, "damped", "error"])
@pytest.mark.parametrize(("dtype", "size"), SQUARES_OVERFLOW)
def test_curvatures_whose_squares_overflow(form, dtype, size):
    form = FORMS[form] if form in FORMS else Dense(singular=form)
    layer = DeclarativeLayer(InOneUnit(), form, policy="raise")
    x = torch.tensor([[0.3, -1.2, 0.8], [1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    s = torch.tensor([size, 1.0], dtype=dtype)
    (found,) = torch.autograd.grad(layer(x, s).sum(), x)
    # Damping is inexact by design, by the square of 1e-6 times the condition, which is below 5.
    assert (found - 1).abs().max() < rounding(dtype, 9, condition=5) + 25e-12
    assert layer.certificate.verdicts() == ["trusted"] * 2


@pytest.mark.parametrize("form", [*FORMS, "damped", "error"])
def test_a_curvature_that_overflows_is_told_and_stops_no_other(form):
    form = FORMS[form] if form in FORMS else Dense(singular=form)
    layer = DeclarativeLayer(InOneUnit(), form, policy="nan")
    x = torch.tensor([[0.3, -1.2, 0.8], [1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([1.7e308, 1.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(layer(x, s).sum(), x)
    torch.testing.assert_close(found[1], torch.ones_like(found[1]))
    # Products with a vector may stay within the numbers, where the matrix does not.
    verdicts = layer.certificate.verdicts()
    assert verdicts == ["invalid", "trusted"] or (found - 1).abs().max() < rounding(found, 9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_float32_tensors_of_the_nodes_own_on_a_plane(form, seed):
    """The curvature is largest along the normal, where it does not count."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    Q = ((U * torch.logspace(0, -2, 4, dtype=torch.float64)) @ U.T).float()
    Q = (Q + Q.T) / 2
    unit, normal = (
        torch.tensor([22.0, 0.186, 0.045, 1.71]),
        torch.tensor([-4.3, -0.23, -0.04, 0.66]),
    )

    class OnPlane(DeclarativeNode):
        input_dims = (1, 0)

        def objective(self, a, r, y):
            z = unit * (y - a)
            return z @ (Q @ z) / 2

        def equality_constraints(self, a, r, y):
            return normal @ y - r

        def solve(self, a, r):
            return a.clone()

    a = torch.randn(1, 4, generator=generator)
    v = torch.randn(1, 4, generator=generator)
    r = a.double() @ normal.double()
    a, r = a.requires_grad_(), r.float().requires_grad_()
    layer = DeclarativeLayer(OnPlane(), FORMS[form], policy="raise", tolerance=1e-3)
    found = torch.autograd.grad(layer(a, r), [a, r], v)
    K = np.zeros((5, 5), dtype=object)
    K[:4, :4] = exact(unit)[:, None] * exact(Q) * exact(unit)[None]
    K[:4, 4] = K[4, :4] = exact(normal)
    solution = exact_solution(K, np.concatenate([exact(v)[0], [mpmath.mpf(0)]]))
    with mpmath.workdps(60):
        # As dy = da + N (dr − normal · da), with N the last column of K's inverse.
        of_r = solution[4]
        of_a = exact(v)[0] - of_r * exact(normal)
    right = [torch.tensor([float(x) for x in of_a]), torch.tensor([float(of_r)])]
    assert apart([found[0]], [right[0]]) < PROMISED[torch.float32]
    assert apart([found[1]], [right[1]]) < PROMISED[torch.float32]


# -- transport -------------------------------------------------------------------------------------


class Transport(DeclarativeNode):
    """min ⟨M, P⟩ + (1/γ) Σ P log P with row sums r and column sums c, at a plan that is given."""

    input_dims = (2, 1, 1)
    batched_solve = True

    def __init__(self, gamma, plan):
        self.gamma, self.plan = gamma, plan

    def objective(self, M, r, c, y):
        return (y * M).sum() + (y * y.log()).sum() / self.gamma

    def equality_constraints(self, M, r, c, y):
        return torch.cat([(y.sum(1) - r)[1:], y.sum(0) - c])

    def solve(self, M, r, c):
        return self.plan.to(M.dtype).expand(M.shape).clone()


def transport(n, gamma, seed, dtype, drawn=True):
    """A plan P = diag(a) K diag(b), and the problem that it solves to rounding."""
    generator = torch.Generator().manual_seed(seed)
    M = torch.rand(n, n, generator=generator, dtype=torch.float64).to(dtype)
    # Any marginals: those of a plan with drawn potentials.
    potentials = torch.rand(2, n, generator=generator, dtype=torch.float64) * drawn
    log_plan = (
        potentials[0].unsqueeze(1) + potentials[1] - gamma * (M.double() - M.double().amin(1, True))
    )
    plan = (log_plan - log_plan.flatten().logsumexp(0)).exp()
    v = torch.randn(n, n, generator=generator, dtype=torch.float64).to(dtype)
    return M, plan.sum(1).to(dtype), plan.sum(0).to(dtype), plan, v


def transport_gradients(plan, gamma, v):
    """−γP(v − λᵢ − λⱼ), and λ for the sums that are constraints, of the Schur complement in 60 digits."""
    n = len(plan)
    P, v = exact(plan), exact(v)
    with mpmath.workdps(60):
        S = np.full((2 * n, 2 * n), mpmath.mpf(0), dtype=object)
        S[range(n), range(n)], S[range(n, 2 * n), range(n, 2 * n)] = P.sum(1), P.sum(0)
        S[:n, n:], S[n:, :n] = P, P.T
        right = np.concatenate([(P * v).sum(1), (P * v).sum(0)])
        multipliers = np.concatenate([[mpmath.mpf(0)], exact_solution(S[1:, 1:], right[1:])])
        of_M = -gamma * P * (v - multipliers[:n, None] - multipliers[None, n:])
    return [torch.tensor(x.astype(float)) for x in (of_M, multipliers[:n], multipliers[n:])]


def check_transport(n, gamma, form, dtype, certify, seed):
    M, r, c, plan, v = transport(n, gamma, seed, dtype)
    xs = [x.requires_grad_() for x in (M, r, c)]
    layer = DeclarativeLayer(Transport(gamma, plan), FORMS[form], policy="nan", certify=certify)
    found = torch.autograd.grad(layer(*xs), xs, v)
    right = transport_gradients(plan, gamma, v)
    assert layer.certificate.verdicts() == ["trusted"]
    assert apart(found, right) < PROMISED[dtype]
    # The marginals' own, which no large gradient of M hides.
    assert apart(found[1:], right[1:]) < PROMISED[dtype]
    if certify == "full":
        assert apart(found, right) <= layer.certificate.error_bound


@settings(max_examples=12, deadline=None)
@given(
    n=st.sampled_from([5, 8, 12]),
    gamma=st.floats(1, 60),
    form=st.sampled_from(list(FORMS)),
    dtype=DTYPES,
    certify=st.sampled_from(["fast", "full"]),
    seed=st.integers(0, 10**6),
)
def test_transport_with_marginals(n, gamma, form, dtype, certify, seed):
    check_transport(n, gamma, form, dtype, certify, seed)


@pytest.mark.parametrize(("n", "gamma"), [(5, 200), (20, 200)])
def test_transport_near_its_limit(n, gamma):
    check_transport(n, gamma, "auto", torch.float64, "fast", 1)


@pytest.mark.long
@pytest.mark.parametrize("form", ["auto", "dense", "krylov", "schur"])
@pytest.mark.parametrize(
    ("gamma", "dtype"),
    # In float32 up to where the least probability still is a number.
    [*((gamma, torch.float64) for gamma in (1, 10, 60, 200)),
     *((gamma, torch.float32) for gamma in (1, 10, 60))],
)  # fmt: skip
def test_large_transport(gamma, form, dtype):
    check_transport(50, gamma, form, dtype, "fast", 2)


class SinkhornTransport(Transport):
    """Solved in the domain of logarithms, in float64, until the potentials stand still to rounding."""

    batched_solve = False

    def __init__(self, gamma):
        super().__init__(gamma, None)

    def solve(self, M, r, c):
        M, log_r, log_c = -self.gamma * M.double(), r.double().log(), c.double().log()
        # Of one sum, which float32 leaves to rounding: else the potentials drift for ever.
        log_r = log_r + log_c.logsumexp(dim=0) - log_r.logsumexp(dim=0)
        f, g = torch.zeros_like(log_r), torch.zeros_like(log_c)
        for _ in range(20_000):
            before = f
            f = log_r - (M + g).logsumexp(dim=1)
            g = log_c - (M + f.unsqueeze(1)).logsumexp(dim=0)
            if bool((f - before).abs().max() <= 4 * eps(f) * f.abs().max()):
                break
        return (M + f.unsqueeze(1) + g).exp().to(r.dtype)


def check_sinkhorn(n, gamma, dtype):
    M, r, c, _, v = transport(n, gamma, n, dtype)
    r, c = (x.double() / x.double().sum() for x in (torch.rand(2, n, dtype=torch.float64) + 0.2))
    r, c = r.to(dtype), c.to(dtype)
    plan = SinkhornTransport(gamma).solve(M.double(), r.double(), c.double())
    xs = [x.requires_grad_() for x in (M, r, c)]
    layer = DeclarativeLayer(SinkhornTransport(gamma), policy="raise")
    found = torch.autograd.grad(layer(*xs), xs, v)
    right = transport_gradients(plan, gamma, v)
    assert layer.certificate.verdicts() == ["trusted"]
    assert apart(found, right) < PROMISED[dtype]
    assert apart(found[1:], right[1:]) < PROMISED[dtype]


#: In float32 up to where the least probability still is a number.
SINKHORN = [*((gamma, torch.float64) for gamma in (1, 50, 100, 200)),
            *((gamma, torch.float32) for gamma in (1, 20, 50, 80))]  # fmt: skip


@pytest.mark.parametrize(("gamma", "dtype"), SINKHORN)
def test_transport_by_a_solver_that_converged(gamma, dtype):
    torch.manual_seed(0)
    check_sinkhorn(5, gamma, dtype)


@pytest.mark.long
@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize(("gamma", "dtype"), SINKHORN)
def test_larger_transport_by_a_solver_that_converged(n, gamma, dtype):
    torch.manual_seed(0)
    check_sinkhorn(n, gamma, dtype)


@pytest.mark.parametrize(("gamma", "steps"), [(50, 40), (50, 100), (80, 100), (200, 100)])
def test_transport_that_is_not_solved_is_told_where_its_gradient_is_off(gamma, steps):
    class Stopped(SinkhornTransport):
        def solve(self, M, r, c):
            M, log_r, log_c = -self.gamma * M, r.log(), c.log()
            f, g = torch.zeros_like(log_r), torch.zeros_like(log_c)
            for _ in range(steps):
                f = log_r - (M + g).logsumexp(dim=1)
                g = log_c - (M + f.unsqueeze(1)).logsumexp(dim=0)
            return (M + f.unsqueeze(1) + g).exp()

    torch.manual_seed(1)
    M, r, c, _, v = transport(8, gamma, 3, torch.float64)
    r, c = (x / x.sum() for x in (torch.rand(2, 8, dtype=torch.float64) + 0.2))
    plan = SinkhornTransport(gamma).solve(M, r, c)
    xs = [x.requires_grad_() for x in (M, r, c)]
    layer = DeclarativeLayer(Stopped(gamma), policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ddnkit.DdnkitWarning)
        found = torch.autograd.grad(layer(*xs), xs, v)
    right = transport_gradients(plan, gamma, v)
    error = max(apart(found, right), apart(found[1:], right[1:]))
    certificate = layer.certificate
    assert error < 1e-2 or certificate.verdicts() != ["trusted"]
    if certificate.solution_error is not None:  # of the size of the error, doubled
        assert error <= float(certificate.solution_error) + rounding(torch.float64, 100)


@pytest.mark.parametrize("seed", range(3))
def test_transport_whose_plan_float32_cannot_hold_is_told(seed):
    """Entries below 1e-45 are 0 in float32, and y log y has no gradient there; in float64 all is well."""
    M, r, c, plan, _ = transport(8, 150.0, seed, torch.float32)
    assert bool((plan.float() == 0).any())
    layer = DeclarativeLayer(Transport(150.0, plan), policy="raise")
    with pytest.raises(ddnkit.UntrustedGradientError):
        layer(M, r, c)
    check_transport(8, 150.0, "auto", torch.float64, "fast", seed)


def test_second_derivatives_of_transport_use_the_same_multipliers():
    M, r, c, plan, v = transport(20, 10.0, 3, torch.float32)
    xs = [x.requires_grad_() for x in (M, r, c)]
    layer = DeclarativeLayer(Transport(10.0, plan), policy="raise")
    found = torch.autograd.grad(layer(*xs), xs, v, create_graph=True)
    assert all(x.requires_grad for x in found)
    assert apart(found, transport_gradients(plan, 10.0, v)) < PROMISED[torch.float32]


@pytest.mark.parametrize("form", list(FORMS))
def test_a_solution_that_is_no_number_leaves_the_multipliers_of_others(form):
    class Weighted(DeclarativeNode):
        """min Σ yᵢ log yᵢ, Σyᵢ = t: y = t/m."""

        input_dims = (0,)

        def objective(self, t, y):
            return (y * y.log()).sum()

        def equality_constraints(self, t, y):
            return y.sum() - t

        def solve(self, t):
            return t.expand(4) / 4 * (torch.nan if bool(t > 2) else 1)

    t = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Weighted(), FORMS[form], policy="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ddnkit.DdnkitWarning)
        (found,) = torch.autograd.grad(layer(t)[:, 0].sum(), t)
    assert found[1].isnan()
    assert (found[[0, 2]] - 0.25).abs().max() < rounding(t, 16)


# -- units -----------------------------------------------------------------------------------------


class Quadratic(DeclarativeNode):
    """min ½ yᵀHy − xᵀy, Cy = e, at a solution that is given."""

    input_dims = (1, 1, 2, 2)

    def __init__(self, y):
        self.y = y

    def objective(self, x, e, H, C, y):
        return y @ H @ y / 2 - x @ y

    def equality_constraints(self, x, e, H, C, y):
        return C @ y - e

    def solve(self, x, e, H, C):
        return self.y.clone()


def quadratic(log_condition, m, p, unit, dtype, seed, singular=False):
    """H of that condition and C, in units S of the unknowns and E of the constraints, powers of two."""
    generator = np.random.default_rng(seed)
    vectors = np.linalg.qr(generator.standard_normal((m, m)))[0]
    curvatures = 10 ** (-log_condition * np.linspace(0, 1, m))
    C = generator.standard_normal((p, m))
    if singular:
        curvatures[-1] = 0
        C = C - np.outer(C @ vectors[:, -1], vectors[:, -1])
    H = vectors * curvatures @ vectors.T
    S, E = (2.0 ** generator.integers(-unit, unit + 1, size) for size in (m, p))
    H = torch.tensor((H + H.T) / 2 * S[:, None] * S).to(dtype)
    C = torch.tensor(C * E[:, None] * S).to(dtype)
    y = torch.tensor(generator.standard_normal(m) / S).to(dtype)
    nu = torch.tensor(generator.standard_normal(p) / E).to(dtype)
    v = torch.tensor(generator.standard_normal(m) * S).to(dtype)
    return H, C, y, H @ y - C.T @ nu, C @ y, v, torch.tensor(S), torch.tensor(E)


def gradients(H, C, y, x, e, v, form):
    xs = [x.clone().requires_grad_(), e.clone().requires_grad_(), H, C]
    layer = DeclarativeLayer(Quadratic(y), FORMS[form])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.autograd.grad(layer(*xs), xs[:2], v)
    return found, float(layer.certificate.adjoint_residual), layer.certificate.tolerance


@settings(max_examples=40, deadline=None)
@given(
    log_condition=st.floats(0, 10),
    m=st.integers(2, 8),
    p=st.integers(1, 3),
    unit=st.sampled_from([0, 13, 40]),
    form=st.sampled_from(["auto", "dense", "embedded_field", "schur"]),
    dtype=DTYPES,
    seed=st.integers(0, 10**6),
)
def test_units_change_no_gradient_and_raise_no_alarm(log_condition, m, p, unit, form, dtype, seed):
    p = min(p, m - 1)
    if dtype == torch.float32:
        log_condition, unit = log_condition * 0.3, min(unit, 13)
    H, C, y, x, e, v, S, E = quadratic(log_condition, m, p, unit, dtype, seed)
    found, residual, tolerance = gradients(H, C, y, x, e, v, form)
    K = np.block([[exact(H), exact(C).T], [exact(C), np.full((p, p), mpmath.mpf(0))]])
    right = exact_solution(K, np.concatenate([exact(v), np.full(p, mpmath.mpf(0))]))
    right = torch.tensor(right.astype(float))
    right = [right[:m] * S, right[m:] * E]
    # In units that make all of them comparable. What the condition leaves of the digits.
    error = apart([found[0] * S, found[1] * E], right)
    assert residual <= tolerance
    assert error < 1e-6 if dtype == torch.float64 else error < 1e-3


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(2, 8),
    p=st.integers(0, 3),
    unit=st.sampled_from([0, 13, 40]),
    form=st.sampled_from(["auto", "dense", "embedded_field", "schur"]),
    dtype=DTYPES,
    seed=st.integers(0, 10**6),
)
def test_what_is_singular_is_found_in_any_units(m, p, unit, form, dtype, seed):
    unit = min(unit, 13) if dtype == torch.float32 else unit
    H, C, y, x, e, v, *_ = quadratic(2.0, m, min(p, m - 1), unit, dtype, seed, singular=True)
    _, residual, tolerance = gradients(H, C, y, x, e, v, form)
    assert not residual <= tolerance


class Ray(DeclarativeNode):
    """min −xᵀy/‖y‖: not unique along y, where the curvature is what rounding leaves of 0."""

    input_dims = (1,)

    def objective(self, x, y):
        return -x @ y / y.norm()

    def solve(self, x):
        return x.clone()


@settings(max_examples=8, deadline=None)
@given(
    decades=st.tuples(st.floats(0, 12), st.floats(0, 12)),
    form=st.sampled_from(list(FORMS)),
    dtype=DTYPES,
    seed=st.integers(0, 10**6),
)
def test_rounding_is_no_curvature(decades, form, dtype, seed):
    """Near an axis the ray's own curvature is small, and scaling it to 1 would make it look like one."""
    torch.manual_seed(seed)
    first = 0.5 + torch.rand(1, dtype=torch.float64)
    rest = torch.randn(2, dtype=torch.float64) * 10 ** -torch.tensor(decades).double()
    x = torch.cat([first, rest]).to(dtype).requires_grad_()
    layer = DeclarativeLayer(Ray(), FORMS[form], policy="nan", certify="full")
    y = layer(x)
    # Along the ray, where no gradient is right.
    torch.autograd.grad(y, x, x.detach() / x.detach().norm() + torch.rand(3, dtype=dtype))
    assert layer.certificate.verdicts() == ["invalid"]


def test_a_constraint_lost_to_the_units_is_no_dependent_one():
    """Two clusters that touch by 1e-40 of their mass: rows of A D that only rounding tells apart."""
    D = torch.tensor([1.0, 1.0, 1e-20, 1.0, 1.0], dtype=torch.float64)
    A = torch.tensor(
        [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.float64
    ).unsqueeze(0)
    G = torch.diag(D**-2).unsqueeze(0)
    solution = KKTInverse(G, A)(torch.ones(1, 5, dtype=torch.float64))
    assert (
        solution.doubt is not None and float(solution.doubt) > ddnkit.certificate.TOLERANCE[A.dtype]
    )
    # The same constraint said twice is another thing, in any units of either.
    twice = torch.cat([A[:, :1], 1e9 * A[:, :1]], dim=1)
    again = KKTInverse(G, twice)(torch.ones(1, 5, dtype=torch.float64))
    assert again.doubt is None or float(again.doubt) < 1e3 * eps(A)
    assert float(again.residual) < rounding(A, 25)
