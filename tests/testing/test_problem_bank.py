"""The public problem bank: what it says of each problem holds, by ways that do not share its formulas."""

import inspect
import subprocess
import sys
from operator import attrgetter

import pytest
import torch
from bounds import factorised
from scipy import optimize

import ddnkit
from ddnkit import testing
from ddnkit.structure import Structure
from ddnkit.testing import join_parts

BANK = testing.bank()
#: Of the directions: not one that inputs are sampled with, which would make them the same numbers.
DIRECTION_SEED = 0xD1_4EC7


def label(problem):
    return problem.label


def only(condition):
    chosen = [problem for problem in BANK if condition(problem)]
    assert chosen
    return pytest.mark.parametrize("problem", chosen, ids=label)


every_problem = only(lambda problem: True)


def seeds(count):
    """One for `make test`."""
    return pytest.mark.parametrize(
        "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, count))]
    )


def solution(problem, xs):
    with torch.no_grad():
        y = problem.solve(*xs)
    return y.y if isinstance(y, ddnkit.Solution) else y


def tensors(xs):
    return [x for x in xs if isinstance(x, torch.Tensor)]


def moved(xs, directions, step):
    rest = iter(directions)
    return [x + step * next(rest) if isinstance(x, torch.Tensor) else x for x in xs]


#: Of the differences: rounding over the step, 1e-10 of what is at most a few thousand beside J, and the
#: fourth power of the step. The fifth derivative takes what is left.
OF_DIFFERENCES = 1e-6
#: A gradient by a solve of order 20 at a condition up to 1e4.
OF_SOLVES = factorised(torch.float64, 20, condition=1e4)


