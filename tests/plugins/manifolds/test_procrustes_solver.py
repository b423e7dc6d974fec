"""The closed form of the Procrustes problem, and its completion where A is rank-deficient."""

import pytest
import torch
from bounds import condition, eps, factorised, infeasibility, rounding
from ddnkit_manifolds import Procrustes, Sphere, Stiefel

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Problem, Status
from ddnkit.linalg.inverse_root import ACCURACY


class MaximalTrace(DeclarativeNode):
    manifold = Stiefel()

    def objective(self, A, *_, y):
        return -(A * y).sum()

    def procrustes_target(self, A, *_):
        return A

    def initial_point(self, A, *_):
        return Stiefel().project(torch.ones_like(A))


class Completed(MaximalTrace):
    def procrustes_completion(self, A, preferred):
        return preferred


def polar(A):
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


def of_rank(rank, d=7, C=4, batch=3):
    factors = torch.randn(batch, d, C).double(), torch.randn(batch, C, C).double()
    return factors[0][..., :rank] @ factors[1][:, :rank]


def point(batch=3, d=7, C=4):
    return Stiefel().random((batch, d, C), like=torch.zeros((), dtype=torch.float64))


def orthonormal(U):
    return Stiefel().infeasibility(U).max() < factorised(U, U.shape[-2])


@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (3, 1)])
def test_attains_the_sum_of_singular_values(shape):
    A = torch.randn(5, *shape, dtype=torch.float64)
    problem = Problem(MaximalTrace(), [A], 5)
    solution = Procrustes().solve(problem)
    assert orthonormal(solution.y)
    assert torch.allclose(problem.objective(solution.y), -torch.linalg.svdvals(A).sum(dim=-1))
    assert solution.statuses() == [Status.CONVERGED] * 5
    assert solution.iterations.tolist() == [0] * 5
    V, s = solution.aux["right_vectors"], solution.aux["singular_values"]
    assert V.shape == (5, shape[1], shape[1])
    # (AᵀA)^{1/2} = UᵀA = V diag(s) Vᵀ
    assert torch.allclose(V * s.unsqueeze(1) @ V.mT, solution.y.mT @ A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_are_solved_in_double(dtype):
    A = torch.randn(2, 7, 4).to(dtype)
    solution = Procrustes().solve(Problem(MaximalTrace(), [A], 2))
    assert solution.y.dtype == dtype
    assert solution.aux["singular_values"].dtype == torch.float64
    # In another way, and so another number where it is as far from one of the dtype as from the next.
    torch.testing.assert_close(solution.y, polar(A.double()).to(dtype), atol=eps(dtype), rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 4])
def test_completion_is_the_limit_of_a_vanishing_proximal_term(rank):
    A, preferred = of_rank(rank), point()
    U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    assert orthonormal(U)
    near, nearer = ((polar(A + delta * preferred) - U).norm() for delta in (1e-4, 1e-6))
    # To first order in δ, up to rounding, which 1/δ enlarges in the null space of A.
    assert nearer < 0.02 * near + factorised(A, 7, condition=1e6)


def test_ranks_may_differ_within_a_batch():
    A = torch.cat([of_rank(rank, batch=1) for rank in (4, 2, 0)])
    preferred = point()
    together = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    for index in range(3):
        problem = Problem.single(Completed(), [A[index], preferred[index]])
        s = torch.linalg.svdvals(A[index])
        condition = max(1.0, float(s[0] / s[s > 1e-10 * s[0]].amin())) if s[0] > 0 else 1.0
        bound = factorised(A, 7, condition=condition)
        alone = Procrustes().solve(problem).y[0]
        torch.testing.assert_close(together[index], alone, atol=bound, rtol=0)


def test_rank_is_that_of_the_inputs_precision():
    A, preferred = of_rank(2).float(), point().float()
    U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
    exact = Procrustes().solve(Problem(Completed(), [of_rank(2), preferred.double()], 3)).y
    assert exact.dtype == torch.float64
    expected = polar(A.double() + 1e-4 * preferred.double())
    # By the rank of float64, U would follow what rounding left in the null space.
    assert (U - expected).norm() < 0.05 * (polar(A.double()) - expected).norm()


