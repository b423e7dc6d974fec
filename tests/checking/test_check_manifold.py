"""`ddnkit check` of a manifold: what is right passes, and of a method that is wrong exactly that is named."""

import json

import pytest
import torch
from click.testing import CliRunner
from ddnkit_manifolds import (
    SPD,
    FixedRank,
    Grassmann,
    Hyperbolic,
    Oblique,
    PositiveSimplex,
    Product,
    Sphere,
    Stiefel,
)

import ddnkit
from ddnkit.cli import main


class UnitColumns(ddnkit.Manifold):
    """What must be written, and no more."""

    name, event_dims = "unit_columns", 2

    def constraint(self, y):
        return y.square().sum(-2) - 1

    def project(self, y):
        return y / y.norm(dim=-2, keepdim=True)

    def random(self, shape, *, generator=None, like):
        return self.project(ddnkit.gaussian(shape, generator, like))


def broken(base, method, change):
    """The manifold with a method that is ``change`` of the right one and what that is given."""

    def wrong(self, *given, **named):
        return change(lambda *args: getattr(base, method)(self, *args), *given, **named)

    return type(base.__name__, (base,), {method: wrong})()


def drawn(right, shape, *, generator=None, like):
    return ddnkit.gaussian(shape, generator, like)


def without_generator(right, shape, *, generator=None, like):
    return Oblique().project(ddnkit.gaussian(shape, None, like))


def constant(right, shape, *, generator=None, like):
    return Oblique().project(torch.ones(shape, dtype=like.dtype))


def of_double(right, shape, *, generator=None, like):
    return Oblique().random(shape, generator=generator, like=like.double())


def only_one(values):
    return torch.cat([values[..., :1], 0 * values[..., 1:]], dim=-1)