def central_difference(function, step=1e-6):
    """The derivative at 0 of a function of a number, to fourth order."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def slope(jacobians, directions):
    """Σ Jᵢuᵢ."""
    terms = zip(jacobians, directions, strict=True)
    return sum((J * u).flatten(J.ndim - u.ndim).sum(-1) if u.ndim else J * u for J, u in terms)


def sampled_directions(xs):
    """Each input on its own, then all at once, twice."""
    generator = torch.Generator().manual_seed(DIRECTION_SEED)
    inputs = tensors(xs)
    masks = [*torch.eye(len(inputs)).double(), *torch.ones(2, len(inputs)).double()]
    return [
        [
            kept * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            for kept, x in zip(mask, inputs, strict=True)
        ]
        for mask in masks
    ]


def assert_near(found, expected, tolerance):
    size = expected.norm().clamp(min=1e-3)
    assert (found - expected).norm() <= tolerance * size, (found - expected).norm() / size


def layer_jacobians(problem, xs, form):
    """y, and dy/dxᵢ by one backward pass an entry of y."""
    xs = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in xs]
    parts = ddnkit.DeclarativeLayer(problem, form)(*xs)
    y = join_parts(parts)
    rows = [torch.autograd.grad(e, tensors(xs), retain_graph=True) for e in y.reshape(-1)]
    columns = zip(zip(*rows, strict=True), tensors(xs), strict=True)
    return parts, [torch.stack(J).reshape(y.shape + x.shape) for J, x in columns]


# -- what each problem says of itself -------------------------------------------------------------


@every_problem
def test_samples_are_float64_and_of_the_declared_dimensions(problem):
    xs = testing.sample(problem, seed=1)
    assert len(problem.input_dims) == len(xs)
    for x, own in zip(xs, problem.input_dims, strict=True):
        assert isinstance(x, torch.Tensor) == (own is not None)
        assert own is None or (x.ndim == own and x.dtype == torch.float64)


@every_problem
def test_jacobians_have_the_shapes_of_y_and_input(problem):
    xs = testing.sample(problem, seed=1)
    y = solution(problem, xs)
    if not problem.analytic:
        with pytest.raises(NotImplementedError):
            problem.jacobians(*xs, y=y)
        return
    found = [J.shape for J in problem.jacobians(*xs, y=y)]
    assert found == [join_parts(y).shape + x.shape for x in tensors(xs)]


@seeds(3)
@only(lambda problem: problem.analytic)
def test_jacobians_are_central_differences_through_the_solution(problem, seed):
    xs = testing.sample(problem, seed)
    jacobians = problem.jacobians(*xs, y=solution(problem, xs))
    for directions in sampled_directions(xs):
        directions = problem.feasible_directions(xs, directions)
        found = central_difference(
            lambda t, u=directions: join_parts(solution(problem, moved(xs, u, t)))
        )
        assert_near(found, slope(jacobians, directions), OF_DIFFERENCES)


@only(lambda problem: not problem.analytic)
def test_without_an_analytic_jacobian_the_dense_form_is_the_difference(problem):
    for seed in range(3):
        xs = testing.sample(problem, seed)
        _, jacobians = layer_jacobians(problem, xs, "dense")
        for directions in sampled_directions(xs):
            found = central_difference(
                lambda t, xs=xs, u=directions: join_parts(solution(problem, moved(xs, u, t)))
            )
            assert_near(found, slope(jacobians, directions), OF_DIFFERENCES)


@every_problem
def test_solutions_are_feasible_and_stationary(problem):
    """∇f is a combination of the constraints' gradients, by least squares of our own.

    Of inequalities those take part that hold as equations, with multipliers of one sign alone.
    """
    for seed in range(5):
        xs = testing.sample(problem, seed)
        for y in (solution(problem, xs), problem.answer(*xs)):
            if y is None:
                continue
            structure, point = Structure.of(y, "y"), join_parts(y).detach()

            def at(function, xs=xs, structure=structure):
                return lambda z: function(*xs, y=z if structure is None else structure.split(z))

            with torch.no_grad():
                gradient = torch.func.grad(at(problem.objective))(point)
            gradient = gradient.reshape(-1, 1)
            rounding = factorised(point, point.numel(), size=10)
            held = active_rows(problem, xs, y, at, point, rounding)
            h = problem.equality_constraints(*xs, y=y)
            if h is not None:
                # Entries up to 10, in solutions that are iterated to rounding.
                assert h.abs().max() < factorised(point, point.numel(), size=10)
                A = torch.func.jacrev(at(problem.equality_constraints))(point)
                A = A.reshape(-1, point.numel())
                gradient = gradient - torch.linalg.pinv(A) @ (A @ gradient)
                held = held - held @ torch.linalg.pinv(A) @ A
            if len(held):
                multipliers, _ = optimize.nnls(-held.T.numpy(), gradient[:, 0].numpy())
                gradient = gradient + held.T @ torch.tensor(multipliers).unsqueeze(1)
            # Of solutions that are within roundings times a curvature up to 1,000.
            assert gradient.norm() < factorised(point, point.numel(), size=1e3)


def active_rows(problem, xs, y, at, point, rounding):
    """The gradients of the inequality constraints that hold as equations; none is violated."""
    rows = [point.new_zeros(0, point.numel())]
    if type(problem).inequality_constraints is not ddnkit.DeclarativeNode.inequality_constraints:
        g = problem.inequality_constraints(*xs, y=y).detach().reshape(-1)
        assert g.max() < rounding
        G = torch.func.jacrev(at(problem.inequality_constraints))(point)
        rows.append(G.reshape(-1, point.numel())[g > -rounding])
    bounds = problem.bounds(*xs) if callable(problem.bounds) else problem.bounds
    eye = torch.eye(point.numel(), dtype=point.dtype)
    for end, sign in zip(bounds or (None, None), (-1, 1), strict=True):
        if end is not None:
            beyond = sign * (point - torch.as_tensor(end).expand(point.shape))
            assert beyond.max() < rounding
            rows.append(sign * eye[beyond > -rounding])
    return torch.cat(rows)


@only(lambda problem: problem.answer(*testing.sample(problem)) is not None)
def test_answer_is_what_is_solved(problem):
    for seed in range(3):
        xs = testing.sample(problem, seed)
        answer = join_parts(problem.answer(*xs)).detach()
        torch.testing.assert_close(join_parts(solution(problem, xs)), answer)


@seeds(2)
@only(lambda problem: problem.unique)
def test_any_solver_can_start_from_the_initial_point(problem, seed):
    name = "interior_point" if problem.has_inequalities else "newton"
    solver = ddnkit.registry.get("solvers", name)()
    xs = testing.sample(problem, seed)
    found = solver.solve(ddnkit.Problem.single(problem, xs))
    assert found.statuses() == [ddnkit.Status.CONVERGED]
    expected = join_parts(solution(problem, xs))
    # Its last step was at most eps^{2/3} = 4e-11 long, promised, and quadratic convergence did more.
    torch.testing.assert_close(found.y[0], expected, rtol=1e-8, atol=1e-10)


@only(lambda problem: problem.analytic and problem.unique)
def test_dense_form_gives_every_entry(problem):
    xs = testing.sample(problem, seed=7)
    y, found = layer_jacobians(problem, xs, "dense")
    for mine, known in zip(found, problem.jacobians(*xs, y=y), strict=True):
        assert_near(mine, known, OF_SOLVES)


# -- the bank -------------------------------------------------------------------------------------


def test_bank_covers_the_list_of_known_problems():
    assert {problem.number for problem in BANK} - {None} == set(range(1, 16))
    assert len({problem.label for problem in BANK}) == len(BANK)
    assert [problem.label for problem in BANK if not problem.unique] == ["CosineDistance"]
    assert [problem.label for problem in BANK if not problem.analytic] == ["Brockett"]
    known = {
        value
        for name in testing.__all__
        if inspect.isclass(value := getattr(testing, name))
        and issubclass(value, testing.KnownProblem)
        and not inspect.isabstract(value)
    }
    assert {type(problem) for problem in BANK} == known


def test_package_is_reached_lazily_from_ddnkit():
    code = """if True:
        import sys, ddnkit
        assert "torch" not in sys.modules
        from ddnkit.testing import sample
        assert "ddnkit.testing.catalogue" not in sys.modules
        assert len(ddnkit.testing.bank()) > 15 and ddnkit.testing.Polynomial
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_samples_depend_on_the_seed_alone_and_leave_the_generator():
    before = torch.random.get_rng_state()
    for problem in BANK:
        first, other, again = (testing.sample(problem, seed) for seed in (4, 5, 4))
        for x, y, z in zip(*map(tensors, (first, other, again)), strict=True):
            assert torch.equal(x, z) and not torch.equal(x, y)
    testing.TwoInputsOptionAndModule()
    assert torch.equal(before, torch.random.get_rng_state())