@pytest.mark.parametrize("rank", [0, 2])
def test_orthonormal_even_where_the_preferred_point_says_nothing(rank):
    A = of_rank(rank)
    # In the range of A, so that nothing of it is left for the null space; and no point at all.
    for preferred in (polar(A), torch.zeros_like(A), A):
        U = Procrustes().solve(Problem(Completed(), [A, preferred], 3)).y
        assert orthonormal(U)
        gap = torch.linalg.svdvals(A).sum(dim=-1) - (A * U).sum(dim=(-2, -1))
        assert gap.abs().max() <= factorised(A, 7, size=float(torch.linalg.matrix_norm(A).max()))


def test_without_completion_a_deficient_target_still_gives_a_point():
    U = Procrustes().solve(Problem(MaximalTrace(), [of_rank(2)], 3)).y
    assert orthonormal(U)


def test_an_item_that_is_not_finite_is_named_and_leaves_the_others_alone():
    A = torch.randn(3, 7, 4, dtype=torch.float64)
    A[1, 0, 0] = torch.nan
    solution = Procrustes().solve(Problem(MaximalTrace(), [A], 3))
    assert solution.statuses() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert solution.y[1].isnan().all()
    assert torch.allclose(solution.y[2], polar(A[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lead", [1, 3])
@pytest.mark.parametrize("shape", [(7, 4), (4, 4)])
def test_entries_of_any_size_are_solved_and_their_sum_need_not_be_finite(dtype, lead, shape):
    A = torch.randn(lead, *shape, dtype=torch.float64)
    A = (A / A.abs().max()).to(dtype)
    expected = polar(A.double()).to(dtype)
    bound = factorised(dtype, shape[0], condition=max(map(condition, A.double())))
    for size in (torch.finfo(dtype).max / 2, torch.finfo(dtype).tiny * 2.0**30):
        solution = Procrustes().solve(Problem(MaximalTrace(), [A * size], lead))
        assert solution.statuses() == [Status.CONVERGED] * lead
        assert (solution.y - expected).abs().max() <= bound
        s = torch.linalg.svdvals(A.double())
        least = (s[:, -1] + s[:, -2]) / 2 if shape[0] == shape[1] else s[:, -1]
        torch.testing.assert_close(
            solution.uniqueness, (least / s[:, 0]).to(dtype), atol=bound, rtol=0
        )


def test_more_columns_than_rows_is_an_error():
    problem = Problem(MaximalTrace(), [torch.randn(1, 2, 3)], 1)
    with pytest.raises(InputError, match=r"\(1, 2, 3\)"):
        Procrustes().solve(problem)


def test_says_what_it_cannot_take():
    class OnTheSphere(MaximalTrace):
        manifold = Sphere()

    A = torch.randn(7, 4)
    assert "Sphere()" in Procrustes().unsupported(Problem.single(OnTheSphere(), [A]))
    assert Procrustes().unsupported(Problem.single(MaximalTrace(), [A])) is None


class Nearest(DeclarativeNode):
    """Its A is 2W, which the objective shows."""

    input_dims = (2,)
    manifold = Stiefel()
    solver = "procrustes"

    def objective(self, W, y):
        return ((y - W) ** 2).sum()

    def initial_point(self, W):
        return Stiefel().project(torch.ones_like(W))

    def sample_inputs(self):
        return (torch.randn(6, 3),)


class Linear(Nearest):
    def objective(self, W, y):
        return 5.0 - 3 * (W * y).sum()


class Bent(Nearest):
    def objective(self, W, y):
        return ((y - W) ** 2).sum() + 1e-2 * (y**4).sum()


@pytest.mark.parametrize("node", [Nearest(), Linear()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 6, 3), (6, 3), (2, 4, 4), (3, 5, 1), (0, 6, 3)])
def test_the_objective_shows_what_it_is_linear_in(node, dtype, shape):
    W = torch.randn(shape, dtype=dtype, requires_grad=True)
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(W)
    wide = W.detach().double()
    cond = max((condition(each) for each in wide.reshape(-1, *shape[-2:])), default=1.0)
    bound = factorised(dtype, shape[-2], condition=cond)
    torch.testing.assert_close(y.detach().double(), polar(wide), atol=bound, rtol=0)
    v = torch.randn(shape, dtype=dtype)
    wide.requires_grad_()
    (expected,) = torch.autograd.grad(polar(wide), wide, v.double())
    (found,) = torch.autograd.grad(y, W, v)
    bound = bound * cond * max(1.0, float(expected.norm()) if expected.numel() else 1.0)
    torch.testing.assert_close(found.double(), expected, atol=bound, rtol=0)


def test_another_objective_is_refused_and_one_that_is_no_number_is_told_by_item():
    W = torch.randn(3, 6, 3)
    # What is bent beyond rounding: 1e-5 of the gradient at the last scale.
    for scale, dtype in ((1e-3, torch.float32), (1.0, torch.float32), (1e3, torch.float64)):
        with pytest.raises(InputError, match="newton"):
            DeclarativeLayer(Bent())(scale * W.to(dtype))
    W[1, 0, 0] = torch.nan
    y = DeclarativeLayer(Nearest(), policy="nan")(W)
    assert y.isfinite().flatten(1).all(dim=1).tolist() == [True, False, True]
    for item in (0, 2):
        assert torch.equal(y[item], DeclarativeLayer(Nearest(), policy="raise")(W[item]))


class Anyhow(Nearest):
    """A start that is no point of the manifold, as iterative solvers take it."""

    def initial_point(self, W):
        return torch.full_like(W, self.entry)


@pytest.mark.parametrize("entry", [0.0, 3.0])
def test_where_it_starts_does_not_matter(entry):
    node, W = Anyhow(), torch.randn(3, 6, 3, dtype=torch.float64)
    node.entry = entry
    y = DeclarativeLayer(node, policy="raise")(W)
    assert torch.equal(y, DeclarativeLayer(Nearest(), policy="raise")(W))


class Hinged(Nearest):
    """Linear but where few points are, with its least value elsewhere."""

    def objective(self, W, y):
        gain = (W * y).sum() / W.norm()
        return W.norm() * (-gain + 10 * torch.relu(gain - 0.8) ** 2)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
@pytest.mark.parametrize("node", [Hinged(), Bent()])
def test_an_objective_that_bends_is_refused_whatever_its_size_and_wherever_it_does(node, scale):
    class Scaled(type(node)):
        def objective(self, W, y):
            return scale * super().objective(W, y)

    W = torch.randn(2, 40, 2)
    W = W / torch.linalg.vector_norm(W, dim=(-2, -1), keepdim=True)
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(InputError, match="newton"):
            DeclarativeLayer(Scaled())(W.to(dtype))


def test_a_check_names_the_solver_that_has_a_closed_form():
    class ByNewton(Nearest):
        solver = "newton"

    class BentByNewton(Bent):
        solver = "newton"

    (told,) = [note for note in ddnkit.check(ByNewton(), examples=2).notes if "procrustes" in note]
    assert 'solver = "procrustes"' in told
    for node in (Nearest(), BentByNewton()):
        report = ddnkit.check(node, examples=2)
        assert report.ok and not [note for note in report.notes if "procrustes" in note]


def test_a_check_does_not_take_another_minimum_for_this_one():
    class Rotation(Nearest):
        """From the unit matrix newton stays among rotations, which the nearest matrix is not one of."""

        solver = "newton"

        def initial_point(self, W):
            return torch.eye(3, dtype=W.dtype).expand_as(W)

        def sample_inputs(self):
            W = torch.randn(3, 3, dtype=torch.float64)
            return (W * -torch.linalg.det(W).sign(),)

    (told,) = [note for note in ddnkit.check(Rotation(), examples=1).notes if "procrustes" in note]
    assert "this minimum" not in told


# -- by products -----------------------------------------------------------------------------------


def solved(A, preferred=None, method="products"):
    node, inputs = (MaximalTrace(), [A]) if preferred is None else (Completed(), [A, preferred])
    return Procrustes(method).solve(Problem(node, inputs, len(A)))


def near_frame(U):
    return Stiefel().infeasibility(U).max() < infeasibility(U, *U.shape[-2:])


@pytest.mark.parametrize("shape", [(7, 4), (4, 4), (3, 1), (1, 1), (2, 2), (300, 257)])
def test_products_find_the_polar_factor(shape):
    A = torch.randn(3, *shape) * torch.tensor([1.0, 1e-12, 1e12])[:, None, None]
    solution = solved(A)
    assert solution.y.dtype == torch.float32
    assert solution.statuses() == [Status.CONVERGED] * 3
    assert near_frame(solution.y)
    expected = polar(A.double())
    error = (solution.y - expected).norm(dim=(-2, -1)) / shape[1] ** 0.5
    # U is rounded to float32 once; before that AᵀA costs the square of the condition in float64.
    s = torch.linalg.svdvals(A.double())
    condition = float((s[:, 0] / s[:, -1]).max())
    wide = factorised(torch.float64, shape[0], condition=condition**2)
    assert (error <= rounding(torch.float32, 2) + wide).all()
    # S and its inverse are Z's, which has the error of its iteration, once and twice.
    S, inverse = solution.aux["symmetric"], solution.aux["inverse"]
    size = S.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(
        S / size, expected.mT @ A.double() / size, atol=1.1 * ACCURACY + wide, rtol=0
    )
    eye = torch.eye(shape[1], dtype=torch.float64).expand_as(S)
    torch.testing.assert_close(S @ inverse, eye, atol=2.1 * ACCURACY + wide, rtol=0)


@pytest.mark.parametrize("shape", [(7, 4), (40, 10), (12, 12), (2, 2)])
@pytest.mark.parametrize("spread", [0, 1, 3])
def test_products_bound_singular_values_and_uniqueness_from_the_safe_side(shape, spread):
    d, C = shape
    s = torch.logspace(-spread, 0, C).expand(5, C)
    Q = torch.linalg.qr(torch.randn(5, d, C)).Q
    A = Q * s.unsqueeze(1) @ torch.linalg.qr(torch.randn(5, C, C)).Q
    found, exact = solved(A), solved(A, method="factors")
    s = torch.linalg.svdvals(A.double())
    least, second, largest = found.aux["bounds"].unbind(-1)
    # The error of the iteration, the square of the condition in float64, and a float32 figure.
    wide = factorised(torch.float64, d, condition=100.0**spread)
    close = 1 + 2 * ACCURACY + wide + rounding(torch.float32, 4)
    slack = C**0.125 * close
    assert ((least <= s[:, -1] * close) & (least * slack >= s[:, -1])).all()
    assert ((largest * close >= s[:, 0]) & (largest <= s[:, 0] * slack)).all()
    if d == C:
        assert (second <= s[:, -2] * close).all()
    unique = found.uniqueness / exact.uniqueness
    assert (unique <= close).all()
    # C^{1/8} for each bound; that of the second least value has a direction that is only nearly right.
    assert (unique >= 0.9 * C**-0.25).all()


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(7, 4), (40, 10), (300, 260)])
def test_products_complete_as_factors_do(shape, rank):
    d, C = shape
    rank = rank * C // 4
    A = (of_rank(rank, d, C, 2) if rank else torch.zeros(2, d, C)).float()
    preferred = point(2, d, C).float()
    found, exact = solved(A, preferred), solved(A, preferred, "factors")
    assert found.statuses() == [Status.CONVERGED] * 2
    assert near_frame(found.y)
    # ν/(η t) as the module says, with ν the rounding of A where it should be zero, η = 0.1, and t the
    # least of what the preferred point has in the null space.
    t = float(of_null_space(A, preferred, rank).min())
    error = (found.y - exact.y).norm(dim=(-2, -1)).max() / C**0.5
    assert error < rounding(torch.float32, C**0.5, condition=1 / (0.1 * t))
    assert (found.uniqueness == 0).all()
    # A minimiser: nothing of the objective is lost but rounding.
    lost = torch.linalg.svdvals(A.double()).sum(-1) - (A.double() * found.y).sum((-2, -1))
    assert (lost <= rounding(A, 8) * torch.linalg.matrix_norm(A) * C**0.5).all()


