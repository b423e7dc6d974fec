"""A y of several parts, each on a manifold of its own."""

import pytest
import torch
from ddnkit_manifolds import Euclidean, Product, SpecialOrthogonal, Sphere
from ddnkit_manifolds.testing import Pose, PoseAround, PoseThrough, PoseWithin

import ddnkit
from ddnkit import InputError, testing
from ddnkit.certificate import TOLERANCE


def targets(problem, count):
    return torch.stack([testing.sample(problem, seed)[0] for seed in range(count)])


def parts(y):
    return list(y.values()) if isinstance(y, dict) else list(y)


class BySolver:
    """The problem by ddnkit's own solver."""

    solve = ddnkit.DeclarativeNode.solve


#: Of a start that is wrong by a tenth: what the default solver promises, times the condition of a pose.
SOLVED = 1e3 * TOLERANCE[torch.float64]


@pytest.mark.parametrize("problem", [Pose, PoseAround, PoseWithin, PoseThrough])
def test_batches_and_items_agree(problem):
    Q = targets(problem(), 3).requires_grad_()
    layer = ddnkit.DeclarativeLayer(problem(), policy="raise")
    together = parts(layer(Q))
    (gradient,) = torch.autograd.grad(sum(part.sin().sum() for part in together), Q)
    mapped = parts(torch.vmap(layer)(Q.detach()))
    for k in range(3):
        q = Q.detach()[k].requires_grad_()
        alone = parts(layer(q))
        (own,) = torch.autograd.grad(sum(part.sin().sum() for part in alone), q)
        torch.testing.assert_close(gradient[k], own)
        for a, b, c in zip(alone, together, mapped, strict=True):
            torch.testing.assert_close(b[k], a)
            torch.testing.assert_close(c[k], a)
    assert layer(Q).keys() == {"R", "t"} if problem is not Pose else isinstance(layer(Q), tuple)


@pytest.mark.parametrize("problem", [Pose, PoseAround, PoseWithin, PoseThrough])
def test_a_start_has_the_parts_of_a_solution(problem):
    node = type(problem.__name__, (BySolver, problem), {})()
    (Q,) = testing.sample(node)
    answer = node.answer(Q)
    near = (
        testing.join_parts(answer)
        + 0.1 * torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    )
    R, t = near[:9].reshape(3, 3), near[9:]
    start = {"R": R, "t": t} if isinstance(answer, dict) else (R, t)
    found = ddnkit.DeclarativeLayer(node, policy="raise")(Q, start=start)
    assert type(found) is type(answer)
    error = testing.join_parts(found) - testing.join_parts(answer)
    assert error.norm() <= SOLVED


def test_another_number_of_parts_is_told():
    class Three(Pose):
        manifold = Product(SpecialOrthogonal(), Euclidean(), Sphere())

    class One(ddnkit.DeclarativeNode):
        manifold = Product(Sphere())
        input_dims = (1,)

        def objective(self, x, y):
            return -(x * y).sum()

        def initial_point(self, x):
            return x

    with pytest.raises(InputError, match=r"takes a y of 3 parts; it has 2"):
        ddnkit.DeclarativeLayer(Three())(*testing.sample(Pose()))
    with pytest.raises(InputError, match=r"takes a y of 1 parts; it is one tensor"):
        ddnkit.DeclarativeLayer(One())(torch.ones(3))