def test_parameter_jacobians_are_central_differences():
    problem = testing.TwoInputsOptionAndModule()
    for reduction in ("sum", "mean"):
        x, R, _ = testing.sample(problem, seed=2)
        xs = x, R, reduction
        known = problem.parameter_jacobians(*xs, y=solution(problem, xs))
        assert set(known) == {f"linear.{name}" for name, _ in problem.linear.named_parameters()}
        for name, jacobian in known.items():
            parameter = attrgetter(name)(problem)
            original = parameter.detach().clone()
            direction = torch.randn_like(original)

            def at(step, parameter=parameter, start=original, u=direction, xs=xs):
                with torch.no_grad():
                    parameter.copy_(start + step * u)
                    y = solution(problem, xs)
                    parameter.copy_(start)
                return y

            assert_near(central_difference(at), slope([jacobian], [direction]), OF_DIFFERENCES)


def test_layer_gives_the_parameter_jacobians():
    problem = testing.TwoInputsOptionAndModule()
    xs = testing.sample(problem, seed=2)
    y = ddnkit.DeclarativeLayer(problem, "dense")(*xs)
    for name, known in problem.parameter_jacobians(*xs, y=y.detach()).items():
        parameter = attrgetter(name)(problem)
        rows = [torch.autograd.grad(entry, parameter, retain_graph=True)[0] for entry in y]
        assert_near(torch.stack(rows), known, OF_SOLVES)


def test_parameters_of_other_problems_are_none():
    xs = testing.sample(testing.Ridge())
    assert testing.Ridge().parameter_jacobians(*xs, y=torch.zeros(3)) == {}


# -- single problems ------------------------------------------------------------------------------


def sinkhorn_steps(M, r, c, gamma, steps=1000):
    """P after so many plain Sinkhorn steps, for autograd to go through."""
    K = (-gamma * M).exp()
    u = torch.ones_like(r)
    for _ in range(steps):
        v = c / (K.T @ u)
        u = r / (K @ v)
    return u.unsqueeze(1) * K * v


