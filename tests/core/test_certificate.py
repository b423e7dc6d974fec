"""Certificates: independent of scale, aware of dtype, acted on per item."""

import dataclasses
import typing
import warnings

import pytest
import torch
from bounds import rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ddnkit
from ddnkit import (
    Certificate,
    DdnkitWarning,
    DeclarativeLayer,
    DeclarativeNode,
    UntrustedGradientError,
)
from ddnkit.joined_certificate import _NOTHING_AGAINST


class Projection(DeclarativeNode):
    """min ½ scale·‖y − x‖², ‖y‖ = radius; `off` moves the solution away from the right one."""

    input_dims = (1,)

    def __init__(self, scale=1.0, off=0.0, outside=0.0):
        self.scale, self.off, self.outside = scale, off, outside

    def objective(self, x, y):
        return self.scale * ((y - x) ** 2).sum() / 2

    def equality_constraints(self, x, y):
        return self.scale * ((y**2).sum() - 1)

    def solve(self, x):
        y = x + self.off * x.flip(0)
        return y / y.norm() * (1 + self.outside)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_solutions_pass_at_every_scale(scale, dtype):
    layer = DeclarativeLayer(Projection(scale), policy="raise")
    layer(torch.randn(10, 5, dtype=dtype))
    # Two rows of five terms each, relative to what they change by.
    assert (layer.certificate.stationarity < rounding(dtype, 4 * 5)).all()
    assert (layer.certificate.feasibility < rounding(dtype, 4 * 5)).all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_backward_errors_do_not_depend_on_scale(scale):
    layer = DeclarativeLayer(Projection(scale, off=1e-3, outside=1e-3), policy="nan")
    layer(torch.tensor([1.0, 2.0, -1.5], dtype=torch.float64))
    unit = DeclarativeLayer(Projection(1.0, off=1e-3, outside=1e-3), policy="nan")
    unit(torch.tensor([1.0, 2.0, -1.5], dtype=torch.float64))
    # 1e-3 is what it is off, in either, within a factor for the directions.
    assert 1e-4 < unit.certificate.stationarity < 2e-2
    assert 1e-4 < unit.certificate.feasibility < 2e-2
    torch.testing.assert_close(layer.certificate.stationarity, unit.certificate.stationarity)
    torch.testing.assert_close(layer.certificate.feasibility, unit.certificate.feasibility)


