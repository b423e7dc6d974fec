"""DeclarativeLayer: batching, dtypes, inputs that are no tensors, and what it refuses."""

import pytest
import torch

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Solution, Status


class Affine(DeclarativeNode):
    """min ½‖y − s·x‖², 1ᵀy = 1, with a scale s that may be a number or a tensor."""

    input_dims = (1, 0)

    def objective(self, x, s, y):
        return ((y - s * x) ** 2).sum() / 2

    def equality_constraints(self, x, s, y):
        return y.sum() - 1

    def solve(self, x, s):
        return s * x + (1 - (s * x).sum()) / x.numel()


class BatchedAffine(Affine):
    batched_solve = True

    def solve(self, x, s):
        assert x.ndim == 2  # exactly one batch dimension, whatever the caller's
        s = s.unsqueeze(-1) if isinstance(s, torch.Tensor) else s
        return s * x + (1 - (s * x).sum(-1, keepdim=True)) / x.shape[-1]


@pytest.mark.parametrize("node", [Affine(), BatchedAffine()], ids=["items", "batched"])
def test_batch_is_inferred_and_broadcast(node):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    s = torch.rand(3, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(x, s)
    assert y.shape == (2, 3, 4)
    assert layer.certificate.stationarity.shape == (2, 3)
    assert torch.autograd.gradcheck(layer, (x, s))


def test_a_number_passes_through():
    y = DeclarativeLayer(Affine())(torch.tensor([1.0, 2.0, 3.0]), 0.5)
    torch.testing.assert_close(y, torch.tensor([0.5, 1.0, 1.5]) + (1 - 3.0) / 3)


def test_batch_dims_without_input_dims():
    class Plain(Affine):
        input_dims = None

        def objective(self, x, y):
            return super().objective(x, 1.0, y)

        def equality_constraints(self, x, y):
            return super().equality_constraints(x, 1.0, y)

        def solve(self, x):
            return super().solve(x, 1.0)

    x = torch.randn(5, 4)
    one = DeclarativeLayer(Plain())
    batch = DeclarativeLayer(Plain(), batch_dims=1)
    torch.testing.assert_close(batch(x), torch.stack([one(row) for row in x]))
    with pytest.raises(InputError, match="batch_dims = 3"):
        DeclarativeLayer(Plain(), batch_dims=3)(x)


def test_integer_tensors_are_batched_and_get_no_gradient():
    class Pick(DeclarativeNode):
        input_dims = (1, 0)

        def objective(self, x, k, y):
            return (y - x[k]) ** 2

        def solve(self, x, k):
            return x[k]

    x = torch.randn(3, 4, requires_grad=True)
    y = DeclarativeLayer(Pick())(x, torch.tensor([0, 2, 1]))
    y.sum().backward()
    expected = torch.zeros(3, 4)
    expected[[0, 1, 2], [0, 2, 1]] = 1
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_solved_in_float32(dtype):
    x = torch.randn(4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = DeclarativeLayer(Affine(), policy="raise")(x, 1.0)
    assert y.dtype == torch.float32
    y[0].backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(x.grad.float(), torch.tensor([0.75, -0.25, -0.25, -0.25]))


def test_mixed_dtypes_meet_in_the_wider():
    x = torch.randn(4, requires_grad=True)
    y = DeclarativeLayer(Affine())(x, torch.tensor(1.0, dtype=torch.float64))
    assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_non_contiguous_and_expanded_inputs():
    base = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Affine(), policy="raise")
    assert torch.autograd.gradcheck(lambda b: layer(b.T, 1.0), base)
    row = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: layer(r.expand(3, 4), 1.0), row)


def test_change_in_place_between_the_passes_is_noticed():
    x = torch.randn(4, requires_grad=True)
    z = x * 1
    y = DeclarativeLayer(Affine())(z, 1.0)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_solution_carries_status_and_iterations():
    class Reports(Affine):
        def solve(self, x, s):
            y = super().solve(x, s)
            return Solution(y, Status.CONVERGED, 7, "mine", {"kept": x})

    layer = DeclarativeLayer(Reports())
    layer(torch.randn(3, 4), 1.0)
    assert layer.certificate.iterations.tolist() == [7, 7, 7]
    assert layer.certificate.status.tolist() == [Status.CONVERGED] * 3
    assert layer.certificate.solver == "mine"


