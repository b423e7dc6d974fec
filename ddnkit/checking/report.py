"""CheckReport: what was compared with what, how far apart, what that means, and how to see it again."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, replace
from typing import Any


class Comparison(enum.Enum):
    """What a check compares, each with the text that a report has for it."""

    RUNS = "runs"
    FEASIBILITY = "feasibility"
    STATIONARITY = "stationarity"
    STATUS = "solver's status"
    SMOOTH = "smooth at the solution"
    ACTIVE_SET = "active constraints: none of them weakly"
    MULTIPLIERS = "multipliers that `solve` returns"
    SOLUTION = "solution: a step of Newton's method"
    SAME_SOLUTION = "same solution when solved again"
    CONSTANT_RANK = "constraints of constant rank"
    MINIMUM = "second order: a minimum"
    STRICT_MINIMUM = "second order: a strict one"
    FORM_RUNS = "{form}: runs"
    RESIDUAL = "{form}: adjoint residual"
    DIFFERENCES = "{form}: finite differences"
    AGAINST = "{form}: against {against}"
    FORWARD = "{form}: forward against backward"
    PARAMETER = "{form}: parameter {parameter}"
    NEARBY = "branch: nearby inputs"
    LOWEST = "branch: the lowest minimum"
    MEMORY = "memory: solutions in turn"
    MEMORY_GRADIENT = "memory: gradient after another solve, {form}"
    BATCH = "batch: each y alone"
    BATCH_GRADIENT = "batch: each gradient alone, {form}"
    FLOAT32_FINITE = "float32: finite"
    FLOAT32_Y = "float32: y against float64"
    FLOAT32_GRADIENT = "float32: gradient against float64"


class Diagnosis(str, enum.Enum):
    """What may be wrong with a node, each under a word that a script may rely on."""

    DOES_NOT_RUN = "does_not_run"
    WRONG_MANIFOLD = "wrong_manifold"
    STALE_ANSWER = "stale_answer"
    STALE_GRADIENT = "stale_gradient"
    EARLIER_CALLS = "depends_on_earlier_calls"
    NOT_DETERMINISTIC = "not_deterministic"
    BATCH_LEAK = "batch_leak"
    NOT_FINITE = "not_finite"
    TOO_COARSE = "too_coarse"
    BOUNDS_CONTRADICT = "bounds_contradict"
    START_OUTSIDE = "start_outside"
    INEQUALITY_SIGN = "inequality_sign"
    KEEPS_OFF = "keeps_off_a_constraint"
    INACTIVE_HELD = "inactive_held"
    WRONG_MULTIPLIERS = "wrong_multipliers"
    INFEASIBLE = "infeasible"
    NOT_SMOOTH = "not_smooth"
    WEAKLY_ACTIVE = "weakly_active"
    DEGENERATE_CONSTRAINTS = "degenerate_constraints"
    OTHER_OBJECTIVE = "other_objective"
    INEXACT_SOLVE = "inexact_solve"
    NO_SOLUTION = "no_solution"
    NOT_A_MINIMUM = "not_a_minimum"
    NOT_UNIQUE = "not_unique"
    BADLY_CONDITIONED = "badly_conditioned"
    LOWER_MINIMUM = "lower_minimum"
    OTHER_BRANCH = "other_branch"
    NOISY_SOLUTION = "noisy_solution"
    FORM_DOES_NOT_RUN = "form_does_not_run"
    HIDDEN_INPUT = "hidden_input"
    OTHER_MOTION = "other_motion"
    SYSTEM_NOT_SOLVED = "system_not_solved"
    ADJOINT_SIGN = "adjoint_sign"
    ADJOINT_FACTOR = "adjoint_factor"
    ADJOINT_FORGETS_INPUT = "adjoint_forgets_input"
    ADJOINT_GRADIENT_TRANSPOSED = "adjoint_gradient_transposed"
    ADJOINT_MATRIX_TRANSPOSED = "adjoint_matrix_transposed"
    ADJOINT_CROSS_TRANSPOSED = "adjoint_cross_derivative_transposed"
    ADJOINT_WITHOUT_CONSTRAINTS = "adjoint_without_constraints"
    ADJOINT_WITHOUT_HESSIAN = "adjoint_without_hessian"
    ADJOINT_WRONG = "adjoint_wrong"
    FORWARD = "forward_mode"
    PARAMETER = "parameter"
    FLOAT32_OVERFLOWS = "float32_overflows"
    FLOAT32_COARSE = "float32_coarse"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RowKey:
    """What a row compares, and of which form, against which other and for which parameter, if any."""

    comparison: Comparison
    form: str = ""
    against: str = ""
    parameter: str = ""

    def __str__(self) -> str:
        return self.comparison.value.format(
            form=self.form, against=self.against, parameter=self.parameter
        )


@dataclass(frozen=True)
class Row:
    """One comparison: the worst error seen, and what it is held against.

    Attributes:
        cases: on how many inputs it was made.
    """

    key: RowKey
    error: float
    tolerance: float
    ok: bool
    cases: int = 1
    note: str = ""

    @property
    def name(self) -> str:
        """What is compared, as a report prints it."""
        return str(self.key)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an error that is no number is None."""
        return {
            "name": self.name,
            "error": self.error if math.isfinite(self.error) else None,
            "tolerance": self.tolerance,
            "ok": self.ok,
            "cases": self.cases,
            "note": self.note,
        }