#: Of each method: the manifold, what is wrong with it, and how.
WRONG = [
    ("constraint", Oblique, "length", lambda right, y: right(y) - 1),
    ("constraint", Oblique, "transposed", lambda right, y: y.square().sum(-1) - 1),
    ("constraint", Oblique, "one_missing", lambda right, y: right(y)[..., 1:]),
    (
        "constraint",
        Oblique,
        "one_twice",
        lambda right, y: torch.cat([right(y), right(y)[..., :1]], -1),
    ),
    ("constraint", Sphere, "squared", lambda right, y: right(y).square()),
    (
        "constraint",
        Sphere,
        "over_the_batch",
        lambda right, y: right(y) + 0 * y.sum() + y.norm() - y.norm(dim=-1, keepdim=True),
    ),
    ("constraint", Sphere, "detached", lambda right, y: right(y.detach())),
    ("constraint", UnitColumns, "one_missing", lambda right, y: right(y)[..., 1:]),
    ("project", Oblique, "twice", lambda right, y: 2 * right(y)),
    ("project", Oblique, "minus", lambda right, y: -right(y)),
    ("project", Oblique, "transposed", lambda right, y: right(y.mT).mT),
    ("project", Sphere, "not_at_all", lambda right, y: y),
    ("project", UnitColumns, "minus", lambda right, y: -right(y)),
    ("random", Oblique, "not_projected", drawn),
    ("random", Oblique, "without_generator", without_generator),
    ("random", Oblique, "constant", constant),
    ("random", Oblique, "dtype", of_double),
    ("constraint_jacobian", Oblique, "minus", lambda right, y: -right(y)),
    ("constraint_jacobian", Oblique, "half", lambda right, y: right(y) / 2),
    (
        "constraint_jacobian",
        Oblique,
        "column_major",
        lambda right, y: right(y).reshape(*y.shape[:-2], y.shape[-1], *y.shape[-2:]).mT.flatten(-2),
    ),
    ("constraint_jacobian", UnitColumns, "shape", lambda right, y: right(y).mT),
    ("infeasibility", Oblique, "minus", lambda right, y: -right(y)),
    ("infeasibility", Oblique, "squared", lambda right, y: right(y).square()),
    ("infeasibility", Oblique, "of_one", lambda right, y: (y.square().sum(-2) - 1).abs()[..., 0]),
    (
        "infeasibility",
        UnitColumns,
        "transposed",
        lambda right, y: (y.square().sum(-1) - 1).abs().amax(-1),
    ),
    (
        "vertical",
        Grassmann,
        "symmetric",
        lambda right, y: y.unsqueeze(-3) * torch.eye(y.shape[-1], dtype=y.dtype)[:, None],
    ),
    ("vertical", Grassmann, "twice", lambda right, y: torch.cat([right(y), right(y)], -3)),
    ("normal", Oblique, "minus", lambda right, y, s: -right(y, s)),
    ("normal", Oblique, "twice", lambda right, y, s: 2 * right(y, s)),
    ("normal", Oblique, "one_missing", lambda right, y, s: right(y, only_one(s))),
    ("normal", Sphere, "squared", lambda right, y, s: right(y, s * s)),
    ("normal", Stiefel, "twice", lambda right, y, s: 2 * right(y, s)),
    ("normal", UnitColumns, "twice", lambda right, y, s: 2 * right(y, s)),
    ("multipliers", Oblique, "minus", lambda right, y, g: -right(y, g)),
    ("multipliers", Oblique, "twice", lambda right, y, g: 2 * right(y, g)),
    ("multipliers", Oblique, "one_missing", lambda right, y, g: only_one(right(y, g))),
    ("multipliers", Stiefel, "not_symmetric", lambda right, y, g: y.mT @ g),
    ("multipliers", Stiefel, "twice", lambda right, y, g: 2 * right(y, g)),
    ("multipliers", UnitColumns, "of_the_half", lambda right, y, g: (y * g).sum(-2)),
    ("less_normal", Oblique, "plus", lambda right, v, y, s: v + s * y),
    ("less_normal", Oblique, "nothing", lambda right, v, y, s: v),
    ("less_normal", Stiefel, "half", lambda right, v, y, s: v - y @ s / 2),
    ("constraint_curvature", Oblique, "minus", lambda right, y, s, z: -right(y, s, z)),
    ("constraint_curvature", Oblique, "twice", lambda right, y, s, z: 2 * right(y, s, z)),
    ("constraint_curvature", Oblique, "nothing", lambda right, y, s, z: 0 * z),
    (
        "constraint_curvature",
        Stiefel,
        "other_side",
        lambda right, y, s, z: right(y, s, z) + y @ (z.mT @ y) @ s,
    ),
    ("constraint_curvature", UnitColumns, "half", lambda right, y, s, z: right(y, s, z) / 2),
    ("tangent", Oblique, "minus", lambda right, y, v: -right(y, v)),
    ("tangent", Oblique, "twice_the_normal", lambda right, y, v: 2 * right(y, v) - v),
    ("tangent", Oblique, "nothing", lambda right, y, v: v.clone()),
    ("tangent", Grassmann, "vertical", lambda right, y, v: Stiefel().tangent(y, v)),
    ("retract", Oblique, "not_projected", lambda right, y, z: y + z),
    ("retract", Oblique, "minus", lambda right, y, z: right(y, -z)),
    ("retract", Sphere, "twice", lambda right, y, z: right(y, 2 * z)),
    ("transport", Oblique, "nothing", lambda right, y, to, v: v.clone()),
    ("transport", Oblique, "minus", lambda right, y, to, v: -right(y, to, v)),
    ("transport", Sphere, "stays", lambda right, y, to, v: right(to, y, v)),
    ("inner", Oblique, "minus", lambda right, y, u, v: -right(y, u, v)),
    ("inner", Oblique, "twice", lambda right, y, u, v: 2 * right(y, u, v)),
    ("inner", Oblique, "one_missing", lambda right, y, u, v: (u * v)[..., 1:].sum((-2, -1))),
    (
        "inner",
        Oblique,
        "not_symmetric",
        lambda right, y, u, v: (u * v + u * v.roll(1, -1) / 3).sum((-2, -1)),
    ),
    ("inner", SPD, "twice", lambda right, y, u, v: 2 * right(y, u, v)),
    ("gradient", Oblique, "minus", lambda right, y, g: -right(y, g)),
    ("gradient", Oblique, "twice", lambda right, y, g: 2 * right(y, g)),
    ("gradient", Oblique, "not_tangent", lambda right, y, g: g.clone()),
    ("gradient", SPD, "twice", lambda right, y, g: 2 * right(y, g)),
    ("hessian", Oblique, "without_curvature", lambda right, y, g, p, z: Oblique().tangent(y, p)),
    ("hessian", Oblique, "minus", lambda right, y, g, p, z: -right(y, g, p, z)),
    (
        "hessian",
        Oblique,
        "not_tangent",
        lambda right, y, g, p, z: p - z * (y * g).sum(-2, keepdim=True),
    ),
    (
        "hessian",
        Grassmann,
        "without_curvature",
        lambda right, y, g, p, z: Grassmann().tangent(y, p),
    ),
    (
        "hessian",
        Hyperbolic,
        "without_curvature",
        lambda right, y, g, p, z: Hyperbolic().gradient(y, p),
    ),
    (
        "hessian",
        PositiveSimplex,
        "christoffel",
        lambda right, y, g, p, z: 2 * right(y, g, p, z) - right(y, 0 * g, p, z),
    ),
    ("hessian", SPD, "christoffel", lambda right, y, g, p, z: right(y, 2 * g, p, z)),
    ("exponential", Sphere, "not_projected", lambda right, y, z: y + z),
    ("exponential", Sphere, "minus", lambda right, y, z: right(y, -z)),
    ("exponential", Sphere, "twice", lambda right, y, z: right(y, 2 * z)),
    ("exponential", Oblique, "retraction", lambda right, y, z: Oblique().retract(y, z)),
    ("exponential", Hyperbolic, "retraction", lambda right, y, z: Hyperbolic().retract(y, z)),
]
SHAPES = {SPD: (3, 3)}


