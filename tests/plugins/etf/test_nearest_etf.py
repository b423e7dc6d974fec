"""The nearest simplex ETF: every form and solver, at the points where others break."""

import pytest
import torch
from bounds import rounding, system_condition
from ddnkit_etf import NearestETF, canonical_frame, etf_of_frame, haar_frame, nearest_etf

import ddnkit
from ddnkit import DeclarativeLayer, InputError, UntrustedGradientError

DOUBLE = {"dtype": torch.float64}
FORMS = ["closed_form", "embedded_field", "dense"]


def class_means(d, C, kind):
    H = torch.randn(d, C, **DOUBLE)
    H = H - H.mean(dim=1, keepdim=True)
    if kind == "missing":
        H[:, :2] = 0
    if kind == "collapse":
        H = etf_of_frame(haar_frame(d, C, **DOUBLE))
    H = H / H.norm()
    P = nearest_etf(H) if kind == "collapse" else haar_frame(d, C, **DOUBLE)
    return H, P


def gradients(H, P, V, **settings):
    H, P = H.clone().requires_grad_(), P.clone().requires_grad_()
    U = nearest_etf(H, P, policy="raise", **settings)
    U.backward(V)
    return U.detach(), torch.cat([H.grad, P.grad], dim=-1)


def central_differences(H, P, V, step=1e-5):
    """Fourth-order central differences of (H, P) ↦ ⟨U, V⟩ through re-solves, all in one batch.

    A direction in which H and P leave a singular value of δ = 1e-3 has a scale of that: a step of a
    hundredth leaves 1e-8 to the fourth power of it, and rounding over the step 1e-11 of 1/δ.
    """
    C = H.shape[-1]
    joint = torch.cat([H, P], dim=-1)
    unit = torch.eye(joint.numel(), **DOUBLE).reshape(-1, *joint.shape)

    def value(size):
        moved = joint + size * unit
        return (nearest_etf(moved[..., :C], moved[..., C:]) * V).sum((-2, -1))

    with torch.no_grad():
        near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return ((8 * near - far) / (12 * step)).reshape(joint.shape)


@pytest.mark.parametrize("kind", ["random", "missing", "collapse"])
@pytest.mark.parametrize(("d", "C"), [(5, 5), (12, 5), (40, 10)])
def test_forms_agree_with_each_other_and_with_differences(d, C, kind):
    H, P = class_means(d, C, kind)
    V = torch.randn(d, C, **DOUBLE)
    found = {form: gradients(H, P, V, backward=form)[1] for form in FORMS}
    size = found["dense"].norm()
    assert all(g.isfinite().all() for g in found.values())
    # A dense solve of up to 455 unknowns and multipliers.
    kappa = system_condition(NearestETF(), (H, P), nearest_etf(H, P))
    rounded = rounding(size, d * C, condition=kappa)
    assert (found["closed_form"] - found["dense"]).norm() < rounded * size
    assert (found["embedded_field"] - found["dense"]).norm() < rounded * size
    differences = central_differences(H, P, V)
    assert (found["closed_form"] - differences).norm() < 1e-6 * size


def test_solution_is_a_frame_and_better_than_any_other_seen():
    H, P = class_means(12, 5, "random")
    node = NearestETF()
    U = nearest_etf(H, P)
    torch.testing.assert_close(U.T @ U, torch.eye(5, **DOUBLE))
    best = node.objective(H, P, U)
    assert all(node.objective(H, P, haar_frame(12, 5, **DOUBLE)) > best for _ in range(50))


@pytest.mark.parametrize(("d", "C"), [(5, 5), (12, 5), (4, 5), (2, 2)])
def test_without_the_proximal_term(d, C):
    H = torch.randn(d, C, requires_grad=True, **DOUBLE)
    U = nearest_etf(H, policy="raise")
    assert torch.autograd.gradcheck(lambda h: nearest_etf(h, policy="raise"), H)
    if d >= C:
        torch.testing.assert_close(U.T @ U, torch.eye(C, **DOUBLE))
        limit = nearest_etf(H, canonical_frame(d, C, **DOUBLE), delta=1e-8)
        # To first order in δ, over singular values down to a hundredth.
        torch.testing.assert_close(U, limit, atol=100 * 1e-8, rtol=0)
    else:
        torch.testing.assert_close(U @ U.T, torch.eye(d, **DOUBLE))
    torch.testing.assert_close(etf_of_frame(U).norm(dim=0), torch.ones(C, **DOUBLE))


