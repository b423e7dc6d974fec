"""`ddnkit.check`: draws inputs, compares, shrinks what fails, and says what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import registry
from ..backward.form import BackwardForm, as_form, forms_of
from ..captured import running_statistics
from ..certificate import VERDICTS
from ..errors import InputError
from ..layer import DeclarativeLayer
from ..members import dims_text, refuse_unnamed_batch, sample_dims
from ..node import DeclarativeNode
from ..problem import Problem
from .cases import draw
from .diagnosis import diagnose
from .findings import Cause, Findings
from .instance import examine_around
from .report import CheckReport, Row, merge
from .smallest import smallest
from .snippet import as_text, script
from .subject import Subject

#: Cases on which the costly comparisons are made too.
_THOROUGH = 3


def check(
    node: DeclarativeNode | DeclarativeLayer,
    *xs: object,
    examples: int = 20,
    backward: str | BackwardForm | None = None,
    local: bool = False,
    name: str | None = None,
    target: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CheckReport:
    """Is y = argmin f what `node` returns, and is its gradient right? If not, why?

    Measures feasibility and stationarity of the solution, then compares each backward form that
    applies with central finite differences through a re-solve, with the other forms and with forward
    mode, for inputs and parameters. The first inputs are also solved in a batch, in turn with others,
    and in another precision. See docs/check.md for all comparisons and diagnoses.

    Args:
        node: the node, or a layer: its node is then checked with the layer's form, tolerance and
            batch dimensions.
        *xs: inputs to check on, batched or not. Without them, inputs are drawn by hypothesis from
            the node's `sample_inputs`, and shrunk when they fail.
        examples: how many inputs are drawn.
        backward: check this form only.
        local: `solve` is meant to return a local minimum, though there may be a lower one.
        name: what the report calls the node.
        target: the registered name or the file that the node came from, for the report's script.
        progress: called with the number of cases done.

    Returns:
        a `CheckReport`; ``report.ok`` is True if everything held.

    Raises:
        InputError: there is nothing to draw inputs from, or no such form.

    Example:
        >>> report = ddnkit.check(NearestETF())
        >>> print(report)
    """
    subject = _subject(node, backward, local)
    given = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in xs)
    session = _Session(subject, progress)
    causes: Sequence[Cause] = ()
    failing, inputs, text = None, "", ""
    kept = running_statistics(subject.node)
    try:
        _visit(session, given, examples)
        subject, failing = session.subject, session.failing
        if failing is not None:
            simplest, causes = failing.inputs, diagnose(failing)
            if not given:
                simplest, causes = smallest(failing, causes)
    finally:
        # A check leaves the node as it was.
        for buffer, value in kept:
            buffer.copy_(value)
    if failing is not None:
        inputs = as_text(simplest)
        is_layer = isinstance(node, DeclarativeLayer)
        text = script(subject, simplest, target=target, layer=is_layer, local=local)
    return CheckReport(
        name or subject.name,
        merge(session.rows),
        tuple(cause.text for cause in causes),
        tuple(cause.next for cause in causes),
        tuple(session.notes.values()),
        "invalid" if failing is not None else VERDICTS[session.verdict],
        inputs,
        text,
        session.cases,
        tuple(form.name for form in subject.forms),
        tuple(cause.kind for cause in causes),
    )


def _visit(session: _Session, given: tuple[object, ...], examples: int) -> None:
    """Examine the inputs that were given, or drawn ones."""
    subject = session.subject
    if given:
        subject.takes.refuse(subject.node, len(given))
        if subject.names_no_batch:
            refuse_unnamed_batch(subject.node, given, sample_dims(subject.node))
        session.visit(given)
        return
    if examples < 1:
        raise InputError(f"examples must be a whole number from 1 on, not {examples!r}")
    if subject.names_no_batch:
        session.notes["input_dims"] = _without_input_dims(subject.node)
    # Drawn inputs are those of one problem.
    session.subject = subject.with_batch_dims(None)
    draw(subject.node, examples, session.visit)


def _without_input_dims(node: DeclarativeNode) -> str:
    dims = sample_dims(node)
    drawn = "(1, …), the dimensions of each input" if dims is None else dims_text(dims)
    would = (
        "would take a batch as one problem"
        if dims is None
        else "takes inputs of exactly these dimensions, and raises an error for a batch"
    )
    return (
        f"no input_dims: drawn inputs were checked as one problem each, and in a batch as with "
        f"batch_dims=1; a layer {would}, unless it has batch_dims, or the node "
        f"input_dims = {drawn}"
    )


class _Session:
    """The cases of one check: their rows, and the first that failed."""

    def __init__(self, subject: Subject, progress: Callable[[int], None] | None):
        self.subject, self.progress = subject, progress
        self.rows: list[Row] = []
        self.notes: dict[str, str] = {}
        self.cases = self.verdict = 0
        self.failing: Findings | None = None

    def visit(self, inputs: tuple[object, ...]) -> bool:
        """Examine one case; returns whether it passed."""
        if not self.cases:
            self.subject.check_manifold(inputs)
        findings = examine_around(
            self.subject, inputs, around=not self.cases, thorough=self.cases < _THOROUGH
        )
        if self.cases and not findings.ok:
            # The printed script makes all comparisons on the inputs that failed: so does the report.
            whole = examine_around(self.subject, inputs, around=True, thorough=True)
            findings = findings if whole.ok else whole
        self.cases += 1
        self.rows += findings.rows
        self.notes = {**findings.notes, **self.notes}
        self.verdict = max(self.verdict, _verdict(findings))
        if findings.ok and findings.point is not None and _verdict(findings):
            told = f"the worst certificate: {findings.point.certificate}"
            self.notes.setdefault("certificate", told)
        if self.progress is not None:
            self.progress(self.cases)
        if not findings.ok:
            self.failing = findings
        return findings.ok


def _verdict(findings: Findings) -> int:
    if findings.point is None:
        return 0
    verdicts = findings.point.certificate.verdicts()
    return max((VERDICTS.index(verdict) for verdict in verdicts), default=0)


def _subject(
    node: DeclarativeNode | DeclarativeLayer, backward: str | BackwardForm | None, local: bool
) -> Subject:
    if isinstance(node, DeclarativeLayer):
        layer, node = node, node.node
        form = layer.form if backward is None else as_form(backward, Problem(node, (), 0))
        return Subject(
            node,
            [form],
            batch_dims=layer.batch_dims,
            tolerance=layer.tolerance,
            asked=True,
            local=local,
        )
    if not isinstance(node, DeclarativeNode):
        raise InputError(f"check takes a ddnkit.DeclarativeNode or a layer, not {node!r}")
    if backward is not None:
        return Subject(node, _requested_forms(node, backward), asked=True, local=local)
    return Subject(node, list(forms_of(node).values()), local=local)


def _requested_forms(node: DeclarativeNode, backward: str | BackwardForm) -> Sequence[BackwardForm]:
    problem = Problem(node, (), 0)
    if isinstance(backward, BackwardForm):
        return [as_form(backward, problem)]
    known = forms_of(node)
    if backward == "auto":
        return [registry.make("backwards", backward)]
    if backward not in known:
        raise InputError(
            f"form '{backward}' does not apply to {type(node).__name__}; "
            f"those that do: {', '.join([*known, 'auto'])}"
        )
    return [known[backward]]
