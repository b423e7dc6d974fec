"""What a node's class says, read before anything is solved: misread members are refused, not ignored.

Python ignores an attribute that nobody asks for: a node with `equality_constraint` is solved without its
constraint, and its gradient is right for a problem that nobody posed. Here the members of the node's own
classes are held against the contract (`DeclarativeNode`). A node is its author's, and most of what it
holds is nobody's business: a name is refused only where all of this is so:

* it is public and close to a member's name (or one that a neighbouring library gives it), and the node
  does not have that member;
* its value is of the member's kind: a function that could be called as the member is, a tuple of
  dimensions that has one for each input, a flag, the name of a solver;
* none of the node's own functions asks for it: what they use is theirs.

Signatures are read too: the solution is passed as ``y``, and all functions of a node take the same inputs.
"""

from __future__ import annotations

import abc
import difflib
import dis
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from . import registry
from .errors import InputError, closest, nearest_choice
from .manifold import Manifold
from .solver import Solver

if TYPE_CHECKING:
    from .node import DeclarativeNode

#: The node's functions, and what each is given by name beside the inputs.
_GIVEN: dict[str, tuple[str, ...]] = {
    "objective": ("y",),
    "equality_constraints": ("y",),
    "inequality_constraints": ("y",),
    "bounds": (),
    "solve": (),
    "initial_point": (),
    "starts": (),
    "adjoint": ("y", "v"),
    "tangent_inverse": ("y",),
    "fixed_point": ("y",),
    "precondition": ("y", "v"),
}

#: What neighbouring libraries and everyday language call a member, without its underscores.
_ALIASES = {
    "constraint": "equality_constraints",
    "constraints": "equality_constraints",
    "eqconstraint": "equality_constraints",
    "eqconstraints": "equality_constraints",
    "ineqconstraint": "inequality_constraints",
    "ineqconstraints": "inequality_constraints",
    "startpoint": "initial_point",
    "startingpoint": "initial_point",
    "initialguess": "initial_point",
    "initpoint": "initial_point",
    "gradient": "adjoint",
    "backward": "adjoint",
    "vjp": "adjoint",
    "nstarts": "starts",
    "numstarts": "starts",
    "numberofstarts": "starts",
    "restarts": "starts",
    "nrestarts": "starts",
    "numrestarts": "starts",
    "multistart": "starts",
    "multistarts": "starts",
    "inputdimensions": "input_dims",
    "inputndim": "input_dims",
    "inputndims": "input_dims",
}
_OBJECTIVES = ("objectivefunction", "objfunction", "objfn", "cost", "loss", "energy")

_SELECTIONS = ("least_norm",)
_DEGENERATE = ("warn", "raise", "least_norm", "one_sided")

#: A slip of the pen keeps so much of a name.
_CLOSE = 0.85
#: More dimensions than anyone's input has: larger numbers are sizes.
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Inputs:
    """How many inputs a node takes.

    Attributes:
        least, most: their number; most is None where any number will do.
        names: of all of them, as the objective calls them; empty where it does not say.
    """

    least: int
    most: int | None
    names: tuple[str, ...] = ()

    def refuse(self, node: DeclarativeNode, count: int) -> None:
        """Raise InputError if the node cannot be given ``count`` inputs."""
        if count >= self.least and (self.most is None or count <= self.most):
            return
        number = str(self.least) if self.least == self.most else (
            f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"
        )  # fmt: skip
        names = f" ({', '.join(self.names)})" if self.names else ""
        plural = "" if number == "1" else "s"
        raise InputError(
            f"{type(node).__name__} takes {number} input{plural}{names}, but {count} "
            f"{'was' if count == 1 else 'were'} given"
        )


def read(node: DeclarativeNode) -> Inputs:
    """The inputs that a node takes.

    Raises:
        InputError: a member is misspelt, of the wrong kind, or is not in the contract; or a function
            cannot be called as it will be.
    """
    _refuse_kinds(node)
    inputs = _inputs(node)
    _refuse_unknown(node, inputs)
    return inputs


# -- members --------------------------------------------------------------------------------------


