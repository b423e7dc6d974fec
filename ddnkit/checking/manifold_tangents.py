"""The projection on the tangent space, and what moves along it."""

from __future__ import annotations

from torch import Tensor

from .manifold_draw import Draw, longest
from .manifold_truth import Truth


class Tangents(Draw):
    """The projection on the tangent space, and what moves along it."""

    def _tangent(self) -> None:
        session, truth = self.session, self.truth
        if session.waits("tangent", "vertical"):
            return
        v = self._vector()
        found = self.flat(session.ask("tangent", self.y, v, shape=self.shape))
        right = truth.horizontal(self.flat(v))
        expected = "the orthogonal projection off the rows of constraint_jacobian"
        if truth.W.shape[1]:
            expected += " and off `vertical`"
        session.same(
            "tangent",
            "orthogonal projection",
            found,
            right,
            self.rounding(truth.condition**2),
            expected,
            self._left_in(found, right),
            least=longest(self.flat(v)),
        )

    def _left_in(self, found: Tensor, right: Tensor) -> str:
        """What a tangent vector has that it should not have."""
        truth = self.truth
        size = 1e-6 * longest(right)
        if longest(truth.on_rows(found)) > size:
            return "it leaves a part along the rows of constraint_jacobian: subtract it"
        if truth.W.shape[1] and longest(truth.off_rows(found) - truth.horizontal(found)) > size:
            return "it leaves a part along `vertical`: subtract it"
        return "it changes what is tangent: subtract normal directions only"

    def _retract(self) -> None:
        session = self.session
        z = self._horizontal()
        self._curve("retract", lambda t: session.ask("retract", self.y, t, shape=self.shape), z)

    def _transport(self) -> None:
        session = self.session
        if session.waits("transport", "vertical"):
            return
        z, u = self._horizontal(), self._horizontal()
        to = self.shaped(self.truth.beside(self._inside(self._horizontal())))
        there = Truth(self._constraint, self.single(to), self._vertical_at(to))

        def carried(vector: Tensor, to: Tensor) -> Tensor:
            given = self.shaped(vector)
            return self.flat(session.ask("transport", self.y, to, given, shape=self.shape))

        here = carried(z, self.y)
        tolerance = self.rounding(max(self.truth.condition, there.condition) ** 2)
        least = longest(z)
        session.same(
            "transport", "nothing to y itself", here, z, tolerance, "the vector itself for to = y",
            least=least,
        )  # fmt: skip
        found = carried(z, to)
        session.same(
            "transport",
            "tangent there",
            found,
            there.horizontal(found),
            tolerance,
            "a tangent vector at the other point" + (", horizontal" if there.W.shape[1] else ""),
            "end it with tangent(to, ...)",
            least=least,
        )
        session.same(
            "transport",
            "linear",
            carried(2 * z - 3 * u, to),
            2 * found - 3 * carried(u, to),
            tolerance,
            "what it gives for each of two vectors, combined",
            least=least,
        )