@pytest.mark.parametrize(
    ("method", "base", "change"),
    [pytest.param(m, b, c, id=f"{m}-{b.__name__}-{what}") for m, b, what, c in WRONG],
)
def test_of_a_method_that_is_wrong_exactly_that_is_named(method, base, change):
    report = ddnkit.check_manifold(broken(base, method, change), SHAPES.get(base), examples=1)
    assert report.wrong == (method,), str(report)
    assert not report.ok
    assert f"diagnosis: `{method}` is wrong" in str(report)


def test_three_methods_are_a_manifold():
    report = ddnkit.check_manifold(UnitColumns())
    assert report.ok, str(report)
    assert report.shape == (5, 3)


def test_where_nothing_decides_both_are_named():
    def twice(right, y):
        return 2 * right(y)

    report = ddnkit.check_manifold(broken(UnitColumns, "project", twice))
    assert report.wrong == ("constraint", "project")
    assert "`constraint` or `project` is wrong" in str(report)

    class Pair(UnitColumns):
        def normal(self, y, multipliers):
            return y * multipliers

        def multipliers(self, y, gradient):
            return 2 * (y * gradient).sum(-2, keepdim=True)

    report = ddnkit.check_manifold(Pair())
    assert report.wrong == ("multipliers", "normal")


def test_what_rests_on_a_wrong_method_is_not_judged():
    def twice(right, y, sigma):
        return 2 * right(y, sigma)

    report = ddnkit.check_manifold(broken(Oblique, "normal", twice), examples=1)
    unjudged = {row.method for row in report.rows if row.ok is None}
    assert {"tangent", "transport", "gradient", "hessian"} <= unjudged
    assert {row.note for row in report.rows if row.ok is None} == {
        "not checked, as `normal` is wrong"
    }


def test_the_text_names_the_factor_and_what_was_expected():
    def twice(right, y, sigma, z):
        return 2 * right(y, sigma, z)

    (fault,) = ddnkit.check_manifold(broken(Oblique, "constraint_curvature", twice)).faults
    assert "expected the derivative of `normal` along a tangent vector" in fault.text
    assert "it gives 2 times that" in fault.text


def test_an_argument_that_is_changed_is_told_and_put_back():
    def in_place(right, y, v):
        return v.sub_(y * (y * v).sum(-2, keepdim=True))

    report = ddnkit.check_manifold(broken(Oblique, "tangent", in_place), examples=1)
    assert report.wrong == ("tangent",)
    assert "changes an argument in place" in str(report)


def test_a_method_that_fails_is_told_with_its_error():
    def fails(right, y, to, v):
        raise ValueError("no such vector")

    report = ddnkit.check_manifold(broken(Oblique, "transport", fails), examples=1)
    assert report.wrong == ("transport",)
    assert "no such vector" in str(report)


def test_the_attribute_normal_by_rows_is_held_against_normal():
    class Claims(PositiveSimplex):
        normal_by_rows = True

    assert ddnkit.check_manifold(Claims(), examples=1).wrong == ("normal_by_rows",)