def _refuse_unknown(node: DeclarativeNode, inputs: Inputs) -> None:
    slips = []
    for name, value in _own_members(node):
        member = _meant(node, name, value, inputs)
        if member is not None and not _is_used(node, name):
            slips.append(f"{_member(node, name)}: did you mean `{member}`?")
    if slips:
        raise InputError(
            f"not a member of a node, so it would be ignored: {' '.join(slips)} (If it is your own, begin "
            "its name with _)"
        )


def _is_used(node: DeclarativeNode, name: str) -> bool:
    """Whether a function of the node's own classes asks for the attribute."""
    waiting = []
    for kind in _own_classes(type(node)):
        values = [inspect.unwrap(_function(value)) for value in vars(kind).values()]
        waiting += [v.__code__ for v in values if isinstance(v, types.FunctionType)]
    while waiting:
        code = waiting.pop()
        for step in dis.get_instructions(code):
            if step.argval == name and step.opname.startswith(("LOAD_", "DELETE_")):
                return True
        waiting += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return False


def _own_members(node: DeclarativeNode) -> Iterator[tuple[str, Any]]:
    """Public names that the node's own classes and constructor give, and their values."""
    seen = set(_members())
    for owner in (node, *_own_classes(type(node))):
        for name, value in list(vars(owner).items()):
            if not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, value


def _own_classes(kind: type) -> list[type]:
    return [c for c in kind.__mro__ if not _is_foreign(c)]


def _is_foreign(kind: type) -> bool:
    module = kind.__module__
    of_contract = module in ("ddnkit.node", "ddnkit.fixed_point") or module.split(".")[0] == "torch"
    return of_contract or kind in (object, abc.ABC, Generic)


@functools.cache
def _members() -> tuple[str, ...]:
    from .node import DeclarativeNode

    public = [name for name in vars(DeclarativeNode) if not name.startswith("_")]
    return (*public, "bench_inputs", "bench_sizes", "feasible_directions")


def _meant(node: DeclarativeNode, name: str, value: Any, inputs: Inputs) -> str | None:
    """The member that ``name`` was meant to be, if any."""
    for member in _candidates(_plain(name)):
        if not _has(node, member) and _is_kind(node, member, value, inputs):
            return member
    return None


@functools.lru_cache(maxsize=1024)
def _candidates(plain: str) -> tuple[str, ...]:
    """The members that are known by a name, or close to it, the closest first."""
    alias = _ALIASES.get(plain)
    likeness = {member: _likeness(plain, _plain(member)) for member in _members()}
    near = [member for member in _members() if likeness[member] >= _CLOSE]
    near.sort(key=lambda member: -likeness[member])
    return (*([alias] if alias else []), *near)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _likeness(given: str, member: str) -> float:
    ratio = difflib.SequenceMatcher(None, given, member, autojunk=False).ratio()
    swapped = sorted(given) == sorted(member) and ratio >= 0.75
    return max(ratio, _CLOSE) if swapped else ratio


def _has(node: DeclarativeNode, member: str) -> bool:
    """Whether the node's own classes have the member, or a `solve`, which needs no initial point."""
    names = ("initial_point", "solve") if member == "initial_point" else (member,)
    own = [vars(owner) for owner in (node, *_own_classes(type(node)))]
    return any(next((m[name] for m in own if name in m), None) is not None for name in names)


def _is_kind(node: DeclarativeNode, member: str, value: Any, inputs: Inputs) -> bool:
    """Whether ``value`` could be that member of the node."""
    if member == "starts" and _is_whole_number(value):
        return True
    if member in (*_GIVEN, "sample_inputs", "bench_inputs", "feasible_directions"):
        return _is_called_so(node, member, value, inputs)
    if member == "input_dims":
        return _is_dims(value) and inputs.least <= len(value) <= _most(inputs, len(value))
    if member == "batched_solve":
        return isinstance(value, bool)
    if member == "manifold":
        return isinstance(value, Manifold)
    if member == "tolerance":
        return isinstance(value, float)
    if member == "policy":
        return isinstance(value, str)
    if member == "selection":
        return isinstance(value, str) and value in _SELECTIONS
    if member in ("solver", "preferred_backward"):
        group = "solvers" if member == "solver" else "backwards"
        return isinstance(value, Solver) or (
            isinstance(value, str) and value in registry.names(group)
        )
    return False


