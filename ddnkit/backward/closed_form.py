"""The closed form: the node supplies its own adjoint, and the library only calls it.

Whatever else is asked for (forward mode, second derivatives) goes the general way, with the linear
system solved by the node's own `tangent_inverse`, or as "auto" would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..linalg.kkt import relative
from ..problem import Problem
from ..recording import version
from ..solution import Adjoint
from .form import BackwardForm, TangentSolve
from .matrix_free import by_size
from .tangent_operator import Projector, hessian_operator


class ClosedForm(BackwardForm):
    """Calls ``node.adjoint(*xs, y, v)``; exact where the structure of the problem allows it."""

    name = "closed_form"
    has_adjoint = True
    node_member = "adjoint"

    def unsupported(self, problem: Problem) -> str | None:
        """The node must have an adjoint."""
        if problem.node.adjoint is None:
            return "it has no `adjoint(self, *xs, y, v)` of its own; use 'auto'"
        return None

    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """See `BackwardForm.tangent_solve`."""
        if problem.node.tangent_inverse is None:
            return by_size(problem, y.shape[1:].numel()).tangent_solve(problem, y, nu)
        inverse = _tangent_inverse(problem, y)
        P, G = Projector(problem, y), hessian_operator(problem, y, nu)

        def solve(r: Tensor) -> tuple[Tensor, Tensor]:
            z = inverse(r.reshape(r.shape[:-1] + y.shape[1:])).reshape(r.shape)
            # The node may be wrong, or the system singular: its residual is measured all the same.
            return z, relative((P(G(z)) - P(r)).norm(dim=-1), r.norm(dim=-1))

        return solve

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        v: Tensor,
        aux: Mapping[str, Tensor],
        wrt: Sequence[int],
    ) -> tuple[list[Tensor], Tensor | None]:
        """See `BackwardForm.adjoint`."""
        node, structure = problem.node, problem.structure
        # What it is given of v is its own; y and the inputs are what the caller holds.
        lent = [
            (i, x, version(x)) for i, x in enumerate((y, *problem.inputs)) if isinstance(x, Tensor)
        ]
        if structure is not None:
            y, v = structure.split(y), structure.split(v)
        try:
            if node.batched_solve and problem.shares_captured:
                extra = {"aux": aux} if aux else {}
                with problem.substitute():
                    returned = node.adjoint(*problem.inputs, y=y, v=v, **extra)
                found = _as_adjoint(node, returned, (problem.batch_size,))
            else:
                found = _item_by_item(problem, y, v, aux)
        except TypeError as error:
            if "unexpected keyword argument 'aux'" not in str(error):
                raise
            name = type(node).__name__
            raise InputError(
                f"{name}.adjoint takes no argument `aux`, by which it receives what {name}.solve keeps "
                f"({', '.join(aux)}): `def adjoint(self, …, y, v, aux)`"
            ) from error
        for i, x, before in lent:
            if version(x) != before:
                name = f"input {i - 1}" if i else "y"
                raise InputError(
                    f"{type(node).__name__}.adjoint changes {name} in place, which belongs to the caller: "
                    "use a copy (x.clone()) or the version without the underscore (x / s for x.div_(s))"
                )
        gradients = list(found.gradients)
        self._validate(problem, gradients)
        tensors = [i for i, x in enumerate(problem.inputs) if isinstance(x, Tensor)]
        return [self._asked_for(problem, gradients, tensors[i]) for i in wrt], found.residual

    @staticmethod
    def _validate(problem: Problem, gradients: list[Tensor | None]) -> None:
        if len(gradients) != len(problem.inputs):
            raise InputError(
                f"{type(problem.node).__name__}.adjoint must return one gradient per input, "
                f"{len(problem.inputs)} in all; it returned {len(gradients)}"
            )

    @staticmethod
    def _asked_for(problem: Problem, gradients: list[Tensor | None], index: int) -> Tensor:
        gradient, shape = gradients[index], tuple(problem.inputs[index].shape)
        name = f"{type(problem.node).__name__}.adjoint"
        if gradient is None:
            raise InputError(
                f"{name} returned None for input {index}, whose gradient is needed: its "
                "gradient would silently be missing"
            )
        plain = isinstance(gradient, Tensor) and gradient.layout == torch.strided
        if not plain or gradient.is_complex():
            kind = type(gradient).__name__
            if isinstance(gradient, Tensor):
                kind = f"a tensor of {gradient.dtype}, {gradient.layout}"
            raise InputError(
                f"{name} returned {kind} for input {index}, where a tensor of real numbers of shape {shape} "
                "is expected"
            )
        if tuple(gradient.shape) != shape:
            raise InputError(
                f"{name} returned shape {tuple(gradient.shape)} for input {index} of shape "
                f"{shape} (batch first)"
            )
        return gradient.detach()


def _tangent_inverse(problem: Problem, y: Tensor) -> Callable[[Tensor], Tensor]:
    node = problem.node
    if node.batched_solve and problem.shares_captured:
        with problem.substitute():
            of_batch: Callable[[Tensor], Tensor] = node.tangent_inverse(*problem.inputs, y=y)
        return of_batch
    of_items = []
    for i in range(problem.batch_size):
        with problem.substitute(i):
            if node.batched_solve:
                of_items.append(node.tangent_inverse(*problem.at(i).inputs, y=y[i : i + 1]))
            else:
                of_items.append(node.tangent_inverse(*problem.item(i), y=y[i]))

    def of_item(r: Tensor, i: int) -> Tensor:
        z: Tensor = of_items[i](r[:, i : i + 1] if node.batched_solve else r[:, i])
        return z.squeeze(1) if node.batched_solve else z

    return lambda r: torch.stack([of_item(r, i) for i in range(len(of_items))], dim=1)


def _item_by_item(problem: Problem, y: object, v: object, aux: Mapping[str, Tensor]) -> Adjoint:
    items, node = [], problem.node
    for i in range(problem.batch_size):
        # A batched adjoint that captures another value for each item takes batches of one.
        at = slice(i, i + 1) if node.batched_solve else i
        xs = problem.at(i).inputs if node.batched_solve else problem.item(i)
        kept = {key: value[at] for key, value in aux.items()}
        extra = {"aux": kept} if kept else {}
        with problem.substitute(i):
            returned = node.adjoint(*xs, y=_part(y, at), v=_part(v, at), **extra)
            items.append(_as_adjoint(node, returned, (1,) if node.batched_solve else ()))
    join = torch.cat if node.batched_solve else torch.stack

    def joined(column: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [x for x in column if x is not None]
        return join(tensors) if len(tensors) == len(column) else None

    columns = zip(*(item.gradients for item in items), strict=True)
    return Adjoint([joined(column) for column in columns], joined([i.residual for i in items]))


def _as_adjoint(node: object, returned: Any, shape: tuple[int, ...]) -> Adjoint:
    """What an adjoint has returned, with a residual of that shape."""
    if isinstance(returned, Adjoint):
        residual = returned.residual
        if residual is None:
            return returned
        count = shape[0] if shape else 1
        if not isinstance(residual, Tensor) or residual.numel() != count:
            given = type(residual).__name__
            if isinstance(residual, Tensor):
                given = f"a tensor of shape {tuple(residual.shape)}"
            raise InputError(
                f"{type(node).__name__}.adjoint returned {given} as the residual of its Adjoint: expected is "
                f"one number a problem, a tensor of shape {shape}"
            )
        return replace(returned, residual=residual.detach().reshape(shape))
    if not isinstance(returned, (tuple, list)):
        raise InputError(
            f"{type(node).__name__}.adjoint must return a tuple with one gradient per input, or a "
            f"ddnkit.Adjoint, not {type(returned).__name__}"
        )
    return Adjoint(returned)


def copy_aliases(results: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """The results, copied where one shares its memory with the others or with another result."""
    taken = {x.untyped_storage().data_ptr() for x in others}
    apart = []
    for x in results:
        x = x.clone() if x.untyped_storage().data_ptr() in taken else x
        taken.add(x.untyped_storage().data_ptr())
        apart.append(x)
    return apart


def _part(y: object, at: int | slice) -> object:
    if isinstance(y, Tensor):
        return y[at]
    if isinstance(y, dict):
        return {key: part[at] for key, part in y.items()}
    return tuple(part[at] for part in y)  # type: ignore[attr-defined]
