"""The backward forms of a sweep: the registered ones, and "dense" with each of its settings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ... import registry
from ...backward.dense import Dense
from ...backward.form import BackwardForm, TangentSolve, registered_forms
from ...errors import InputError, nearest_choice
from ...problem import Problem
from ..known_problem import KnownProblem


class Variant(BackwardForm):
    """A form with settings, under a name of its own, for the problems that it is meant for.

    Args:
        needs: attribute of a `KnownProblem` that must be true: what to say where it is not.
    """

    def __init__(self, name: str, form: BackwardForm, needs: Mapping[str, str]) -> None:
        self.name, self.form, self.needs = name, form, needs

    def unsupported(self, problem: Problem) -> str | None:
        """What is needed and not there."""
        missing = (why for what, why in self.needs.items() if not getattr(problem.node, what, True))
        return next(missing, None) or self.form.unsupported(problem)

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """The form's."""
        return self.form.tangent_solve(problem, y, nu)


def variants() -> list[BackwardForm]:
    """The settings of "dense" that are not its defaults."""
    independent = {"independent_constraints": "its constraints are dependent"}
    regular = {"regular_hessian": "the Hessian of its Lagrangian is singular"}
    unique = {"unique": "its KKT matrix is singular"}
    even = {"well_conditioned": "its curvatures differ too much for damping"}
    return [
        Variant("dense(schur)", Dense(schur=True), {**regular, **independent}),
        Variant("dense(error)", Dense(singular="error"), {**unique, **independent}),
        Variant("dense(damped)", Dense(singular="damped"), even),
    ]


def all_forms() -> list[BackwardForm]:
    """Every registered form, "auto" first, then the variants."""
    found = registered_forms()
    names = sorted(found, key=lambda name: (name != "auto", name))
    return [*(found[name] for name in names), *variants()]


def as_form(form: str | BackwardForm) -> BackwardForm:
    """The form itself, or that of a name, which may be a variant's.

    Raises:
        InputError: there is none of that name.
    """
    if isinstance(form, BackwardForm):
        return form
    own = {variant.name: variant for variant in variants()}
    names = [*registry.names("backwards"), *own]
    if form not in names:
        raise InputError(f"no backward form '{form}'.{nearest_choice(form, names)}")
    return own[form] if form in own else registry.get("backwards", form)()


def reason_against(problem: KnownProblem, form: BackwardForm) -> str | None:
    """Why a form does not apply to a problem, or None if it does."""
    if form.unrolls and not problem.differentiable_solve:
        return "the steps of its `solve` have no derivative"
    return form.unsupported(Problem(problem, (), 0))