def _is_called_so(node: DeclarativeNode, member: str, value: Any, inputs: Inputs) -> bool:
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if not isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return False
    parameters = _parameters(value, skip_self=True) or []
    if member not in _GIVEN:
        # How many arguments these take is the node's affair, but for sample_inputs.
        return member != "sample_inputs" or not [
            p for p in parameters
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]  # fmt: skip
    names = [p.name for p in parameters]
    if not set(_GIVEN[member]) <= set(names):
        return False
    taken = _inputs_of(value, member, skip_self=True)
    if isinstance(taken, str):
        return False
    return taken.least <= _most(inputs, taken.least) and _most(taken, inputs.least) >= inputs.least


def _most(inputs: Inputs, otherwise: int) -> int:
    return otherwise if inputs.most is None else inputs.most


# -- kinds ----------------------------------------------------------------------------------------


def _refuse_kinds(node: DeclarativeNode) -> None:
    """Members with a value that is none for them."""
    dims, manifold = node.input_dims, node.manifold
    if dims is not None and not _is_dims(dims, any_size=True):
        hint = f"({dims},)" if isinstance(dims, int) and not isinstance(dims, bool) else "(1,)"
        raise InputError(
            f"{_member(node, 'input_dims')} is {dims!r}; it is a tuple with the dimensions of each input "
            f"of one problem, and None for one that is not a tensor: input_dims = {hint}"
        )
    if manifold is not None and not isinstance(manifold, Manifold):
        hint = f"{manifold.__name__}()" if isinstance(manifold, type) else "Sphere()"
        raise InputError(
            f"{_member(node, 'manifold')} is {manifold!r}; it is a ddnkit.Manifold: manifold = {hint}"
        )
    pair = node.bounds
    if (
        not callable(pair)
        and pair is not None
        and not (isinstance(pair, (tuple, list)) and len(pair) == 2)
    ):
        raise InputError(
            f"{_member(node, 'bounds')} is {pair!r}; it is a pair (lower, upper), such as (0.0, None), or a "
            "method that returns one for the inputs of one problem"
        )
    if node.degenerate not in _DEGENERATE:
        raise InputError(
            f"{_member(node, 'degenerate')} is {node.degenerate!r}."
            f"{nearest_choice(str(node.degenerate), _DEGENERATE)}"
        )
    _refuse_selection(node)
    try:
        validated_tolerance(node.tolerance)
    except InputError as error:
        raise InputError(f"{_member(node, 'tolerance')}: {error}") from None
    if "solve" not in _set_members(node) and inspect.isroutine(node.solver):
        raise InputError(
            f"{_member(node, 'solver')} is a function; `solver` is the name of a solver. Did you mean "
            "`solve`?"
        )
    _refuse_starts(node)
    if node.batched_solve not in (True, False):
        raise InputError(
            f"{_member(node, 'batched_solve')} is {node.batched_solve!r}; True or False"
        )


def _refuse_selection(node: DeclarativeNode) -> None:
    if node.selection is None:
        return
    where = _member(node, "selection")
    if node.selection not in _SELECTIONS:
        raise InputError(
            f"{where} is {node.selection!r}.{nearest_choice(str(node.selection), _SELECTIONS)}"
        )
    if node.manifold is not None:
        raise InputError(
            f"{where}: the solution of least norm is one of a vector space, not on a manifold; write the "
            "manifold's constraints as `equality_constraints`"
        )
    if node.fixed_point is not None:
        raise InputError(
            f"{where}: a node with a `fixed_point` selects nothing: the map says which point is meant"
        )


def _refuse_starts(node: DeclarativeNode) -> None:
    starts = node.starts
    if not callable(starts) and not (_is_whole_number(starts) and starts >= 1):
        raise InputError(
            f"{_member(node, 'starts')} is {starts!r}; it is a whole number of at least 1, or a method that "
            "returns the starting points of one problem, (k, *y)"
        )
    if (callable(starts) or starts > 1) and "solve" in _set_members(node):
        raise InputError(
            f"{_member(node, 'starts')} is for a node with a `solver`; the `solve` of {type(node).__name__} "
            "would never start anywhere else: try several points inside of it, or leave it out"
        )


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_dims(value: Any, any_size: bool = False) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    most = float("inf") if any_size else _MOST_DIMENSIONS
    return all(
        own is None or (isinstance(own, int) and not isinstance(own, bool) and 0 <= own <= most)
        for own in value
    )