def test_the_certificate_is_of_the_last_call_whatever_the_order_of_the_ways_back():
    layer = DeclarativeLayer(Affine())
    first, second = (torch.randn(n, 4, requires_grad=True) for n in (2, 3))
    y_first, y_second = layer(first, 1.0), layer(second, 1.0)
    y_first.sum().backward()
    assert layer.certificate.stationarity.shape == (3,)
    assert layer.certificate.adjoint_residual is None
    y_second.sum().backward()
    assert layer.certificate.adjoint_residual.shape == (3,)


def test_repr_says_which_form_was_taken():
    layer = DeclarativeLayer(Affine())
    assert "backward=auto," in repr(layer)
    layer(torch.randn(3, 4), 1.0)
    assert "backward=auto (dense)" in repr(layer)
    assert layer.certificate.form == "dense"


def test_what_solve_returns_is_checked():
    class ReturnsNone(Affine):
        def solve(self, x, s):
            return None

    class ReturnsInteger(Affine):
        def solve(self, x, s):
            return x.long()

    class WrongBatch(BatchedAffine):
        def solve(self, x, s):
            return x[0]

    x = torch.randn(2, 4)
    with pytest.raises(InputError, match=r"ReturnsNone\.solve .*NoneType"):
        DeclarativeLayer(ReturnsNone())(x, 1.0)
    with pytest.raises(InputError, match="int64"):
        DeclarativeLayer(ReturnsInteger())(x, 1.0)
    with pytest.raises(InputError, match=r"WrongBatch\.solve .*\b2; .*\(4,\)"):
        DeclarativeLayer(WrongBatch())(x, 1.0)


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        ((1.0, 2.0), "Affine .*tensor"),
        ((torch.randn(4, dtype=torch.complex64), 1.0), "Affine: complex"),
        ((torch.randn(4),), r"Affine .*\b2\b.*\b1\b"),
        ((torch.tensor(1.0), 1.0), r"input 0 .*\(\).*input_dims = \(1, 0\).*\b1\b"),
        ((torch.randn(2, 4), torch.randn(3)), r"Affine: .*\(2,\), \(3,\)"),
    ],
)
def test_wrong_inputs_are_named(xs, message):
    with pytest.raises(InputError, match=message):
        DeclarativeLayer(Affine())(*xs)


def test_tensor_where_none_is_expected():
    class Optioned(Affine):
        input_dims = (1, None)

    with pytest.raises(InputError, match=r"Optioned: input 1 .*input_dims = \(1, None\)"):
        DeclarativeLayer(Optioned())(torch.randn(4), torch.tensor(1.0))


def test_a_node_without_solve_says_what_to_write():
    class Bare(DeclarativeNode):
        def objective(self, x, y):
            return ((y - x) ** 2).sum()

    with pytest.raises(InputError, match="`initial_point`"):
        DeclarativeLayer(Bare())(torch.randn(3))


def test_an_objective_that_is_no_scalar():
    class Vector(Affine):
        def objective(self, x, s, y):
            return (y - x) ** 2

    with pytest.raises(InputError, match=r"shape \(4,\)"):
        DeclarativeLayer(Vector())(torch.randn(4), 1.0)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_an_objective_that_is_no_tensor(batch):
    class Number(Affine):
        def objective(self, x, s, y):
            return 1.0

    with pytest.raises(InputError, match=r"Number\.objective.*float"):
        DeclarativeLayer(Number())(torch.randn(*batch, 4), 1.0)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_start_in_whole_numbers(batch):
    class Whole(DeclarativeNode):
        input_dims = (1,)

        def objective(self, k, y):
            return ((y - k) ** 2).sum()

        def initial_point(self, k):
            return torch.zeros_like(k)

    with pytest.raises(InputError, match=r"Whole\.initial_point.*int64.*floating"):
        DeclarativeLayer(Whole())(torch.ones(*batch, 2, dtype=torch.long))


