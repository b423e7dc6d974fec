"""A comparison: competitors that do the same work, on the same inputs, in turn.

For each case every competitor is called once to warm up, and what it returns is held against the
reference: one that disagrees is not timed. Then come the rounds, each of which takes every
competitor once, so that whatever slows the machine slows neighbours alike. Peak memory is that of
a process of its own (on a GPU: the allocator's).

A competitor that does not fit into memory is measured at a half and a quarter of the size (or
a quarter and an eighth, where a half would take too long), and extrapolated by the power law through
the two: t(n) = t(n/2)² / t(n/4).
"""

from __future__ import annotations

import abc
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import InputError, nearest_choice
from .case import Case, Competitor, Phase
from .contract import Bench, Request, Result
from .floor import Floor, now
from .measurement import Measurement, table
from .peak_memory import MeasurementError, peak_memory

#: An extrapolation may cost so many times the budget of a competitor.
_PATIENCE = 5
#: How much longer a dense form takes at twice the size: 2⁵ and more.
_GROWTH = 32


class Comparison(Bench):
    """Competitors against each other: a plugin says what the work is and who does it.

    Attributes:
        sizes: those of the cases, where none are asked for.
        cuda_sizes: the same on a GPU; None: those.
        size_names: what the numbers of a size are, such as ``("d", "C")``.
        dtype: of the inputs, where none is asked for.
        tolerance: largest difference from the reference that passes.
        measures_memory: False where a process of its own would tell nothing.
    """

    sizes: tuple[tuple[int, ...], ...] = ()
    cuda_sizes: tuple[tuple[int, ...], ...] | None = None
    size_names: tuple[str, ...] = ()
    dtype = "float32"
    tolerance = 1e-4
    measures_memory = True

    @abc.abstractmethod
    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """What all competitors are given, made on the CPU; torch is seeded, tensors are moved."""

    @abc.abstractmethod
    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """Who takes part. The first is the one that the others are compared with."""

    def cases(self, request: Request) -> list[Case]:
        """The cases of a request: one for each size."""
        return [Case(size) for size in self.asked_sizes(request)]

    def title(self, case: Case) -> str:
        """The heading of a case's table."""
        if not case.size or len(self.size_names) != len(case.size):
            return str(case)
        size = ", ".join(f"{n} = {k:,}" for n, k in zip(self.size_names, case.size, strict=True))
        return f"{case.kind}: {size}" if case.kind else size

    def small(self, case: Case) -> Case:
        """A case of the same kind on which libraries load before memory is measured."""
        return dataclasses.replace(case, size=tuple(min(n, 16) for n in case.size))

    def floor(self, case: Case) -> Floor | None:
        """The arithmetic and the traffic that the work cannot do without, where that is known."""
        return None

    def work(self, case: Case) -> tuple[float, str]:
        """How much is done, and of what, for a column of rates; (0, "") for none."""
        return 0.0, ""

    def reference(self, case: Case, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The right results; None: those of the first competitor that ran."""
        return None

    def difference(
        self, case: Case, results: Mapping[str, Any], reference: Mapping[str, Any]
    ) -> float | None:
        """How far results are from the reference's: the largest ‖a − b‖/‖b‖ over common names."""
        gaps = []
        for name in reference.keys() & results.keys():
            a, b = (torch.as_tensor(x[name]).detach().double().cpu() for x in (results, reference))
            gap, size = (a - b).norm().item(), b.norm().item()
            gaps.append(gap / size if size else gap)
        return max(gaps, key=lambda g: (math.isnan(g), g), default=None)

    def columns(
        self, case: Case, inputs: Mapping[str, Any], results: Mapping[str, Any]
    ) -> Mapping[str, str]:
        """Further columns of the table, from a competitor's results: {heading: text}."""
        return {}

    def asked_sizes(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """The sizes of a request, or the bench's own, each with as many numbers as it must have."""
        for size in request.sizes:
            if len(size) != len(self.size_names) or min(size) < 1:
                raise InputError(
                    f"--sizes: a size is {len(self.size_names)} positive numbers here, "
                    f"{'x'.join(self.size_names)}, not {'x'.join(map(str, size))}"
                )
            # Two of its numbers are the sides of a matrix, whatever the work is.
            least = 4.0 * math.prod(sorted(size)[-2:])
            if not _fits(least):
                raise InputError(
                    f"--sizes: {'x'.join(map(str, size))} takes {least / 2**30:,.0f} GiB at least, "
                    "more than half of this machine's memory"
                )
        own = self.sizes
        if request.device == "cuda" and self.cuda_sizes is not None:
            own = self.cuda_sizes
        return request.sizes or own

    # -- measuring ------------------------------------------------------------------------------

    def run(self, request: Request) -> Result:
        """A table for each case."""
        tables, measured = [], []
        for case in self._cases_asked(request):
            lines = self.measure(case, request)
            dtype = request.dtype or self.dtype
            tables.append(
                table(
                    self.title(case), lines, self.floor(case), self.work(case),
                    device=request.device, dtype=dtype,
                )
            )  # fmt: skip
            about = {"kind": case.kind, "size": list(case.size), "dtype": dtype}
            measured += [{**about, **line.plain()} for line in lines]
        return Result(tuple(tables), tuple(measured))

    def measure(self, case: Case, request: Request) -> list[Measurement]:
        """The lines of one case, in the competitors' order."""
        field = [
            competitor
            for competitor in self.competitors(case, request.device)
            if not request.only or competitor.name in request.only
        ]
        inputs = self.drawn(case, request)
        reference = self.reference(case, inputs)
        lines: dict[str, Measurement] = {}
        runs: dict[str, tuple[Mapping[str, Phase], float]] = {}
        for competitor in field:
            untimed = self._untimed(competitor, case, request)
            if untimed is not None:
                lines[competitor.name] = untimed
                continue
            request.progress(f"{case}: {competitor.name}, first call")
            try:
                phases = competitor.prepare(inputs)
                times, results = _once(phases, request.device)
            except Exception as error:  # whatever a competitor throws, the others go on
                lines[competitor.name] = Measurement(
                    competitor.name, note=f"failed: {_short(error)}"
                )
                continue
            gap = None
            if reference is None:
                reference = results
            else:
                gap = self.difference(case, results, reference)
            allowed = self.tolerance if competitor.tolerance is None else competitor.tolerance
            seconds = {phase: [time] for phase, time in zip(phases, times, strict=True)}
            columns = self.columns(case, inputs, results)
            line = Measurement(competitor.name, seconds, difference=gap, columns=columns)
            if gap is not None and not gap <= allowed:
                note = f"disagrees with the reference by {gap:.1e} (allowed: {allowed:.0e})"
                line = dataclasses.replace(line, seconds={}, note=note)
            elif sum(times) < request.budget:
                runs[competitor.name] = phases, sum(times)
            lines[competitor.name] = line
        for name, rounds in self._rounds(case, runs, request).items():
            lines[name] = dataclasses.replace(lines[name], seconds=rounds)
        del runs, inputs, reference
        return [self._with_memory(lines[c.name], case, request) for c in field]

    def drawn(self, case: Case, request: Request) -> Mapping[str, Any]:
        """The inputs of a case on the request's device, from its seed."""
        torch.manual_seed(request.seed)
        try:
            made = self.inputs(case, getattr(torch, request.dtype or self.dtype))
        except (MemoryError, OverflowError, RuntimeError) as error:
            if not request.sizes:
                raise
            raise InputError(f"--sizes: {case} cannot be made: {_short(error)}") from error
        return {
            name: value.to(request.device) if isinstance(value, torch.Tensor) else value
            for name, value in made.items()
        }

    def _untimed(self, competitor: Competitor, case: Case, request: Request) -> Measurement | None:
        """The line of a competitor that is not called on this case; None for one that is."""
        absence = competitor.absence()
        if absence:
            return Measurement(competitor.name, note=absence)
        if _fits(competitor.needs):
            return None
        if competitor.extrapolates:
            return self._extrapolate(competitor.name, case, request)
        note = f"not measured: it needs {competitor.needs / 2**30:,.0f} GiB"
        return Measurement(competitor.name, note=note)

    def _rounds(
        self,
        case: Case,
        runs: Mapping[str, tuple[Mapping[str, Phase], float]],
        request: Request,
    ) -> dict[str, dict[str, list[float]]]:
        taken: dict[str, dict[str, list[float]]] = {
            name: {phase: [] for phase in phases} for name, (phases, _) in runs.items()
        }
        left = {
            name: max(1, min(request.repeats, int(request.budget / max(first, 1e-9))))
            for name, (_, first) in runs.items()
        }
        for number in range(request.repeats + 1):  # the first round warms up once more
            for name, (phases, first) in runs.items():
                if number > left[name] or (number == 0 and first > request.budget / 10):
                    continue
                request.progress(f"{case}: {name}, round {number} of {left[name]}")
                times, _ = _once(phases, request.device)
                if number:
                    for phase, time in zip(phases, times, strict=True):
                        taken[name][phase].append(time)
        return taken

    def _cases_asked(self, request: Request) -> list[Case]:
        """The cases in which one of the competitors asked for takes part."""
        cases = self.cases(request)
        if not request.only:
            return cases
        fields = [{c.name for c in self.competitors(case, request.device)} for case in cases]
        names = sorted(set().union(*fields))
        for name in request.only:
            if name not in names:
                raise InputError(f"--only: no competitor '{name}'.{nearest_choice(name, names)}")
        asked = set(request.only)
        return [
            case for case, field in zip(cases, fields, strict=True) if not asked.isdisjoint(field)
        ]

    def _with_memory(self, line: Measurement, case: Case, request: Request) -> Measurement:
        if (
            not (request.memory and self.measures_memory and self.name and line.seconds)
            or line.memory is not None
        ):
            return line
        request.progress(f"{case}: {line.competitor}, peak memory")
        try:
            memory = peak_memory(self.name, case, line.competitor, request)
        except MeasurementError as error:
            note = "; ".join(filter(None, (line.note, f"no peak memory: {error}")))
            return dataclasses.replace(line, note=note)
        return dataclasses.replace(line, memory=memory)

    def _extrapolate(self, name: str, case: Case, request: Request) -> Measurement:
        once = dataclasses.replace(request, repeats=1, only=(name,), budget=0.0)

        def part(k: int) -> Case:
            return dataclasses.replace(case, size=tuple(max(n // k, 1) for n in case.size))

        def at(k: int) -> Measurement:
            smaller = part(k)
            fits = {c.name: _fits(c.needs) for c in self.competitors(smaller, request.device)}
            if not fits.get(name):
                raise MeasurementError(f"at 1/{k} of the size it does not fit in memory either")
            request.progress(f"{smaller}: {name}, to extrapolate to {case}")
            (line,) = self.measure(smaller, once)
            if not line.seconds:
                raise MeasurementError(f"at {smaller}: {line.note}")
            return line

        try:
            small = at(4)
            if small.median() * _GROWTH <= _PATIENCE * request.budget:
                large, sizes, steps = at(2), (part(4).size, part(2).size), 1
            else:
                small, large = at(8), small
                sizes, steps = (part(8).size, part(4).size), 2
        except MeasurementError as error:
            return Measurement(name, note=f"not measured: {error}")

        def power_law(a: float, b: float) -> float:
            return b * (b / a) ** steps if a > 0 else math.nan

        seconds = {
            phase: [power_law(rounds[0], large.seconds[phase][0])]
            for phase, rounds in small.seconds.items()
        }
        memory = None
        if small.memory and large.memory:
            memory = power_law(small.memory, large.memory)
        measured = ", ".join(
            f"{'×'.join(map(str, size))} in {line.median():.3g} s"
            for size, line in zip(sizes, (small, large), strict=True)
        )
        return Measurement(name, seconds, memory, note=f"extrapolated from {measured}",
                        extrapolated_from=sizes)  # fmt: skip


def _once(phases: Mapping[str, Phase], device: str) -> tuple[list[float], Any]:
    state, times, started = None, [], now(device)
    for phase in phases.values():
        state = phase(state)
        done = now(device)
        times.append(done - started)
        started = done
    return times, state


def _fits(needed: float) -> bool:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return needed < total / 2


def _short(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:160]