def _set_members(node: DeclarativeNode) -> set[str]:
    return {name for kind in _own_classes(type(node)) for name in vars(kind)} | set(vars(node))


def validated_tolerance(tolerance: float | None) -> float | None:
    """``tolerance`` if it is a number from 0 on, or None."""
    if tolerance is None:
        return None
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance!r}; it is a number from 0 on, or None")
    return tolerance


# -- functions ------------------------------------------------------------------------------------


def _inputs(node: DeclarativeNode) -> Inputs:
    """What all functions of the node take alike."""
    common, by = Inputs(0, None), ""
    for member in _GIVEN:
        function = getattr(node, member, None)
        if function is None or (member in ("bounds", "starts") and not callable(function)):
            continue
        taken = _inputs_of(function, member)
        if isinstance(taken, str):
            raise InputError(f"{_call_text(node, member, function)} {taken}")
        least, most = max(common.least, taken.least), _least_of(common.most, taken.most)
        if most is not None and least > most:
            raise InputError(
                f"{_call_text(node, member, function)} cannot be given the inputs of {by}: all "
                "functions of a node take the same ones, in the same order"
                + ("" if member == "objective" else "; also those that it does not need")
            )
        if not by and (taken.least or taken.most is not None):
            by = f"`{member}`{_signature(function)}"
        common = Inputs(least, most, common.names or taken.names)
    dims = node.input_dims
    if dims is not None and not common.least <= len(dims) <= _most(common, len(dims)):
        raise InputError(
            f"{_member(node, 'input_dims')} names {len(dims)} inputs, which {by} cannot be given"
        )
    if len(common.names) != common.most:
        common = Inputs(common.least, common.most)
    return common


def _least_of(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _inputs_of(function: Callable[..., Any], member: str, skip_self: bool = False) -> Inputs | str:
    """How many inputs ``function`` can be given as that member, or why it cannot be called."""
    given = _GIVEN[member]
    parameters = _parameters(function, skip_self)
    if parameters is None:
        return Inputs(0, None)
    named = {p.name: p for p in parameters}
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    anyhow = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    own = [p.name for p in positional if p.name not in (*given, "aux")]
    for name in given:
        absent = name not in named or named[name].kind is named[name].POSITIONAL_ONLY
        variadic = name in named and named[name].kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        if (absent or variadic) and not any_name:
            what = "the solution" if name == "y" else "the incoming gradient"
            kept = own[: max(len(own) - sum(n not in named for n in given), 0)]
            return (
                f"takes no argument `{name}`: {what} is passed by that name, after the inputs: "
                f"`def {member}(self, {', '.join([*kept, *given])})`"
            )
    place = next((i for i, p in enumerate(positional) if p.name in given), len(positional))
    late = [p.name for p in positional[place:] if p.name in own and p.default is p.empty]
    first = any(p.name in given for p in positional)
    if late or (first and anyhow and not positional[:place]):
        inputs = own or [f"*{p.name}" for p in parameters if p.kind is p.VAR_POSITIONAL]
        return (
            f"has `{positional[place].name}` before `{late[0] if late else inputs[0]}`: the inputs come "
            f"first, in order: `def {member}(self, {', '.join([*inputs, *given])})`"
        )
    required = [
        p.name
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in (*given, "aux")
    ]
    if required:
        return (
            f"asks for `{required[0]}`, which nothing passes: make it an input, before `y`, or an "
            "attribute of the node"
        )
    free = [p for p in positional[:place] if p.name != "aux"]
    most = None if anyhow and not first else len(free)
    return Inputs(sum(p.default is p.empty for p in free), most, tuple(p.name for p in free))


def _parameters(
    function: Callable[..., Any], skip_self: bool = False
) -> list[inspect.Parameter] | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # made in C, or callable in some way of its own
        return None
    unbound = skip_self and parameters and parameters[0].name in ("self", "cls")
    return parameters[1:] if unbound else parameters


def _signature(function: Callable[..., Any]) -> str:
    parameters = _parameters(function)
    if parameters is None:
        return "(…)"
    # No annotations and defaults, which may be long.
    plain = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...)
        for p in parameters
    ]
    return str(inspect.Signature(plain)).replace("Ellipsis", "…")