@dataclass(frozen=True)
class CheckReport:
    """The result of `ddnkit.check`.

    Attributes:
        target: what was checked.
        rows: the comparisons, worst case over all inputs.
        diagnosis: what is wrong on the inputs of the script, most fundamental first; empty if nothing is.
        kinds: the `Diagnosis` that each of them is; scripts may rely on its word.
        next: what to do about each.
        notes: what was seen and is no failure.
        verdict: "trusted", "doubtful" or "invalid": the worst certificate of all inputs, and invalid
            if a comparison failed.
        inputs: the smallest failing inputs found, as Python text; empty if nothing failed.
        snippet: a script that makes node and inputs again and checks them; empty if nothing failed.
        cases: how many inputs were checked.
        forms: the backward forms that were compared.
    """

    target: str
    rows: tuple[Row, ...]
    diagnosis: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: str = "trusted"
    inputs: str = ""
    snippet: str = ""
    cases: int = 1
    forms: tuple[str, ...] = ()
    kinds: tuple[Diagnosis, ...] = ()

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; an error that is no number is None."""
        rows = tuple(row.to_dict() for row in self.rows)
        kinds = tuple(kind.value for kind in self.kinds)
        return {**asdict(self), "rows": rows, "kinds": kinds, "ok": self.ok}

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{self.target}: {self.cases} case{'s' if self.cases != 1 else ''}, "
            f"forms {', '.join(self.forms) or 'none'}"
        ]
        for row in self.rows:
            mark = "ok  " if row.ok else "FAIL"
            note = f"  {row.note}" if row.note else ""
            lines.append(
                f"  {mark} {row.name:<{width}}  {row.error:8.1e}  (at most {row.tolerance:.0e}){note}"
            )
        lines += [f"diagnosis: {text}" for text in self.diagnosis]
        lines += [f"next: {text}" for text in self.next]
        lines += [f"note: {text}" for text in self.notes]
        if self.snippet:
            indented = "\n".join(f"    {line}".rstrip() for line in self.snippet.splitlines())
            lines.append(f"smallest failing inputs, as a script:\n{indented}")
        lines.append(f"{'passed' if self.ok else 'FAILED'}, gradients {self.verdict}")
        return "\n".join(lines)


def merge(rows: list[Row]) -> tuple[Row, ...]:
    """One row of what is compared, in order of appearance, with the worst error and the number of cases."""
    merged: dict[RowKey, Row] = {}
    for row in rows:
        seen = merged.get(row.key)
        if seen is None:
            merged[row.key] = row
            continue
        kept = row if _badness(row) > _badness(seen) else seen
        merged[row.key] = replace(kept, ok=seen.ok and row.ok, cases=seen.cases + 1)
    return tuple(merged.values())


def _badness(row: Row) -> tuple[bool, bool, float]:
    # A NaN is worse than any number, and a failure than any error.
    return not row.ok, math.isnan(row.error), row.error