def test_wrong_layer_arguments():
    with pytest.raises(InputError, match=r"ddnkit\.DeclarativeNode"):
        DeclarativeLayer(Affine)
    with pytest.raises(InputError, match=r"'dens' .*'dense'"):
        DeclarativeLayer(Affine(), "dens")
    with pytest.raises(InputError, match=r"'closed_form' .*Affine.*`adjoint.*'auto'"):
        DeclarativeLayer(Affine(), "closed_form")
    with pytest.raises(InputError, match=r"ddnkit\.BackwardForm.*\b3\b"):
        DeclarativeLayer(Affine(), 3)
    with pytest.raises(InputError, match=r"'raises'.*'raise'"):
        DeclarativeLayer(Affine(), policy="raises")


def test_objectives_that_branch_on_values_are_taken_one_by_one():
    class Branches(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return ((y - x) ** 2).sum() if bool(x[0] > 0) else ((y + x) ** 2).sum()

        def solve(self, x):
            return x if bool(x[0] > 0) else -x

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0]], requires_grad=True)
    y = DeclarativeLayer(Branches(), policy="raise")(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))


class TestOwnAdjoint:
    class Half(Affine):
        def adjoint(self, x, s, y, v):
            return v - v.mean(), None

    def test_is_used_and_may_omit_what_is_not_asked_for(self):
        x = torch.randn(3, 4, requires_grad=True)
        layer = DeclarativeLayer(self.Half())
        layer(x, 1.0)[:, 0].sum().backward()
        assert layer.certificate.form == "closed_form"
        torch.testing.assert_close(x.grad[0], torch.tensor([0.75, -0.25, -0.25, -0.25]))

    def test_but_not_what_is(self):
        s = torch.tensor(1.0, requires_grad=True)
        with pytest.raises(InputError, match=r"Half\.adjoint .*None.* input 1"):
            DeclarativeLayer(self.Half())(torch.randn(4), s).sum().backward()

    def test_its_shapes_and_number_are_checked(self):
        class Few(Affine):
            def adjoint(self, x, s, y, v):
                return (v,)

        class Shape(Affine):
            def adjoint(self, x, s, y, v):
                return v.sum(), None

        x = torch.randn(4, requires_grad=True)
        with pytest.raises(InputError, match=r"Few\.adjoint .*\b2\b.*\b1\b"):
            DeclarativeLayer(Few())(x, 1.0).sum().backward()
        with pytest.raises(InputError, match=r"Shape\.adjoint .*\(1,\) .*input 0 .*\(1, 4\)"):
            DeclarativeLayer(Shape())(x, 1.0).sum().backward()

    @pytest.mark.parametrize("returned", [None, torch.zeros(2), torch.zeros(())])
    def test_so_is_what_holds_them(self, returned):
        class Bare(Affine):
            def adjoint(self, x, s, y, v):
                return returned

        x = torch.randn(2, 4, requires_grad=True)
        with pytest.raises(InputError, match=r"Bare\.adjoint must return a tuple"):
            DeclarativeLayer(Bare())(x, 1.0).sum().backward()

    def test_receives_what_solve_kept(self):
        class Keeps(Affine):
            def solve(self, x, s):
                return Solution(super().solve(x, s), aux={"mean": x.mean()})

            def adjoint(self, x, s, y, v, aux):
                assert aux["mean"] == x.mean()
                return v - v.mean(), None

        x = torch.randn(2, 4, requires_grad=True)
        DeclarativeLayer(Keeps())(x, 1.0)[:, 0].sum().backward()
        assert x.grad[0, 0] == 0.75


def test_nothing_to_differentiate_with_respect_to():
    """An objective that ignores its input has a zero gradient, not an error."""

    class Constant(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x, y):
            return (y**2).sum()

        def solve(self, x):
            return torch.zeros_like(x)

    x = torch.randn(3, requires_grad=True)
    DeclarativeLayer(Constant(), policy="raise")(x).sum().backward()
    assert (x.grad == 0).all()


def test_node_solve_works_on_its_own_for_nodes_with_a_solver():
    node = ddnkit.testing.EqualityQP()
    solution = node.solve(torch.ones(2).double(), torch.tensor(1.0).double())
    torch.testing.assert_close(solution.y, torch.tensor([0.25, 0.75]).double())
    assert solution.statuses() == [Status.CONVERGED]
    assert "tolerance" in Status.CONVERGED.causes