# -- what messages say ----------------------------------------------------------------------------


def missing(kind: type) -> str:
    """Why a class with abstract members cannot be made, and which of its own were likely meant."""
    absent = sorted(getattr(kind, "__abstractmethods__", ()))
    text = f"{kind.__name__} has no `{'`, `'.join(absent)}`"
    own = {
        name: value
        for c in _own_classes(kind)
        for name, value in vars(c).items()
        if not name.startswith("_") and callable(value) and name not in _members()
    }
    for name in absent:
        wanted = {_plain(n): n for n in own}
        near = closest(_plain(name), wanted)
        if name == "objective":
            near = near or next((n for n in _OBJECTIVES if n in wanted), None)
        if near is not None:
            found = wanted[near]
            text += f"; its `{found}`{_place(kind, found)} is not a member of a node. Did you mean `{name}`?"
    return text


def _member(node: DeclarativeNode, name: str) -> str:
    return f"{type(node).__name__}.{name}{_place(type(node), name)}"


def _call_text(node: DeclarativeNode, member: str, function: Callable[..., Any]) -> str:
    return f"{type(node).__name__}.{member}{_signature(function)}{_place(type(node), member)}"


def _place(kind: type, name: str) -> str:
    """Where a member is written, as far as Python can tell."""
    for owner in _own_classes(kind):
        value = inspect.unwrap(_function(vars(owner).get(name)))
        code = getattr(value, "__code__", None)
        if code is not None:
            return f" ({code.co_filename}, line {code.co_firstlineno})"
    for owner in _own_classes(kind):
        try:
            lines, start = inspect.getsourcelines(owner)
            file = inspect.getsourcefile(owner)
        except (OSError, TypeError):
            continue
        pattern = re.compile(rf"^\s*(self\.)?{re.escape(name)}\s*(:[^=]*)?=[^=]")
        for number, line in enumerate(lines):
            if pattern.match(line):
                return f" ({file}, line {start + number})"
    return ""


def _function(value: Any) -> Any:
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value.fget if isinstance(value, property) else value


# -- dimensions -----------------------------------------------------------------------------------


def sample_dims(node: DeclarativeNode) -> tuple[int | None, ...] | None:
    """The dimensions of each input of the node's `sample_inputs`; None where it has none that works."""
    from .node import DeclarativeNode

    if type(node).sample_inputs is DeclarativeNode.sample_inputs:
        return None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        # What is drawn there must not change what the caller draws.
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            xs = node.sample_inputs()
            if not isinstance(xs, (tuple, list)):
                return None
            return tuple(x.ndim if isinstance(x, Tensor) else None for x in xs)
    except Exception:  # a stranger's code; `check` says what is wrong with it
        return None


def refuse_unnamed_batch(
    node: DeclarativeNode, xs: Sequence[Any], dims: Sequence[int | None] | None
) -> None:
    """Refuse inputs with more dimensions than the sample's: nothing says which of them are batch."""
    for index, (x, own) in enumerate(zip(xs, dims or (), strict=False)):
        if isinstance(x, Tensor) and own is not None and x.ndim > own:
            name = type(node).__name__
            raise InputError(
                f"{name}: input {index} has shape {tuple(x.shape)}, {x.ndim} dimensions, and "
                f"{own} in {name}.sample_inputs, and the node names no input_dims: a batch would be "
                f"solved as one problem. Add `input_dims = {dims_text(dims or ())}` to {name}; or, if "
                "it is one problem, make the layer with batch_dims=0"
            )


def dims_text(dims: Sequence[int | None]) -> str:
    """``input_dims`` as one writes it: (1, 2), (1,)."""
    return repr(tuple(dims))
