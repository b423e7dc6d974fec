"""Certificates: independent of scale, aware of dtype, acted on per item."""

import warnings

import pytest
import torch
from bounds import rounding

import ddnkit
from ddnkit import DdnkitWarning, DeclarativeLayer, DeclarativeNode, UntrustedGradientError


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
