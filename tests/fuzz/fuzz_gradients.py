"""One drawn gradient: a problem, a form, inputs, an incoming gradient, and a way to ask for it.

With J = dy/dθ on paper (of the form "dense", or "embedded_field", where paper has none):
    the way's own result, vᵀJ or J u, against J;
    g = vᵀJ by autograd and J u by forward mode against J, and v·(J u) against g·u.
Each within 1e-6 of what is expected. What cancels to less than 1e-6 of ‖v‖‖J‖ (as vᵀJ may, for a v
that happens to be normal to the constraints) is held against that.
"""

import dataclasses

import torch
from fuzz_domains import moved
from hypothesis import strategies as st
from sweep_problems import more_problems
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from ddnkit import testing
from ddnkit.testing.sweeping.case import SolutionMap, push_forward
from ddnkit.testing.sweeping.forms import all_forms, reason_against

PROBLEMS = {problem.label: problem for problem in [*testing.bank(), *more_problems()]}
#: Damping is inexact by design, by the square of 1e-6 times the condition.
FORMS = {form.name: form for form in all_forms() if form.name != "dense(damped)"}
APPLICABLE = {
    label: [name for name, form in FORMS.items() if reason_against(problem, form) is None]
    for label, problem in PROBLEMS.items()
}
#: As in the sweep: the tolerance of a layer in float64.
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What hypothesis chose: enough to run the case again."""

    problem: str
    form: str
    way: str
    seed: int
    scale: float
    shift: float
    size_of_v: float
    axis: bool


@st.composite
def cases(draw, problem):
    form = draw(st.sampled_from(APPLICABLE[problem]))
    # A `solve` of its own need not go through vmap. Of a solution that is not unique, jacrev asks for
    # rows that do not exist, and a second derivative does not.
    excluded = {"vmap"} if form == "unrolled" else set()
    excluded |= set() if PROBLEMS[problem].unique else {"jacrev", "hessian"}
    return Drawn(
        problem,
        form,
        draw(st.sampled_from([way for way in WAYS if way not in excluded])),
        draw(st.integers(0, 2**32 - 1)),
        10.0 ** draw(st.floats(-3, 3)),
        draw(st.floats(0, 1)),
        10.0 ** draw(st.integers(-3, 3)),
        draw(st.booleans()),
    )


class Fuzzed:
    """A drawn case made real.

    Attributes:
        f: y(θ), what is observed of it, by the form; theta: θ; other: θ of another instance, for batches.
        jacobians: J of each operand, (m, *θ).
        v, u: the incoming gradient, and a direction of the operands.
        gradient: vᵀJ by autograd.
    """

    def __init__(self, drawn):
        self.drawn = drawn
        self.problem = PROBLEMS[drawn.problem]
        self.generator = torch.Generator().manual_seed(drawn.seed ^ 0x0DD_5EED)
        xs = self._inputs(drawn.seed)
        self.f = SolutionMap(self.problem, FORMS[drawn.form], xs)
        self.theta = self.f.operands
        count = self.f.inputs
        tensors = [x for x in self._inputs(drawn.seed + 1) if isinstance(x, torch.Tensor)]
        self.other = [*tensors, *self.theta[count:]]
        # The layer as its users call it, its parameters its own.
        leaves = _leaves(self.theta[:count])
        y = self.f.one(*self.f.arguments(leaves))
        self.jacobians = self._jacobians(xs, _detached(y))
        directions = [self._noise(x) for x in self.theta]
        feasible = self.problem.feasible_directions(xs, directions[:count])
        self.u = (*feasible, *directions[count:])
        self.v = drawn.size_of_v * self._direction_of_y()
        wanted = [*leaves, *(p for p in self.f.one.parameters() if p.requires_grad)]
        seen = testing.join_parts(self.problem.observed(y)).reshape(-1)
        self.gradient = torch.autograd.grad(seen, wanted, self.v)

    def check(self):
        """The worst error; fails if it is above the tolerance."""
        gradient, slope = WAYS[self.drawn.way](self)
        errors = {}
        if gradient is not None:
            errors["vᵀJ"] = self._error_of_gradient(gradient)
        if slope is not None:
            errors["J u"] = self._error_of_slope(slope)
        by_forward = jvp(self.f, self.theta, self.u)[1]
        errors["vᵀJ by autograd"] = self._error_of_gradient(self.gradient)
        errors["J u by jvp"] = self._error_of_slope(by_forward)
        errors["v·(J u) = (vᵀJ)·u"] = self._error_of_pairing(by_forward)
        worst = max(errors.values())
        assert worst <= TOLERANCE, (self.drawn, errors)
        return worst

    def _inputs(self, seed):
        xs = testing.sample(self.problem, seed)
        return moved(self.problem, xs, self.drawn.scale, self.drawn.shift, self._noise)

    def _noise(self, x):
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64)

    def _jacobians(self, xs, y):
        if not self.problem.analytic:
            reference = "embedded_field" if self.drawn.form == "dense" else "dense"
            f = SolutionMap(self.problem, reference, xs)
            return jacrev(f, argnums=tuple(range(len(self.theta))))(*self.theta)
        found = list(self.problem.jacobians(*xs, y=y))
        named = self.problem.parameter_jacobians(*xs, y=y)
        found += [named[name] for name in self.f.parameters]
        return [J.reshape(-1, *x.shape) for J, x in zip(found, self.theta, strict=True)]

    def _direction_of_y(self):
        if not self.problem.unique:
            return push_forward(self.jacobians, [self._noise(x) for x in self.theta])
        m = len(self.jacobians[0])
        if self.drawn.axis:
            return torch.eye(m, dtype=torch.float64)[self.drawn.seed % m]
        return self._noise(self.jacobians[0].new_zeros(m))

    def _error_of_gradient(self, gradient):
        errors = []
        for g, J in zip(gradient, self.jacobians, strict=True):
            expected = torch.tensordot(self.v, J, dims=1)
            errors.append(_relative(g, expected, self.v.norm() * J.norm()))
        return max(errors)

    def _error_of_slope(self, slope):
        if not self.problem.unique:
            # Of J u, only what v sees is determined.
            return self._error_of_pairing(slope)
        size = sum(J.norm() * u.norm() for J, u in zip(self.jacobians, self.u, strict=True))
        return _relative(slope, push_forward(self.jacobians, self.u), size)

    def _error_of_pairing(self, slope):
        along = sum((g * u).sum() for g, u in zip(self.gradient, self.u, strict=True))
        return _relative(along, self.v @ slope, self.v.norm() * slope.norm())


def _relative(found, expected, size):
    scale = torch.maximum(expected.norm(), 1e-6 * size).clamp(min=1e-300)
    return float(((found - expected).norm() / scale).nan_to_num(nan=torch.inf))


def _detached(y):
    if isinstance(y, torch.Tensor):
        return y.detach()
    if isinstance(y, dict):
        return {key: part.detach() for key, part in y.items()}
    return tuple(part.detach() for part in y)


def _pulled(f, theta, v):
    return vjp(f, *theta)[1](v)


def _leaves(theta):
    return [x.clone().requires_grad_() for x in theta]


# -- ways: each returns vᵀJ and J u, or None in the place of what it does not give -----------------


def pulled_back(case):
    return _pulled(case.f, case.theta, case.v), None


def whole_by_reverse(case):
    J = jacrev(case.f, argnums=tuple(range(len(case.theta))))(*case.theta)
    return [torch.tensordot(case.v, each, dims=1) for each in J], push_forward(J, case.u)


def whole_by_forward(case):
    J = jacfwd(case.f, argnums=tuple(range(len(case.theta))))(*case.theta)
    return [torch.tensordot(case.v, each, dims=1) for each in J], push_forward(J, case.u)


def dual_numbers(case):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(case.theta, case.u, strict=True)]
        return None, forward_ad.unpack_dual(case.f(*duals)).tangent


def double_backward(case):
    """d/dv (vᵀJ)·u = J u."""
    v = case.v.clone().requires_grad_()
    leaves = _leaves(case.theta)
    gradient = torch.autograd.grad(case.f(*leaves), leaves, v, create_graph=True)
    along = sum((g * u).sum() for g, u in zip(gradient, case.u, strict=True))
    return [g.detach() for g in gradient], torch.autograd.grad(along, v)[0]


def forward_over_reverse(case):
    """vᵀJ is linear in v: its own derivative along v."""
    return jvp(lambda v: _pulled(case.f, case.theta, v), (case.v,), (case.v,))[1], None


def batch(case):
    """The second of two items; v is zero for the first."""
    count = case.f.inputs
    pairs = zip(case.other[:count], case.theta[:count], strict=True)
    leaves = _leaves([*(torch.stack(pair) for pair in pairs), *case.theta[count:]])
    v = torch.stack([torch.zeros_like(case.v), case.v])
    gradient = torch.autograd.grad(case.f(*leaves), leaves, v)
    return [*(g[1] for g in gradient[:count]), *gradient[count:]], None


def mapped(case):
    """The second of two, mapped over everything."""
    pairs = [torch.stack(pair) for pair in zip(case.other, case.theta, strict=True)]
    v = torch.stack([torch.zeros_like(case.v), case.v])
    gradient = vmap(lambda v, *theta: _pulled(case.f, theta, v))(v, *pairs)
    return [g[1] for g in gradient], None


def hessian(case):
    """H u of v·½y², by reverse over reverse against forward over reverse."""

    def phi(*theta):
        return (case.v * case.f(*theta) ** 2).sum() / 2

    gradient = torch.func.grad(phi, argnums=tuple(range(len(case.theta))))
    forward = jvp(gradient, case.theta, case.u)[1]
    leaves = _leaves(case.theta)
    first = torch.autograd.grad(phi(*leaves), leaves, create_graph=True)
    along = sum((g * u).sum() for g, u in zip(first, case.u, strict=True))
    reverse = torch.autograd.grad(along, leaves, materialize_grads=True)
    # H = Jᵀ diag(v) J and more; where v sees an entry at its bound alone, nothing is left of it.
    along_u = sum(J.norm() * u.norm() for J, u in zip(case.jacobians, case.u, strict=True))
    for mine, other, J in zip(forward, reverse, case.jacobians, strict=True):
        size = case.v.norm() * J.norm() * along_u
        assert _relative(mine, other, size) <= TOLERANCE, (case.drawn, mine, other)
    return None, None


WAYS = {
    "vjp": pulled_back,
    "jacrev": whole_by_reverse,
    "jacfwd": whole_by_forward,
    "dual numbers": dual_numbers,
    "double backward": double_backward,
    "forward over reverse": forward_over_reverse,
    "batch": batch,
    "vmap": mapped,
    "hessian": hessian,
}
