"""The metric, and the gradient, Hessian and geodesics in it."""

from __future__ import annotations

import torch
from torch import Tensor

from .manifold_draw import DIFFERENCE, Draw, longest
from .manifold_truth import Truth, derivative, land

#: Directions up to which the metric is looked at along all.
_MOST_DIRECTIONS = 24


class Metric(Draw):
    """The metric, and the gradient, Hessian and geodesics in it."""

    def _metric(self) -> None:
        session = self.session
        for method in ("inner", "gradient"):
            if session.waits(method, "vertical") and method not in session.wrong:
                return
        if not self._free():
            return
        gram = self._gram()
        if gram is None:
            return
        z, w, g = self._horizontal(), self._horizontal(), self._vector()
        found = self.flat(session.ask("gradient", self.y, g, shape=self.shape))
        tolerance = self.rounding(self.spread * self.truth.condition**2)
        tangent = session.same(
            "gradient",
            "tangent",
            found,
            self.truth.horizontal(found),
            tolerance,
            "a tangent vector" + (", horizontal" if self.truth.W.shape[1] else ""),
            least=longest(found),
        )
        if not tangent:
            return
        derivatives = (self.flat(g) * z).sum(1, keepdim=True)
        represented = self._inner(self.y, found, z)[:, None]
        scale = float((self.flat(g).norm(dim=1) * z.norm(dim=1)).max())
        if longest(represented - derivatives) <= tolerance * scale:
            session.judge("gradient", "derivative", 0.0, tolerance, "", "")
            return
        guilty = self._inner_or_gradient(z, w)
        session.same(
            guilty,
            "derivative",
            represented,
            derivatives,
            tolerance,
            "⟨gradient, z⟩ in `inner` = the derivative ∇f·z for tangent z",
            "write `inner`, `gradient` and `hessian` for one metric, or none of them",
            least=scale,
            prefix="inner(y, gradient(y, ∇f), z) is",
        )

    def _gram(self) -> Tensor | None:
        """⟨bᵢ, bⱼ⟩ of orthonormal tangent vectors, (N, k, k); None where `inner` is no inner product."""
        session, basis = self.session, self.truth.basis()[..., :_MOST_DIRECTIONS]
        k = basis.shape[-1]
        vectors = basis.movedim(-1, 0)
        u = vectors[:, None].expand(k, k, *vectors.shape[1:]).reshape(k, k, *self.shape)
        v = vectors[None].expand(k, k, *vectors.shape[1:]).reshape(k, k, *self.shape)
        y = self.y.expand(k, k, *self.shape)
        gram = session.ask("inner", y, u, v, shape=(k, k, *self.batch))
        gram = gram.reshape(k, k, self.count).movedim(-1, 0)
        values = torch.linalg.eigvalsh((gram + gram.mT) / 2)
        least, largest = float(values[:, 0].min()), float(values.abs().max())
        self.spread = float((values[:, -1] / values[:, 0]).max()) if least > 0 else 1.0
        self.embedded = longest((gram - torch.eye(k, dtype=gram.dtype)).flatten(1)) <= 1e-9 * k
        session.judge(
            "inner",
            "symmetric",
            longest((gram - gram.mT).flatten(1)) / max(largest, self.eps),
            self.rounding(self.spread),
            "⟨u, v⟩ and ⟨v, u⟩ differ",
            "a symmetric form",
        )
        session.judge(
            "inner",
            "positive",
            max(-least / max(largest, self.eps), float(least <= 0)),
            0.0,
            f"⟨u, u⟩ goes down to {least:.1e} for tangent u of length 1",
            "a positive form on tangent vectors",
        )
        z, w, u1 = self._horizontal(), self._horizontal(), self._horizontal()
        found = self._inner(self.y, 2 * z - 3 * w, u1)
        right = 2 * self._inner(self.y, z, u1) - 3 * self._inner(self.y, w, u1)
        session.same(
            "inner",
            "bilinear",
            found[:, None],
            right[:, None],
            self.rounding(self.spread),
            "what it gives for each of two vectors, combined",
            least=largest * self.size**2,
        )
        return None if "inner" in session.wrong else gram

    def _inner_or_gradient(self, z: Tensor, w: Tensor) -> tuple[str, ...]:
        """Which of the two does not give the derivative, by `hessian`, if that is written by itself."""
        session = self.session
        if not session.has_own("inner"):
            return ("gradient",)
        if not session.has_own("gradient"):
            return ("inner",)
        found, form, _ = self._at_critical_point(z, w)
        if session.has_own("hessian") and not session.calls("hessian", "gradient", "inner"):
            fits = abs(float(found[0] - form[0])) <= 1e-6 * abs(float(form[0]))
            return ("gradient",) if fits else ("inner",)
        return ("inner", "gradient")

    def _at_critical_point(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, float]:
        """⟨hess z, w⟩ where ∇f is normal, the Lagrangian's second derivative, (N,), and the size of it."""
        truth = self.truth
        n = truth.on_rows(self._flat_vector())
        product, curved = self._product(n, z), truth.curvature(truth.multipliers(n), z)
        given = (self.y, self.shaped(n), self.shaped(product), self.shaped(z))
        hess = self.flat(self.session.ask("hessian", *given, shape=self.shape))
        form = ((product - curved) * w).sum(1)
        size = float(((product.norm(dim=1) + curved.norm(dim=1)) * w.norm(dim=1)).max())
        return self._inner(self.y, hess, w), form, size

    def _hessian(self) -> None:
        session, truth = self.session, self.truth
        if session.waits("hessian", "vertical", "inner", "gradient") or not self._free():
            return
        z, w = self._horizontal(), self._horizontal()
        tolerance = self.rounding(self.spread * truth.condition**2)
        found, form, size = self._at_critical_point(z, w)
        session.same(
            "hessian",
            "at a critical point",
            found[:, None],
            form[:, None],
            tolerance,
            "⟨hess z, w⟩ in `inner` = ⟨∇²f z − Σᵢ σᵢ ∇²jᵢ z, w⟩ where ∇f is normal",
            "subtract constraint_curvature(y, multipliers(y, ∇f), z) from ∇²f z before it is made tangent",
            least=size,
        )
        if "hessian" in session.wrong:
            return
        g = self._flat_vector()
        g = g - (truth.off_rows(g) - truth.horizontal(g))
        products = [self._product(g, x) for x in (z, w)]
        hz, hw = (
            self.flat(
                session.ask(
                    "hessian",
                    self.y,
                    self.shaped(g),
                    self.shaped(p),
                    self.shaped(x),
                    shape=self.shape,
                )
            )
            for p, x in zip(products, (z, w), strict=True)
        )
        least = max(longest(hz), longest(hw))
        session.same(
            "hessian",
            "tangent",
            hz,
            truth.horizontal(hz),
            tolerance,
            "a tangent vector",
            least=least,
        )
        pairs = torch.stack([self._inner(self.y, hz, w), self._inner(self.y, z, hw)])
        most = float(self._inner(self.y, hz, hz).max() * self._inner(self.y, w, w).max()) ** 0.5
        session.same(
            "hessian",
            "self-adjoint",
            pairs[0][:, None],
            pairs[1][:, None],
            tolerance,
            "⟨hess z, w⟩ = ⟨z, hess w⟩ in `inner`",
            least=most,
        )
        if self.embedded:
            curved = truth.curvature(truth.multipliers(g), z)
            session.same(
                "hessian",
                "of the metric",
                hz,
                truth.horizontal(products[0] - curved),
                tolerance,
                "the tangent part of ∇²f z − Σᵢ σᵢ ∇²jᵢ z, in the metric of the embedding space",
                least=least,
            )
        elif not truth.W.shape[1]:
            self._against_metric(g, z, hz, products[0])

    def _against_metric(self, g: Tensor, z: Tensor, hz: Tensor, product: Tensor) -> None:
        """2⟨hess z, z⟩ = the derivative of ⟨z, z⟩ where the flow of the gradient carries z."""
        session, truth = self.session, self.truth
        S = self.S
        inside = self._inside(z)
        h = DIFFERENCE * longest(inside) / longest(z)

        def shifted(points: Tensor, t: float) -> Tensor:
            gradient = g + self.flat(points - self.y) @ S
            V = session.ask("gradient", points, self.shaped(gradient), shape=self.shape)
            return self.shaped(land(self._constraint, self.single(points + t * V)))

        start = session.ask("gradient", self.y, self.shaped(g), shape=self.shape)
        k = DIFFERENCE * longest(inside) / max(longest(self.flat(start)), self.eps)

        def length(t: float) -> Tensor:
            point = shifted(self.y, t)
            ends = [shifted(self.shaped(truth.beside(s * z)), t) for s in (h, -h, h / 2, -h / 2)]
            flat = [self.flat(end) for end in ends]
            moved = (8 * (flat[2] - flat[3]) - (flat[0] - flat[1])) / (6 * h)
            moved = Truth(self._constraint, self.single(point)).off_rows(moved)
            return self._inner(point, moved, moved)

        right, apart = derivative(length, k)
        found = 2 * self._inner(self.y, hz, z)
        size = float((self._inner(self.y, hz, hz) * self._inner(self.y, z, z)).max()) ** 0.5
        noise = self.eps * self.size / (h * longest(z)) * float(length(0.0).max())
        session.same(
            "hessian",
            "of the metric",
            found[:, None],
            right[:, None],
            self._of_differences(apart, max(longest(right[:, None]), size), noise / self.eps, k),
            "2⟨hess z, z⟩ = the derivative of ⟨z, z⟩ where the flow of `gradient` carries z",
            "the Christoffel terms of the metric are off",
            least=size,
        )

    def _exponential(self) -> None:
        session = self.session
        if not callable(getattr(session.manifold, "exponential", None)) or not self._free():
            return
        if session.waits("exponential", "vertical"):
            return
        z = self._horizontal()

        def curve(tangent: Tensor) -> Tensor:
            return session.ask("exponential", self.y, tangent, shape=self.shape)

        self._curve("exponential", curve, z)
        if session.waits("exponential", "inner", "gradient", "hessian"):
            return
        z = self._inside(z) / self.spread**0.5
        right = self._inner(self.y, z, z)[:, None]
        for t in (0.5, 1.0):

            def ahead(s: float, t: float = t) -> Tensor:
                return self.flat(curve(self.shaped((t + s) * z)))

            point = self.shaped(ahead(0.0))
            velocity, apart = derivative(ahead, 0.05)
            there = Truth(self._constraint, self.single(point), self._vertical_at(point))
            found = self._inner(point, there.horizontal(velocity), there.horizontal(velocity))
            session.same(
                "exponential",
                "constant speed",
                found[:, None],
                right,
                self._of_differences(
                    self.spread * apart, longest(z), self.size * self.spread, 0.05
                ),
                "⟨γ', γ'⟩ the same all along the curve, in `inner`",
                "a geodesic of the metric that `inner` gives",
            )
        if self.truth.W.shape[1]:
            return  # a function that does not tell the points of a class apart would be needed
        g, S = self._flat_vector(), self._symmetric()

        def along(t: float) -> Tensor:
            moved = self.flat(curve(self.shaped(t * z)) - self.y)
            return ((g * moved).sum(1) + (moved @ S * moved).sum(1) / 2)[:, None]

        second, apart = derivative(along, 0.1, order=2)
        given = (self.y, self.shaped(g), self.shaped(z @ S), self.shaped(z))
        hess = self.flat(session.ask("hessian", *given, shape=self.shape))
        size = float((g.norm(dim=1) * z.norm(dim=1) ** 2).max()) / self.size + longest(second)
        session.same(
            "exponential",
            "geodesic",
            second,
            self._inner(self.y, hess, z)[:, None],
            self._of_differences(apart, size, float(g.norm() * self.size), 0.1**2),
            "the second derivative of f along it, at its start, = ⟨hess z, z⟩",
            "a curve without acceleration in the metric that `inner` gives",
            least=size,
        )

    def _symmetric(self) -> Tensor:
        S = torch.randn(self.m, self.m, generator=self.generator, dtype=torch.float64)
        return (S + S.T) / (2 * self.m**0.5)

    def _product(self, gradient: Tensor, z: Tensor) -> Tensor:
        """∇²f z of a function with that gradient: S z, less what a quotient does not leave free."""
        if not hasattr(self, "S"):
            self.S = self._symmetric()
        product, W = z @ self.S, self.truth.W
        if not W.shape[1]:
            return product
        along = self._along_vertical(gradient, z)
        missing = -along - (W @ product.unsqueeze(-1)).squeeze(-1)
        return product + (torch.linalg.pinv(W) @ missing.unsqueeze(-1)).squeeze(-1)

    def _along_vertical(self, gradient: Tensor, z: Tensor) -> Tensor:
        """⟨∇f, Dw[z]⟩ for each vertical direction w, (N, q)."""
        with torch.enable_grad():
            y = self.y.detach().requires_grad_()
            W = self._rows_of(self.session.call("vertical", y))
            if not W.requires_grad:  # the same everywhere
                return torch.zeros(W.shape[:2], dtype=z.dtype)
            paired = (W * gradient[:, None]).sum((0, 2))
            slopes = [torch.autograd.grad(each, y, retain_graph=True)[0] for each in paired]
        return torch.stack([(self.flat(slope) * z).sum(1) for slope in slopes], dim=1)

    def _inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        given = (y, self.shaped(u), self.shaped(v))
        return self.session.ask("inner", *given, shape=self.batch).reshape(self.count)