@pytest.mark.parametrize(
    ("d", "delta"),
    [
        (4, 0.0),
        (5, 0.1),
        (9, 0.0),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in [(4, 0.1), (5, 0.0), (9, 0.1)]),
    ],
)
def test_reduced_form(d, delta):
    C = 5
    H = torch.randn(d, C, requires_grad=True, **DOUBLE)
    P = haar_frame(d, C, **DOUBLE).requires_grad_()
    U = nearest_etf(H, P, delta, reduced=True, policy="raise")
    torch.testing.assert_close(U.sum(dim=1), torch.zeros(d, **DOUBLE))
    assert torch.autograd.gradcheck(
        lambda h, p: nearest_etf(h, p, delta, reduced=True, policy="raise"), (H, P)
    )
    layers = [DeclarativeLayer(NearestETF(delta, reduced=True), form) for form in FORMS]
    V = torch.randn(d, C - 1, **DOUBLE)
    found = [torch.autograd.grad(layer(H, P), H, V)[0] for layer in layers]
    # Solves of up to 36 unknowns and 10 multipliers.
    kappa = system_condition(layers[0].node, (H, P), layers[0](H, P))
    tolerance = rounding(V, V.numel() + 10, size=float(found[0].norm()), condition=kappa)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=tolerance)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=tolerance)
    if delta == 0 and d >= C:  # the same ETF as the full form without a proximal term
        torch.testing.assert_close(etf_of_frame(U), etf_of_frame(nearest_etf(H)))


def test_delta_draws_the_solution_to_the_proximal_target():
    H, P = class_means(12, 5, "random")
    # ‖2HM̃‖/δ is what is left of H, which is below 2e-6.
    torch.testing.assert_close(nearest_etf(H, P, delta=1e6), P, atol=2e-6, rtol=0)


def test_batch_is_its_items_and_inputs_broadcast():
    H = torch.randn(2, 3, 7, 4, requires_grad=True, **DOUBLE)
    P = haar_frame(7, 4, **DOUBLE)
    U = nearest_etf(H, P)
    V = torch.randn_like(U)
    U.backward(V)
    for i in range(2):
        for j in range(3):
            alone, gradient = gradients(H[i, j].detach(), P, V[i, j])
            torch.testing.assert_close(U[i, j], alone)
            torch.testing.assert_close(H.grad[i, j], gradient[:, :4])
    assert nearest_etf(H).shape == (2, 3, 7, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_against_float64(dtype):
    H64 = torch.randn(64, 10, **DOUBLE).to(dtype).double()
    H64 = (H64 / H64.norm()).to(dtype).double()
    P64 = haar_frame(64, 10).double()
    V = torch.randn(64, 10)
    expected, expected_gradient = gradients(H64, P64, V.double())
    H = H64.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        U = nearest_etf(H, P64.float(), policy="raise")
    assert U.dtype == torch.float32
    U.backward(V)
    assert H.grad.dtype == dtype
    # A in float32 moves the null direction of U, whose singular value is δ, by u/δ, and the gradient as
    # much; bfloat16 has one rounding more, of the gradient.
    tolerance = rounding(U, 4, condition=1 / NearestETF().delta)
    assert (U.double() - expected).norm() < tolerance
    error = (H.grad.double() - expected_gradient[:, :10]).norm() / expected_gradient.norm()
    assert error < tolerance + (rounding(dtype) if dtype == torch.bfloat16 else 0)


def test_non_unique_solutions_solve_but_do_not_differentiate_in_silence():
    H = torch.randn(7, 5, **DOUBLE)
    H[:, :3] = 0  # three classes missing and no proximal term: U is free in the plane between them
    H.requires_grad_()
    U = nearest_etf(H, policy="raise")
    torch.testing.assert_close(U.T @ U, torch.eye(5, **DOUBLE))
    with pytest.raises(UntrustedGradientError, match=r"NearestETF .*\b1 of 1\b.* curvature "):
        U.sum().backward()
    layer = DeclarativeLayer(NearestETF(0.0), policy="raise")  # free in the null direction of M̃
    U = layer(torch.randn(7, 5, **DOUBLE).requires_grad_(), None)
    with pytest.raises(UntrustedGradientError, match=r"NearestETF .*\b1 of 1\b.* curvature "):
        U.sum().backward()
    assert layer.certificate.uniqueness < rounding(U, 7 * 5)


def test_nan_in_one_item_leaves_the_others():
    H = torch.randn(2, 7, 5, **DOUBLE)
    H[0, 0, 0] = torch.nan
    U = nearest_etf(H, haar_frame(7, 5, **DOUBLE), policy="nan")
    assert U[0].isnan().all()
    assert U[1].isfinite().all()


@pytest.mark.parametrize(
    "solver",
    [
        "trust_regions",
        "conjugate_gradient",
        pytest.param("steepest_descent", marks=pytest.mark.long),
        "riemannian_sgd",
        "riemannian_adam",
        "riemannian_line_search",
    ],
)
def test_every_solver_finds_the_closed_form_and_its_gradient(solver):
    H, P = class_means(64, 10, "random")
    V = torch.randn(64, 10, **DOUBLE)
    U, gradient = gradients(H, P, V)
    layer = DeclarativeLayer(NearestETF(solver=solver), policy="raise")
    h = H.clone().requires_grad_()
    found = layer(h, P)
    found.backward(V)
    node = NearestETF()
    gap = node.objective(H, P, found.detach()) - node.objective(H, P, U)
    # A gradient tolerance of 1e-7 or less and curvatures from δ = 1e-3: g²/2δ above the minimum. And
    # of the gradient, which is about its own slope times the distance g/δ: 1e-4.
    assert -rounding(gap, 640) < gap < 1e-9
    assert layer.certificate.iterations > 0
    assert layer.certificate.solver == solver
    assert (h.grad - gradient[:, :10]).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_etf(torch.randn(3)), r"\(3,\)"),
        (lambda: nearest_etf(torch.randn(3, 5)), r"\(d, C\) = \(3, 5\)"),
        (lambda: nearest_etf(torch.randn(4, 5), haar_frame(4, 5)), "reduced=True"),
        (lambda: nearest_etf(torch.randn(4, 1)), r"\b2\b"),
        (lambda: nearest_etf(torch.randn(6, 5), torch.randn(6, 4)), r"\(6, 5\).*\(6, 4\)"),
        (lambda: NearestETF(-1), "-1"),
        (lambda: nearest_etf(torch.randn(6, 5), solver="procrusts"), "'procrustes'"),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.long