def of_null_space(A, preferred, rank):
    """The singular values of (I − P_r P_rᵀ) P̂ V_0, those that the completion has to go by."""
    left, _, right = torch.linalg.svd(A.double(), full_matrices=False)
    left, null = left[..., :rank], right[..., rank:, :].mT
    rest = preferred.double() @ null
    return torch.linalg.svdvals(rest - left @ (left.mT @ rest))


def test_products_leave_full_rank_items_as_they_are():
    A = torch.cat([of_rank(rank, batch=1) for rank in (4, 2, 4)]).float()
    preferred = point().float()
    together, other = solved(A, preferred), solved(A, -preferred)
    for index in (0, 2):
        assert torch.equal(together.y[index], other.y[index])
    assert not torch.allclose(together.y[1], other.y[1], atol=1e-2)


def test_products_complete_without_a_preferred_point():
    solution = solved(of_rank(2, 40, 10).float())
    assert solution.statuses() == [Status.CONVERGED] * 3
    assert near_frame(solution.y)
    assert (solution.uniqueness == 0).all()


def test_products_lose_no_more_than_the_values_about_the_threshold():
    s = torch.logspace(0, -7, 60, dtype=torch.float64)
    Q, V = (torch.linalg.qr(torch.randn(n, 60).double()).Q for n in (128, 60))
    A = (Q * s @ V).float().unsqueeze(0)
    preferred = Stiefel().random((1, 128, 60), like=A)
    found = solved(A, preferred)
    assert near_frame(found.y)
    threshold = 128 * torch.finfo(torch.float32).eps
    small = s[s < 3 * threshold].sum()
    assert s.sum() - (A * found.y).double().sum() < small