def test_transport_is_what_differentiating_many_sinkhorn_steps_gives():
    problem = testing.EntropicTransport()
    M, r, c, gamma = testing.sample(problem, seed=3)
    xs = [x.requires_grad_() for x in (M, r, c)]
    unrolled = sinkhorn_steps(*xs, gamma)
    y = problem.solve(*(x.detach() for x in xs), gamma)
    torch.testing.assert_close(unrolled.detach(), y, rtol=0, atol=factorised(y, 7, condition=100))
    rows = [torch.autograd.grad(e, xs, retain_graph=True) for e in unrolled.reshape(-1)]
    steps = [
        torch.stack(g).reshape(y.shape + x.shape)
        for g, x in zip(zip(*rows, strict=True), xs, strict=True)
    ]
    known = problem.jacobians(*xs, gamma, y=y)
    bound = factorised(y, 7, condition=1e4)
    torch.testing.assert_close(known[0], steps[0], rtol=0, atol=bound)
    # For r and c the steps give one of the conventions; along Σdr = Σdc all are the same.
    difference = (
        torch.cat([known[1] - steps[1], known[2] - steps[2]], dim=-1).reshape(12, 7).detach()
    )
    normal = torch.cat([torch.ones(3), -torch.ones(4)]).double()
    assert (difference @ normal).norm() > 0.1
    torch.testing.assert_close(
        difference, torch.outer(difference @ normal, normal) / 7, rtol=0, atol=bound
    )


def test_transport_gradients_for_the_sums_are_the_least_norm_ones():
    problem = testing.EntropicTransport()
    xs = testing.sample(problem, seed=3)
    y, (_, wrt_r, wrt_c) = layer_jacobians(problem, xs, "dense")
    _, known_r, known_c = problem.jacobians(*xs, y=y)
    for J_r, J_c in ((wrt_r, wrt_c), (known_r, known_c)):
        torch.testing.assert_close(J_r.sum(-1), J_c.sum(-1))
    torch.testing.assert_close(wrt_r, known_r)
    torch.testing.assert_close(wrt_c, known_c)


def test_transport_of_sums_that_disagree_is_that_of_the_nearest_that_agree():
    problem = testing.EntropicTransport()
    M, r, c, gamma = testing.sample(problem)
    # An excess of 4·0.14 in seven sums: 0.08 for each.
    nearest = problem.solve(M, r + 0.08, c + 0.06, gamma)
    torch.testing.assert_close(problem.solve(M, r, c + 0.14, gamma), nearest)
    dM, dr, dc = problem.feasible_directions((M, r, c, gamma), (M, r, 2 * c))
    assert dM is M
    torch.testing.assert_close(dr.sum(), dc.sum())


def test_cosine_distance_is_diagnosed_as_not_unique():
    report = ddnkit.check(testing.CosineDistance(), examples=2)
    assert not report.ok
    assert any("not unique" in text for text in report.diagnosis), report.diagnosis


def test_nearest_etf_cases_are_what_they_are_called():
    shapes, values = {}, {}
    for case in ("generic", "missing", "collapsed", "square"):
        problem = testing.NearestSimplexETF(case)
        H, P = testing.sample(problem)
        shapes[case] = tuple(H.shape)
        values[case] = torch.linalg.svdvals(problem._moment(H, P))
        torch.testing.assert_close(H.norm(), torch.tensor(1.0).double())
        torch.testing.assert_close(P.T @ P, torch.eye(4).double())
        assert bool((H.norm(dim=0) == 0).any()) == (case == "missing")
    assert shapes["square"] == (4, 4) and shapes["generic"] == (6, 4)
    torch.testing.assert_close(values["collapsed"][:3], values["collapsed"][:1].expand(3))
    H, P = testing.sample(testing.NearestSimplexETF("collapsed"))
    torch.testing.assert_close(testing.NearestSimplexETF("collapsed").answer(H, P), P)
    with pytest.raises(ValueError, match="generic, missing, collapsed, square"):
        testing.NearestSimplexETF("colapsed")


def test_equal_singular_values_are_where_differentiating_an_svd_fails():
    problem = testing.ProcrustesEqualValues()
    (Y,) = testing.sample(problem)
    values = torch.linalg.svdvals(Y)
    torch.testing.assert_close(values, values[:1].expand(3))
    assert all(J.isfinite().all() for J in problem.jacobians(Y, y=problem.answer(Y)))


@pytest.mark.long  # `tests/checking` checks as many of them
def test_unique_problems_pass_their_check():
    testing.assert_gradients(testing.EntropicTransport(), examples=2)
    testing.assert_gradients(testing.Brockett(), examples=2)