def test_imagenet_size_runs_in_float32_within_memory_of_order_dC():
    d, C = 2048, 1000
    H = torch.randn(d, C)
    H = (H / H.norm()).requires_grad_()
    U = nearest_etf(H, haar_frame(d, C), policy="raise")
    U.backward(torch.randn(d, C))
    assert H.grad.isfinite().all()


@pytest.mark.long  # `ddnkit check nearest_etf` is what tests/checking runs
def test_check_finds_nothing_wrong():
    report = ddnkit.check(NearestETF(), examples=3)
    assert report.ok, str(report)
    assert set(report.forms) == {"closed_form", "embedded_field", "krylov", "dense"}


@pytest.mark.parametrize(
    ("case", "reduced"),
    [
        ("random", False),
        ("collapse", True),
        pytest.param("collapse", False, marks=pytest.mark.long),
        pytest.param("random", True, marks=pytest.mark.long),
    ],
)
def test_higher_derivatives_and_forward_mode_stay_exact(case, reduced):
    d, C = 5, 3
    torch.manual_seed(1)
    P = haar_frame(d, C, **DOUBLE)
    H = torch.randn(d, C, **DOUBLE)
    H = 2 * etf_of_frame(P) if case == "collapse" else H / H.norm()
    layer = DeclarativeLayer(NearestETF(0.1, reduced=reduced), policy="raise")
    xs = [x.requires_grad_() for x in (H, P)]
    assert torch.autograd.gradcheck(layer, xs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, xs, fast_mode=True)
    general = DeclarativeLayer(NearestETF(0.1, reduced=reduced), "krylov", policy="raise")

    def loss(layer):
        return lambda H: (layer(H, P.detach()) ** 3).sum()

    mine, other = (torch.func.hessian(loss(each))(H.detach()) for each in (layer, general))
    # krylov solves to 1e-12, promised, each of three systems in turn at a condition below 30.
    size = float(mine.abs().max())
    torch.testing.assert_close(mine, other, rtol=0, atol=3 * 30**2 * 1e-12 * size)