def test_the_generator_of_the_caller_is_left_alone():
    before = torch.random.get_rng_state()
    first = ddnkit.check_manifold(Sphere(), examples=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.to_dict() == ddnkit.check_manifold(Sphere(), examples=1).to_dict()


@pytest.mark.parametrize(
    ("manifold", "shape", "message"),
    [
        (Sphere, None, "takes a ddnkit.Manifold"),
        (Stiefel(), (3, 5), "no point of shape"),
        (Sphere(), (3, 5), "has 1 dimensions"),
        (Product(), None, "no parts"),
        (Product(Sphere()), [(3,), (4,)], "1 parts; it has 2"),
        (FixedRank(2), (9, 3), "r ≤ 2"),
    ],
)
def test_what_cannot_be_checked_is_wrong_input(manifold, shape, message):
    with pytest.raises(ddnkit.InputError, match=message.replace("(", r"\(")):
        ddnkit.check_manifold(manifold, shape)


FILE = """
import torch
import ddnkit
from ddnkit_manifolds import Euclidean, Oblique, Product, SpecialOrthogonal


class Twice(Oblique):
    def constraint_curvature(self, y, multipliers, direction):
        return 2 * super().constraint_curvature(y, multipliers, direction)


class Columns(ddnkit.DeclarativeNode):
    input_dims = (2,)
    manifold = Twice()

    def objective(self, W, y):
        return ((y - W) ** 2).sum() + 0.1 * ((y.mT @ y) ** 2).sum()

    def initial_point(self, W):
        return W / W.norm(dim=0, keepdim=True)

    def sample_inputs(self):
        return (torch.randn(4, 3),)


POSES = Product(SpecialOrthogonal(), Euclidean())
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "twice.py"
    path.write_text(FILE)
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_the_command_names_the_method(file):
    result = run(f"{file}:Twice", "--shape", "4,2", "--examples", 1)
    assert result.exit_code == 1
    assert "diagnosis: `constraint_curvature` is wrong" in result.output
    result = run(f"{file}:Twice", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["wrong"] == ["constraint_curvature"]


def test_the_command_takes_names_modules_and_objects(file):
    for target, shape in (
        ("manifold:stiefel", "4,2"),
        ("ddnkit_manifolds:Oblique", "4,2"),
        (f"{file}:POSES", None),
    ):
        options = [] if shape is None else ["--shape", shape]
        result = run(target, "--examples", 1, *options)
        assert result.exit_code == 0, result.output
        assert result.output.startswith(f"{target}: 9 points of shape ")
    result = run(f"{file}:POSES", "--shape", "2,2", "--shape", "2", "--examples", 1)
    assert result.exit_code == 0 and "shape (6,)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["manifold:stifel"], "'stiefel'"),
        (["manifold:sphere", "--local"], "--local is an option of a check of a node"),
        (["nearest_etf", "--shape", "3"], "--shape is an option of a check of a manifold"),
        (["manifold:sphere", "--shape", "three"], "--shape three"),
        (["manifold:sphere", "--shape", "0"], "--shape 0"),
        (["ddnkit_manifolds:Obliqe"], "'Oblique'"),
        (
            ["ddnkit_manifolds:procrustes_adjoint"],
            "not a ddnkit.DeclarativeNode or a ddnkit.Manifold",
        ),
    ],
)
def test_wrong_arguments_exit_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output.replace("\n", " ")


def test_a_node_on_a_wrong_manifold_is_told_of_the_manifolds_method(file):
    W = torch.tensor([[1.0, 0.4], [0.3, -1.2], [0.2, 0.5]], dtype=torch.float64)
    report = ddnkit.check(ddnkit.load_target(f"{file}:Columns"), W)
    assert not report.ok
    assert [kind.value for kind in report.kinds] == ["wrong_manifold"]
    assert "Twice(): `constraint_curvature` is wrong" in report.diagnosis[0]


def test_a_right_manifold_hides_no_fault_of_the_node():
    class Wrong(ddnkit.DeclarativeNode):
        input_dims = (1,)
        manifold = Sphere()

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def solve(self, x):
            return x / x.norm()

        def adjoint(self, x, *, y, v):
            return (2 * (v - y * (v @ y)) / x.norm(),)

        def sample_inputs(self):
            return (torch.randn(4),)

    report = ddnkit.check(Wrong(), examples=1)
    assert [kind.value for kind in report.kinds] == ["adjoint_factor"]


class UpToAConstant(ddnkit.Manifold):
    """Vectors of which y and y + c mean the same."""

    name, event_dims = "up_to_a_constant", 1

    def constraint(self, y):
        return y[..., :0]

    def project(self, y):
        return y

    def random(self, shape, *, generator=None, like):
        return ddnkit.gaussian(shape, generator, like)

    def vertical(self, y):
        return torch.ones_like(y).unsqueeze(-2)


def test_a_quotient_by_directions_that_are_the_same_everywhere():
    report = ddnkit.check_manifold(UpToAConstant())
    assert report.ok, str(report)
