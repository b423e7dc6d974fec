"""That `constraint`, `project` and `random` describe one set."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..importing import describe_error
from .manifold_draw import SECOND_ORDER, STEPS, Draw, longest
from .manifold_session import BrokenMethodError
from .manifold_truth import Truth, jacobian, land

#: A gradient so much shorter than around is none.
_VANISHES = 1e-5


class SameSet(Draw):
    """That `constraint`, `project` and `random` describe one set."""

    def _same_set(self) -> None:
        session = self.session
        y, wide = self._points()
        wide = self._ask_points("project", wide)
        kept = self._ask_points("project", y)
        for points in (y, wide):
            self._constraint_runs(points)
        off_random, off_project = self._off(y), self._off(wide)
        moved = longest(self.flat(kept - y)) / self._size(y)
        allowed = self.rounding(max(self._condition(y), self._condition(wide)))
        self._say_which(y, off_random, off_project, moved, allowed)
        if session.wrong & {"constraint"}:
            return
        self._is_random()
        if off_random > allowed:
            y = (
                kept
                if off_project <= allowed
                else self.shaped(land(self._constraint, self.single(y)))
            )
        self.y, self.size = y, self._size(y)
        session.judge(
            "constraint",
            "rows independent",
            self._dependence(),
            1 / (64 * self.m * self.eps),
            "its gradients are dependent where it is zero",
            "independent equations, as many as the set has less dimensions than the space",
            "state each equation once (of a symmetric matrix the lower triangle), and not as a square",
        )
        if session.wrong & {"constraint"}:
            return
        W = session.call("vertical", self.y)
        if W is not None and "vertical" not in session.wrong:
            with session.going_on():
                shape = (*self.batch, *W.shape[len(self.batch) : len(self.batch) + 1], *self.point)
                session.ask("vertical", self.y, shape=shape)
        rows = None if W is None or "vertical" in session.wrong else self._rows_of(W)
        self.truth = Truth(self._constraint, self.single(self.y), rows)
        self.vertical = rows
        self._near()

    def _points(self) -> tuple[Tensor, Tensor]:
        """Random points, and points of the space."""
        like = torch.zeros((), dtype=torch.float64)
        y = self.session.ask(
            "random", self.shape, shape=self.shape, like=like, generator=self.generator
        )
        return y, y + self._draws() * self._size(y) / self.m**0.5

    def _constraint_runs(self, y: Tensor) -> None:
        """Of each point by itself, and differentiable."""
        session = self.session
        j = session.call("constraint", y)
        lead = f"({', '.join([*map(str, self.batch), 'p'])})"
        if not isinstance(j, Tensor) or tuple(j.shape[:-1]) != self.batch or not j.ndim:
            kind = f"shape {tuple(j.shape)}" if isinstance(j, Tensor) else type(j).__name__
            session.broken("constraint", "shape", f"it gives {kind}", f"a tensor of shape {lead}")
        session.ask("constraint", y, shape=j.shape)
        alone = torch.stack([session.call("constraint", each) for each in self.single(y)])
        session.same(
            "constraint",
            "each point alone",
            j.reshape(alone.shape),
            alone,
            self.rounding(1),
            "what it gives for each point of a batch alone",
            "reduce over the dimensions of one point only",
            least=float(alone.abs().max()) + 1 if alone.numel() else 1.0,
        )
        try:
            jacobian(self._constraint, self.single(y))
            torch.func.vjp(session.manifold.constraint, y)
        except BrokenMethodError:
            raise
        except Exception as error:
            session.broken(
                "constraint",
                "differentiable",
                f"torch cannot differentiate it: {describe_error(error)}",
                "a function in torch calls, without detach, numpy or changes in place",
            )

    def _say_which(
        self, y: Tensor, off_random: float, off_project: float, moved: float, allowed: float
    ) -> None:
        """Of three that name the same set, which does not."""
        session = self.session
        lands = "points where the constraint is zero"
        far = "it is off the manifold by {:.1e} of the size of a point".format
        random_off, project_off = off_random > allowed, off_project > allowed
        if random_off and project_off:
            self._neither(y, off_random, off_project, moved, allowed)
            return
        session.judge(
            "constraint",
            "zero on the manifold",
            min(off_random, off_project),
            allowed,
            "it is not zero where `project` and `random` land",
            "zero",
        )
        session.judge("random", "on the manifold", off_random, allowed, far(off_random), lands)
        session.judge(
            "project", "lands on the manifold", off_project, allowed, far(off_project), lands
        )
        if not random_off and not project_off:
            session.judge(
                "project",
                "leaves points of the manifold",
                moved,
                allowed,
                f"it moves them by {moved:.1e} of their size",
                "the nearest point, which is the point itself",
            )

    def _neither(
        self, y: Tensor, off_random: float, off_project: float, moved: float, allowed: float
    ) -> None:
        """`random` and `project` both land where the constraint is not zero."""
        session = self.session
        guilty: tuple[str, ...] = ("constraint", "project")
        if session.has_own("infeasibility"):
            said = session.ask("infeasibility", y, shape=self.batch)
            if not session.calls("infeasibility", "constraint", "constraint_jacobian"):
                guilty = ("constraint",) if float(said.abs().max()) <= allowed else ("project",)
        if moved > allowed:
            guilty = ("project",)  # it does not even stay where it lands
        if guilty == ("project",) and not session.calls("random", "project"):
            guilty = ("project", "random")
            for name, far in (("project", off_project), ("random", off_random)):
                session.judge(
                    name, "on the manifold", far, allowed, f"it is off by {far:.1e}", "zero"
                )
            return
        off = f"the constraint is off zero by {off_project:.1e}, as a distance relative to a point's, "
        session.judge(
            guilty,
            "zero on the manifold",
            off_project,
            allowed,
            off + "where `project` and `random` land",
            "that the three describe one set",
            "evaluate constraint(project(v)) and look at which entries are not zero",
        )

    def _is_random(self) -> None:
        session, like = self.session, torch.zeros((), dtype=torch.float64)
        if "random" in session.wrong:
            return

        def drawn(seed: int) -> Tensor:
            source = Generator().manual_seed(seed)
            return session.ask("random", self.shape, shape=self.shape, like=like, generator=source)

        before = torch.default_generator.get_state()
        first, same, other = drawn(1), drawn(1), drawn(2)
        untouched = torch.equal(before, torch.default_generator.get_state())
        session.judge(
            "random",
            "reproducible",
            float(not torch.equal(first, same) or not untouched),
            0.0,
            "it draws without the generator that it is given",
            "the same point from a generator of the same state",
            "ddnkit.gaussian(shape, generator, like) draws normal numbers from it",
        )
        p = session.call("constraint", first).shape[-1]
        session.judge(
            "random",
            "other points from other seeds",
            float(p < self.m and torch.equal(first, other)),
            0.0,
            "it gives the same point again",
            "another point from another generator",
            "ddnkit.gaussian(shape, generator, like) draws normal numbers from it",
        )

    def _near(self) -> None:
        """Beside the manifold along tangent vectors `project` stays beside the point, to first order."""
        session = self.session
        if session.waits("project", "random") or not self._free():
            return
        z = self._horizontal()
        off, ends = [], []
        for step in STEPS:
            there = self.y + self.shaped(step * z)
            ends.append(self._ask_points("project", there))
            off.append(longest(self.flat(ends[-1] - there)))
        ratio = self._order(off)
        if ratio <= SECOND_ORDER:
            session.judge("project", "first order", ratio, SECOND_ORDER, "", "")
            return
        # On {j = 0} too, and moved nevertheless: the set that `project` knows is smaller.
        landed = self.shaped(self.truth.beside(STEPS[0] * z))
        moved = longest(self.flat(self._ask_points("project", landed) - landed))
        if moved > 0.1 * off[0]:
            session.judge(
                "constraint",
                "all equations",
                moved / (STEPS[0] * self.size),
                self.rounding(1),
                "it is zero beside the points of the manifold, at points that `project` moves",
                "all equations of the set that `project` lands on",
                "count: the dimension of the set is that of the space less the number of equations",
            )
            return
        session.judge(
            "project",
            "first order",
            ratio,
            SECOND_ORDER,
            "beside y along a tangent vector it is off by a first-order term",
            "project(y + tz) = y + tz to first order",
        )

    def _dependence(self) -> float:
        """The condition of J; infinite where a row vanishes, as against around the manifold."""
        lengths = [
            jacobian(self._constraint, self.single(y)).norm(dim=2)
            for y in (self.y, self.y + 0.1 * self._vector())
        ]
        vanishes = bool((lengths[0] < _VANISHES * lengths[1]).any())
        return float("inf") if vanishes else self._condition(self.y)