def test_a_solution_at_zero_is_no_false_alarm():
    class Mean(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def solve(self, x):
            return x.mean()

    x = torch.tensor([1.0, -1.0, 0.1, -0.1], dtype=torch.float64)
    DeclarativeLayer(Mean(), policy="raise")(x)
    DeclarativeLayer(Mean(), policy="raise")(torch.zeros(4))


def test_scalars_that_scale_together_are_no_false_alarm():
    class Root(DeclarativeNode):
        input_dims = (0, 0)

        def objective(self, a, b, y):
            return (y - a / b) ** 2

        def solve(self, a, b):
            return a / b * (1 + rounding(a, 4))

    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(200, dtype=dtype), 1 + torch.rand(200, dtype=dtype)
        layer = DeclarativeLayer(Root(), policy="raise")
        layer(a, b)
        # Four roundings, of a figure that a probe may by chance make ten times too small.
        assert (layer.certificate.stationarity < rounding(dtype, 100)).all()


def test_policy_raise_names_what_failed():
    x = torch.tensor([1.0, 2.0, -1.5])
    off = DeclarativeLayer(Projection(off=0.1), policy="raise")
    with pytest.raises(UntrustedGradientError, match=r"Projection \(dense\): 1 of 1 ") as told:
        off(x)
    certificate = off.certificate
    assert float(certificate.feasibility) <= certificate.tolerance < float(certificate.stationarity)
    assert f"{float(certificate.stationarity):.1e}" in str(told.value)
    outside = DeclarativeLayer(Projection(outside=0.1), policy="raise")
    with pytest.raises(UntrustedGradientError, match=r"Projection \(dense\): 1 of 1 ") as told:
        outside(x)
    certificate = outside.certificate
    assert certificate.tolerance < float(certificate.feasibility)
    assert f"{float(certificate.feasibility):.1e}" in str(told.value)


def test_policy_warn_is_the_default_and_short():
    layer = DeclarativeLayer(Projection(off=0.1))
    with pytest.warns(DdnkitWarning, match=r"Projection \(dense\): 4 of 4 ") as caught:
        layer(torch.randn(4, 3))
    assert (layer.certificate.stationarity > layer.certificate.tolerance).all()
    assert all("\n" not in str(w.message) and len(str(w.message)) < 300 for w in caught)


def test_policy_nan_spares_the_good_items():
    class SometimesOff(Projection):
        def solve(self, x):
            return super().solve(x) * (1.1 if bool(x[0] > 0) else 1.0)

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], requires_grad=True)
    layer = DeclarativeLayer(SometimesOff(), policy="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(x)
        y.sum().backward()
    assert y[0].isnan().all()
    assert x.grad[0].isnan().all()
    good = torch.tensor([[-1.0, 2.0]], requires_grad=True)
    DeclarativeLayer(Projection())(good).sum().backward()
    torch.testing.assert_close(x.grad[1], good.grad[0])
    assert layer.certificate.solved.tolist() == [False, True]


def test_nan_from_the_solver_never_passes():
    class Broken(Projection):
        def solve(self, x):
            return x * torch.nan

    with pytest.raises(UntrustedGradientError, match="NaN"):
        DeclarativeLayer(Broken(), policy="raise")(torch.randn(3))


class CosineDistance(DeclarativeNode):
    """min −xᵀy/‖y‖ has a ray of solutions; y = x is one."""

    input_dims = (1,)

    def objective(self, x, y):
        return -x @ y / y.norm()

    def solve(self, x):
        return x.clone()


def test_a_solution_that_is_not_unique_is_noticed_on_the_way_back():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(CosineDistance(), policy="raise")
    y = layer(x)
    with pytest.raises(UntrustedGradientError, match=r"CosineDistance \(dense\): 1 of 1 "):
        y[0].backward()
    assert layer.certificate.adjoint_residual > layer.certificate.tolerance
    first, second = x.detach()[:2].tolist()
    along_the_sphere = torch.tensor([second, -first, 0, 0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(x), x, along_the_sphere)
    # (I − xxᵀ/‖x‖²) v, the pseudo-inverse's answer, is v where v is orthogonal to x
    torch.testing.assert_close(gradient, along_the_sphere)
    assert layer.certificate.adjoint_residual < rounding(x, 4 * 4, condition=10)
    assert layer.certificate.verdicts() == ["trusted"]


def test_tolerance_is_the_nodes_or_the_layers():
    class Loose(Projection):
        tolerance = 0.5

    x = torch.tensor([1.0, 2.0, -1.5])
    layer = DeclarativeLayer(Loose(off=0.1), policy="raise")
    layer(x)
    assert layer.certificate.tolerance == 0.5
    with pytest.raises(UntrustedGradientError):
        DeclarativeLayer(Loose(off=0.1), policy="raise", tolerance=1e-4)(x)


def test_solver_status_is_part_of_the_message():
    class Stops(Projection):
        def solve(self, x):
            y = super().solve(x)
            return ddnkit.Solution(y, ddnkit.Status.MAX_ITERATIONS, 3, "mine")

    with pytest.raises(UntrustedGradientError, match=r"mine.*MAX_ITERATIONS"):
        DeclarativeLayer(Stops(off=0.1), policy="raise")(torch.tensor([1.0, 2.0, -1.5]))
    assert "1 of 1" in str(_certificate(Stops(off=0.1)))


def _certificate(node):
    layer = DeclarativeLayer(node, policy="nan")
    layer(torch.tensor([1.0, 2.0, -1.5]))
    return layer.certificate


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("status", list(ddnkit.Status))
@pytest.mark.covering
def test_a_solver_that_found_no_solution_is_believed(status, dtype, batch):
    class Says(Projection):
        def solve(self, x):
            return ddnkit.Solution(super().solve(x), status, 3, "mine")

        def sample_inputs(self):
            return (torch.randn(3),)

    x = torch.tensor([1.0, 2.0, -1.5], dtype=dtype).expand(*batch, 3).clone().requires_grad_()
    layer = DeclarativeLayer(Says(), policy="nan")
    y = layer(x)
    y.sum().backward()
    # Where it only stopped, the residual tells, and this one is at rounding.
    wrong = status in (ddnkit.Status.NON_FINITE, ddnkit.Status.INFEASIBLE, ddnkit.Status.UNBOUNDED)
    count = x.numel() // 3
    assert layer.certificate.verdicts() == ["invalid" if wrong else "trusted"] * count
    assert bool(y.isnan().all()) is bool(x.grad.isnan().all()) is wrong
    assert any(status.name in cause for cause in layer.certificate.causes()) is wrong
    if dtype == torch.float64 and not batch:
        assert ddnkit.check(Says(), examples=1).ok is not wrong
    if wrong:
        with pytest.raises(UntrustedGradientError, match=status.name):
            DeclarativeLayer(Says(), policy="raise")(x)


class Median(DeclarativeNode):
    """A smooth median, and the mean returned for it: with an offset the residual is small beside the data."""

    def objective(self, x, y):
        return ((y - x) ** 2 + 0.01).sqrt().sum()

    def solve(self, x):
        return x.mean().reshape(1)


def test_an_invalid_error_bound_reaches_the_policy_and_the_causes():
    x = (torch.tensor([0.0, 1, 9], dtype=torch.float64) + 1e9).requires_grad_()
    with pytest.raises(UntrustedGradientError, match="gradient inaccurate"):
        DeclarativeLayer(Median(), policy="raise", certify="full")(x).sum().backward()
    layer = DeclarativeLayer(Median(), policy="nan", certify="full")
    layer(x).sum().backward()
    assert x.grad.isnan().all()
    assert layer.certificate.verdicts() == ["invalid"]
    assert layer.certificate.causes()


def figures(**changed):
    """A certificate of two items: the first with these figures, the second with none to speak of."""
    good = {"stationarity": 0.0, "feasibility": 0.0, "status": 0, "iterations": 1}
    good = {**dict.fromkeys(changed, 0.0), "uniqueness": 1.0, "curvature": 1.0, "licq": 1.0, **good}
    return ddnkit.Certificate(
        **{k: torch.tensor([changed.get(k, value), value]) for k, value in good.items()},
        tolerance=1e-6,
        solver="mine",
    )


@pytest.mark.parametrize(
    "name",
    [
        "stationarity",
        "feasibility",
        "adjoint_residual",
        "adjoint_difference",
        "error_bound",
        "uniqueness",
        "curvature",
        "licq",
        "status",
    ],
)
@given(value=st.floats(allow_nan=True, allow_infinity=True, width=32))
@settings(max_examples=60, deadline=None)
def test_verdict_causes_and_policy_say_the_same(name, value):
    if name == "status":
        value = int(abs(value)) % 8 if abs(value) < 1e6 else 7
    certificate = figures(**{name: value})
    verdict, other = certificate.verdicts()
    assert other == "trusted"
    assert bool(certificate.differentiable[1])
    good = bool(certificate.differentiable[0])
    if verdict == "trusted":
        assert good and not certificate.causes()
    else:
        assert certificate.causes()
    if verdict == "invalid":
        assert not good
    # Between the two, these leave the choice to whoever reads the verdict.
    if verdict == "doubtful":
        assert good is (name in ("error_bound", "uniqueness", "curvature"))


def test_an_items_own_doubt_is_named_beside_anothers_failure():
    certificate = figures(stationarity=1.0)
    certificate = dataclasses.replace(certificate, uniqueness=torch.tensor([1.0, 1e-5]))
    assert certificate.verdicts() == ["invalid", "doubtful"]
    assert any("stationary" in cause for cause in certificate.causes())
    assert any("unique" in cause for cause in certificate.causes())


@pytest.mark.parametrize("form", ["auto", "unrolled"])
def test_nothing_is_measured_with_certify_off_and_the_certificate_says_so(form):
    x = torch.tensor([[1.0, 2.0, -1.5], [2.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    right = DeclarativeLayer(Projection(), form)
    layer = DeclarativeLayer(Projection(), form, policy="raise", certify="off")
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).expand(2, 3)
    (found,) = torch.autograd.grad(layer(x), x, v)
    assert torch.equal(found, torch.autograd.grad(right(x), x, v)[0])
    certificate = layer.certificate
    assert not certificate.measured
    assert certificate.verdicts() == ["not measured"] * 2
    assert certificate.causes() == []
    assert "not measured" in str(certificate)
    assert certificate.stationarity.isnan().all()
    # Nor is a wrong solution noticed.
    wrong = DeclarativeLayer(Projection(off=0.1), form, policy="raise", certify="off")
    torch.autograd.grad(wrong(x), x, v)
    assert wrong.certificate.verdicts() == ["not measured"] * 2


def test_what_the_solver_says_is_heard_with_certify_off():
    class Failing(Projection):
        def solve(self, x):
            good = bool(x[0] > 0)
            status = ddnkit.Status.CONVERGED if good else ddnkit.Status.INFEASIBLE
            return ddnkit.Solution(super().solve(x), status)

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Failing(), policy="nan", certify="off")
    y = layer(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert layer.certificate.verdicts() == ["not measured", "invalid"]
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_an_input_that_is_no_number_is_set_aside_with_certify_off():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 2.0]], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Projection(), policy="nan", certify="off")
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    assert found[0].isfinite().all()
    assert layer.certificate.verdicts() == ["not measured", "invalid"]


def test_another_choice_of_certify_is_refused():
    with pytest.raises(ddnkit.InputError, match="full"):
        DeclarativeLayer(Projection(), certify="ful")


def test_a_joined_certificate_knows_what_each_figure_is_for_a_part_without_it():
    kinds = typing.get_type_hints(Certificate)
    optional = {name for name, kind in kinds.items() if kind == Tensor | None}
    assert optional <= set(_NOTHING_AGAINST)