def test_products_say_so_where_nothing_completes():
    A = of_rank(2).float()
    # P̂ in the range of A has nothing for the null space.
    solution = solved(A, A)
    assert solution.statuses() == [Status.MAX_ITERATIONS] * 3
    assert (Stiefel().infeasibility(solution.y) > 0.1).all()


def test_products_name_an_item_that_is_not_finite():
    A = torch.randn(4, 7, 4)
    A[1, 0, 0], A[3, 2, 1] = torch.nan, torch.inf
    solution = solved(A)
    bad = Status.NON_FINITE
    assert solution.statuses() == [Status.CONVERGED, bad, Status.CONVERGED, bad]
    assert solution.y[1].isnan().all()
    assert solution.y[3].isnan().all()
    torch.testing.assert_close(solution.y[[0, 2]], solved(A[[0, 2]]).y)


def test_methods():
    with pytest.raises(InputError, match=r"auto, factors, products.*'svd'"):
        Procrustes("svd")
    with pytest.raises(InputError, match="'factors'"):
        solved(torch.randn(1, 4, 2, dtype=torch.float64))
    A = torch.randn(2, 7, 4)
    assert torch.equal(solved(A, method="auto").y, solved(A, method="factors").y)


# -- by factors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.3, 1e-3, 3e-5])
def test_large_float32_targets_keep_the_accuracy_of_float32(least):
    # Many columns: some products are then in float32.
    d, C = 330, 300
    s = torch.linspace(1, 3, C).double()
    s[: C // 3] = torch.logspace(torch.tensor(least).log10(), 0, C // 3)
    Q, V = (torch.linalg.qr(torch.randn(n, C).double()).Q for n in (d, C))
    A = (Q * s @ V).float().unsqueeze(0)
    solution = solved(A, method="factors")
    bound = infeasibility(torch.float32, d, C)
    assert Stiefel().infeasibility(solution.y) < bound
    # The error E of U: infeasibility is 2‖E‖_F/√C at most, which leaves half of the bound for the
    # eps₆₄ κ² of the few directions of the least values.
    error = (solution.y - polar(A.double())).norm() / C**0.5
    assert error < bound
    left, right = solution.aux["left_vectors"], solution.aux["right_vectors"]
    # A V diag(1/s): where that is in float32, 1/s enlarges the rounding of A V, of size 3, up to
    # `_ENLARGED` times, and less than twice in the mean square over s from ¾ to 3.
    assert Stiefel().infeasibility(left) < 2 * bound
    # Sums of C terms, √C in the mean square.
    torch.testing.assert_close(left @ right.mT, solution.y, atol=rounding(left, C**0.5), rtol=0)


def test_a_small_value_that_counts_as_full_rank_keeps_its_digits():
    # AᵀA would hold the square of the least one, 2e-12 of the largest, to three digits.
    A = torch.diag(torch.tensor([1.0, 0.5, 2e-6])).unsqueeze(0)
    A = torch.cat([A, torch.zeros(1, 2, 3)], dim=1)
    rotation = Stiefel().random((1, 5, 5), like=A)
    solution = solved(rotation @ A, torch.zeros(1, 5, 3), "factors")
    assert near_frame(solution.y)
    # 2e-6 but for the rounding of the product with the rotation.
    assert solution.uniqueness > 2e-6 - rounding(A, 5)
