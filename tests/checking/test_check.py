"""`ddnkit.check`: silent about right nodes, and each kind of wrong one named as what it is."""

import json

import pytest
import torch

import ddnkit
from ddnkit import DeclarativeNode, InputError, testing


class Affine(testing.AffineConstraint):
    def adjoint(self, x, y, v):
        return (v - v.mean(),)


class AdjointTwice(Affine):
    def adjoint(self, x, y, v):
        return (2 * (v - v.mean()),)


class AdjointWithoutConstraint(Affine):
    def adjoint(self, x, y, v):
        return (v,)


class StopsEarly(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 4).sum() + ((y - x) ** 2).sum() + (y**2).sum()

    def solve(self, x):
        y = torch.zeros_like(x)
        for _ in range(10):
            y = y - 0.05 * (4 * (y - x) ** 3 + 2 * (y - x) + 2 * y)
        return y


class OtherObjective(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        return -3 * x


class Infeasible(testing.QuadraticOnSphere):
    def solve(self, x):
        return 1.1 * x / x.norm()


class Maximum(testing.QuadraticOnSphere):
    def solve(self, x):
        return -x / x.norm()


class NotUnique(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return -x @ y / y.norm()

    def solve(self, x):
        return x.clone()


class Random(DeclarativeNode):
    input_dims = (1,)
    tolerance = 0.2

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        return x + 0.01 * torch.randn_like(x)


class Raises(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        raise ZeroDivisionError("on purpose")


class ReturnsNaN(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        return x * torch.nan


class Jumps(DeclarativeNode):
    """Two minima ±1 of the same depth; `solve` picks by the input's last digits."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y**2 - 1) ** 2).sum() + 0 * x.sum()

    def solve(self, x):
        return torch.where((x * 1e7).floor() % 2 == 0, 1.0, -1.0).to(x)


class CapturesParameter(Affine):
    def __init__(self):
        self.weight = torch.nn.Parameter(torch.ones(()))

    def objective(self, x, y):
        return super().objective(self.weight * x, y)


@pytest.mark.parametrize("node", [*testing.bank(), Affine()], ids=lambda n: type(n).__name__)
def test_right_nodes_pass(node):
    report = ddnkit.check(node, examples=3)
    assert report.ok, str(report)
    assert report.cases == 3
    assert report.diagnosis == ()
    assert report.inputs == ""
    assert str(report).endswith("passed")


@pytest.mark.parametrize(
    ("node", "diagnosis"),
    [
        (AdjointTwice(), "own adjoint is wrong: it is off by a factor of 2 "),
        (AdjointWithoutConstraint(), "own adjoint is wrong: it differs from"),
        (StopsEarly(), "inexact solve: the solver stops early"),
        (OtherObjective(), "the objective is not what is solved"),
        (Infeasible(), "infeasible: the solver returns a point that violates the constraints"),
        (Maximum(), "not a minimum"),
        (NotUnique(), "not unique"),
        (Random(), "not deterministic"),
        (Raises(), "does not run: ZeroDivisionError: on purpose"),
        (ReturnsNaN(), "NaN"),
        (Jumps(), "jumps or is noisy"),
        (CapturesParameter(), "not one of its inputs"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DeclarativeNode) else "",
)
def test_wrong_nodes_are_named_as_what_they_are(node, diagnosis):
    report = ddnkit.check(node, examples=3)
    assert not report.ok
    assert any(diagnosis in text for text in report.diagnosis), report.diagnosis
    assert "FAIL" in str(report)


def test_a_wrong_adjoint_without_another_form_is_found_by_differences():
    report = ddnkit.check(AdjointTwice(), backward="closed_form", examples=2)
    assert "off by a factor of 2" in report.diagnosis[0]
    assert report.forms == ("closed_form",)


def test_failing_inputs_are_shrunk_to_simple_ones():
    class WrongForLargeFirstEntry(Affine):
        def adjoint(self, x, y, v):
            return (v - v.mean() + (x[0].abs() > 0.3) * v,)

    report = ddnkit.check(WrongForLargeFirstEntry(), examples=50)
    assert not report.ok
    scope = {"torch": torch}
    exec(report.inputs.replace("    ", ""), scope)
    x = scope["x0"]
    assert x.dtype == torch.float64
    assert (x[1:] == 0).all()
    assert abs(float(x[0])) > 0.3
    assert len(f"{float(x[0])}") <= 4


def test_given_inputs_are_checked_as_they_are():
    x = torch.randn(3, 4, dtype=torch.float64)
    report = ddnkit.check(Affine(), x)
    assert report.ok
    assert report.cases == 1
    wide = ddnkit.check(AdjointTwice(), torch.randn(100, dtype=torch.float64))
    assert "# x0: (100,)" in wide.inputs


def test_float32_inputs_are_held_against_what_float32_can_do():
    assert ddnkit.check(Affine(), torch.randn(4)).ok
    assert not ddnkit.check(AdjointTwice(), torch.randn(4)).ok


def test_a_float32_constraint_leaves_rounding_not_a_saddle_point():
    report = ddnkit.check(testing.QuadraticOnSphere(), torch.randn(60))
    assert report.ok, str(report)


def test_a_node_without_differentiable_inputs_is_checked_as_a_solver():
    class Index(DeclarativeNode):
        input_dims = (0,)

        def objective(self, k, y):
            return (y - k) ** 2

        def solve(self, k):
            return k.double()

    report = ddnkit.check(Index(), torch.tensor(3))
    assert report.ok, str(report)
    assert not any("finite differences" in row.name for row in report.rows)


def test_report_is_plain_data():
    data = json.loads(json.dumps(ddnkit.check(Affine(), examples=2).to_dict()))
    assert data["ok"] is True
    assert {"name", "error", "tolerance", "ok"} <= set(data["rows"][0])


def test_inputs_are_guessed_where_a_node_has_no_sample():
    class NoSample(DeclarativeNode):
        def objective(self, a, b, y):
            return ((y - a) ** 2).sum() + ((y - b) ** 2).sum()

        def solve(self, a, b):
            return (a + b) / 2

    class Option(NoSample):
        input_dims = (1, None)

        def objective(self, a, b, y):
            return ((y - a) ** 2).sum() if b is None else torch.nan

        def solve(self, a, b):
            return a.clone()

    assert ddnkit.check(NoSample(), examples=2).ok
    assert ddnkit.check(Option(), examples=2).ok


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    ddnkit.check(Affine(), examples=2)
    assert torch.rand(()) == expected


def test_what_cannot_be_checked():
    class Many(DeclarativeNode):
        def objective(self, *xs, y):
            return sum(((y - x) ** 2).sum() for x in xs)

    class List(Affine):
        def sample_inputs(self):
            return [torch.randn(4)]

    with pytest.raises(InputError, match="sample_inputs"):
        ddnkit.check(Many())
    with pytest.raises(InputError, match="must return a tuple"):
        ddnkit.check(List())
    with pytest.raises(InputError, match="takes a ddnkit"):
        ddnkit.check(Affine)
    with pytest.raises(InputError, match=r"does not apply.*those that do: closed_form, dense"):
        ddnkit.check(Affine(), backward="embedded_field")
