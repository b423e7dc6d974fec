"""The derivatives of `constraint`, and the normal vectors that are made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .manifold_draw import DIFFERENCE, STEPS, Draw, longest
from .manifold_truth import Truth, condition, derivative, jacobian

#: Multipliers up to which a normal is looked at for all of them.
_MOST_MULTIPLIERS = 400


class Normals(Draw):
    """The derivatives of `constraint`, and the normal vectors that are made of them."""

    def _jacobian(self) -> None:
        session = self.session
        for place, y in (("", self.y), (" off the manifold", self.y + 0.1 * self._vector())):
            right = jacobian(self._constraint, self.single(y))
            p = right.shape[1]
            found = session.ask("constraint_jacobian", y, shape=(*self.batch, p, self.m))
            session.same(
                "constraint_jacobian",
                f"derivative of constraint{place}",
                found.reshape(self.count, -1),
                right.flatten(1),
                self.rounding(1),
                "the derivative of `constraint`, with y in row-major order",
                "leave it out, or compare its rows with torch.func.jacrev(constraint)",
                least=self.eps,
            )

    def _infeasibility(self) -> None:
        session = self.session
        here = session.ask("infeasibility", self.y, shape=self.batch)
        session.judge(
            "infeasibility",
            "zero on the manifold",
            here.abs().max(),
            self.rounding(self.truth.condition),
            f"it gives {float(here.abs().max()):.1e} at points of the manifold",
            "zero there",
        )
        p = self.truth.J.shape[1]
        for i in range(min(p, 6) + bool(p)):
            n = self.truth.J[:, i] if i < min(p, 6) else self.truth.on_rows(self._flat_vector())
            # Relative to each point's own size, as what is measured is.
            n = n / n.norm(dim=1, keepdim=True) * self.flat(self.y).norm(dim=1, keepdim=True)
            said = [
                session.ask("infeasibility", self.y + self.shaped(step * n), shape=self.batch)
                for step in STEPS
            ]
            least = min(float(x.min()) / step for x, step in zip(said, STEPS, strict=True))
            most = max(float(x.max()) / step for x, step in zip(said, STEPS, strict=True))
            # Norms of m numbers, and a square of what is measured, differ by such a factor.
            factor = 8 * self.m**0.5
            worst = max(most, 1 / least if least > 0 else float("inf"))
            session.judge(
                "infeasibility",
                "of the size of the distance",
                worst,
                factor,
                f"at a relative distance t from the manifold it is between {least:.1e} t and {most:.1e} t",
                "about t, in every direction off the manifold",
                "leave it out, or measure every constraint, without a square: |j| and not j²",
            )

    def _vertical(self) -> None:
        session, W = self.session, self.vertical
        if W is None or not W.shape[1]:
            return
        off = torch.linalg.matrix_norm(W @ self.truth.J.mT)
        size = torch.linalg.matrix_norm(W) * torch.linalg.matrix_norm(self.truth.J)
        session.judge(
            "vertical",
            "tangent",
            (off / torch.where(size > 0, size, 1.0)).max(),
            self.rounding(1),
            "it gives directions that leave the manifold",
            "directions along which the constraint stays zero: constraint_jacobian(y) w = 0",
        )
        session.judge(
            "vertical",
            "independent",
            condition(W),
            1 / (64 * self.m * self.eps),
            "its directions are dependent",
            "independent directions",
            "give a basis: of skew matrices those with one pair of entries",
        )

    def _normal(self) -> None:
        """`normal` and `multipliers`, of which each is what the other makes of it."""
        session, truth = self.session, self.truth
        if "multipliers" in session.wrong or session.waits("normal", "constraint"):
            return
        g, other = self._vector(), self._vector()
        sigma, second = self._multipliers(g), self._multipliers(other)
        n = self.flat(session.ask("normal", self.y, sigma, shape=self.shape))
        n2 = self.flat(session.ask("normal", self.y, second, shape=self.shape))
        both = self.flat(session.ask("normal", self.y, 2 * sigma - 3 * second, shape=self.shape))
        linear = session.same(
            "normal",
            "linear in the multipliers",
            both,
            2 * n - 3 * n2,
            self.rounding(1),
            "what it gives for each of two multipliers, combined",
            least=self.size,
        )
        if not linear:
            return
        right = truth.on_rows(self.flat(g))
        tolerance = self.rounding(truth.condition**2)
        least = longest(self.flat(g))
        if longest(n - right) <= tolerance * least:
            what = "the least squares multipliers"
            session.same(
                "normal", "in the row space", n, truth.on_rows(n), tolerance, "", least=least
            )
            session.same("multipliers", "least squares", n, right, tolerance, what, least=least)
            self._by_rows(sigma, n)
            return
        guilty = self._normal_or_multipliers(g)
        projection = "the projection of ∇f on the row space of constraint_jacobian"
        if guilty == ("normal",):
            expected = f"Σᵢ σᵢ ∇jᵢ: with `multipliers` {projection}"
            hint = "leave it out with `multipliers`, or derive it from the same multiples of the constraints"
        elif guilty == ("multipliers",):
            expected = f"that `normal` makes of it {projection}"
            hint = (
                "∇f − normal(y, σ) must be tangent: solve for σ again, factors and signs included"
            )
        else:
            expected = f"together {projection}"
            hint = "derive both from the same constraints: with j = ½(‖y‖² − 1), ∇j = y and σ = ⟨∇f, y⟩"
        session.same(
            guilty,
            "in the row space, least squares",
            n,
            right,
            tolerance,
            expected,
            hint,
            least=least,
            prefix="normal(y, multipliers(y, ∇f)) is",
        )

    def _multipliers(self, gradient: Tensor) -> Tensor:
        """In a shape of the manifold's own."""
        session = self.session
        found = session.call("multipliers", self.y, gradient)
        lead = len(self.batch)
        if (
            not isinstance(found, Tensor)
            or tuple(found.shape[:lead]) != self.batch
            or (found.ndim <= lead)
        ):
            kind = (
                f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            expected = f"a tensor of shape ({', '.join([*map(str, self.batch), '...'])})"
            session.broken("multipliers", "shape", f"it gives {kind}", expected)
        return session.ask("multipliers", self.y, gradient, shape=found.shape)

    def _normal_or_multipliers(self, gradient: Tensor) -> tuple[str, ...]:
        """Which of the two does not fit, by a third that is written by itself; at the first point."""
        session = self.session
        if not session.has_own("normal"):
            return ("multipliers",)
        y, g = self.single(self.y)[0], self.single(gradient)[0]
        truth = Truth(self._constraint, y[None])
        sigma = session.call("multipliers", y, g)
        right = truth.on_rows(g.reshape(1, -1))
        if sigma.numel() > _MOST_MULTIPLIERS:
            return ("multipliers", "normal")
        units = torch.eye(sigma.numel(), dtype=y.dtype).reshape(-1, *sigma.shape)
        columns = session.call("normal", y.expand(len(units), *self.point), units).flatten(1).T
        fitting = torch.linalg.pinv(columns) @ right[0]
        rows = truth.J[0].T
        left = rows - columns @ (torch.linalg.pinv(columns) @ rows)
        if float(left.norm()) > self.rounding(truth.condition**2) ** 0.5 * float(rows.norm()):
            return (
                "normal",
            )  # there are gradients of constraints that it gives for no multipliers
        if not session.has_own("multipliers"):
            return ("normal",)
        z = truth.horizontal(self._flat_vector()[:1])
        fitting = fitting.reshape(sigma.shape)
        for third, of, expected in (
            (
                "constraint_curvature",
                lambda s: truth.off_rows(
                    session.call("constraint_curvature", y, s, z.reshape(self.point)).reshape(1, -1)
                ),
                truth.off_rows(truth.curvature(truth.multipliers(g.reshape(1, -1)), z)),
            ),
            (
                "less_normal",
                lambda s: session.call("less_normal", g, y, s).reshape(1, -1),
                g.reshape(1, -1) - right,
            ),
        ):
            if not session.has_own(third):
                continue
            found = of(sigma)
            if session.calls(third, "normal", "multipliers"):
                continue
            least = 1e-6 * float(z.norm() if third == "constraint_curvature" else g.norm())
            fits = [
                longest(given - expected) <= 1e-6 * longest(expected)
                for given in (found, of(fitting))
            ]
            if longest(expected) > least and fits[0] != fits[1]:
                return ("normal",) if fits[0] else ("multipliers",)
        return ("multipliers", "normal")

    def _by_rows(self, sigma: Tensor, n: Tensor) -> None:
        session = self.session
        if not session.manifold.normal_by_rows:
            return
        r = torch.randn(self.point[:1] or (1,), generator=self.generator, dtype=torch.float64)
        r = r.reshape(-1, *[1] * (len(self.point) - 1))
        found = self.flat(session.ask("normal", r * self.y, sigma, shape=self.shape))
        session.same(
            "normal_by_rows",
            "each row by itself",
            found,
            self.flat(r * self.shaped(n)),
            self.rounding(1),
            "normal(diag(r) y, σ) = diag(r) normal(y, σ), which the attribute says",
            "set normal_by_rows = False",
            least=self.size,
        )

    def _curvature(self) -> None:
        """`constraint_curvature` and `less_normal`, by whichever of `normal` and `multipliers` is right."""
        session, truth = self.session, self.truth
        if session.wrong >= {"multipliers", "normal"}:
            session.waits("less_normal", "multipliers")
            session.waits("constraint_curvature", "multipliers")
            return
        g, z = self._vector(), self._horizontal()
        sigma = self._multipliers(g)
        found = self.flat(
            session.ask("constraint_curvature", self.y, sigma, self.shaped(z), shape=self.shape)
        )
        c = truth.multipliers(self.flat(g))
        least = float(c.norm(dim=1).max()) * float(truth.J.norm()) * longest(z) / self.size
        if "normal" not in session.wrong:
            h = DIFFERENCE * self.size / max(longest(z), self.eps)
            right, apart = derivative(
                lambda t: self.flat(
                    session.ask("normal", self.y + self.shaped(t * z), sigma, shape=self.shape)
                ),
                h,
            )
            tolerance = self._of_differences(apart, max(longest(right), least), self.size, h)
            expected = "the derivative of `normal` along a tangent vector, at the same multipliers"
        else:
            found, right = truth.off_rows(found), truth.off_rows(truth.curvature(c, z))
            tolerance = self.rounding(truth.condition**2)
            expected = "the tangent part of Σᵢ σᵢ ∇²jᵢ z"
        session.same(
            "constraint_curvature",
            "derivative of normal",
            found,
            right,
            tolerance,
            expected,
            "take the factor that `normal` has: with j = ½(‖y‖² − 1), normal = σ y and curvature = σ z",
            least=least,
        )
        n = (
            self.flat(session.ask("normal", self.y, sigma, shape=self.shape))
            if "normal" not in session.wrong
            else truth.on_rows(self.flat(g))
        )
        given = session.ask("less_normal", g, self.y, sigma, shape=self.shape)
        session.same(
            "less_normal",
            "vector less normal",
            self.flat(given),
            self.flat(g) - n,
            self.rounding(truth.condition**2),
            "vector − normal(y, multipliers)",
            "leave it out",
            least=longest(self.flat(g)),
        )
        session.judge(
            "less_normal",
            "a new tensor",
            float(given.data_ptr() == g.data_ptr() and given.numel() > 0),
            0.0,
            "it returns its argument",
            "a new tensor, that a solver may write to",
        )
