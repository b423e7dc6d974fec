"""One drawn node: a problem whose solution and gradient are known, and at most one thing wrong with it.

The problem is made from its solution. In units z = s·y the objective is
    w [ k B(z, a) + bᵀz + p Σⱼ φ(aⱼ(z, o)) ]      subject to h(z) = r,
with B strictly convex and separable up to a quadratic, φ convex with one kink at 0 and aⱼ affine. Take any z,
any slopes tⱼ of φ at aⱼ(z) and any ν: with
    b = −∇B − p Σⱼ tⱼ ∇aⱼ + ν ∇h
z is the solution, and the only one. While each tⱼ of a kink at 0 is strictly inside of its range, z solves
the problem with aⱼ = 0 as a constraint, whose derivative is that of a linear system: in 40 digits.

    python tests/fuzz/fuzz_nodes.py 17        # the node of seed 17, and what became of it
"""

from __future__ import annotations

import dataclasses
import random
import sys
import types
import warnings

import mpmath
import numpy as np
import torch
from torch import nn

from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.errors import DdnkitError, DdnkitWarning

F = torch.nn.functional
mp = mpmath.mp.clone()
mp.dps = 40

#: Kinds without a fault: alarms are false.
SOUND = ("smooth", "ill-conditioned", "kink", "constrained", "units", "harmless", "own adjoint")
#: Kinds that have no right gradient, or where a wrong one is asked for.
FAULTY = (
    "state", "random", "hidden", "in place", "wrong solve", "wrong at a kink", "leaving a kink",
    "far start", "saddle", "wrong adjoint", "units within", "offset", "valley",
)  # fmt: skip
KINDS = (*SOUND, *FAULTY)

WRONG = 1e-2
#: A gradient that is right; in float32 that of the goal for entropic transport.
RIGHT = {torch.float64: 1e-6, torch.float32: 1e-4}
#: What cancels to less than this of its terms, as an exact zero does, is held against that.
CANCELLED = {torch.float64: 1e-6, torch.float32: 3e-4}


# -- the grammar: terms of B, each with its derivatives -------------------------------------------


class Quadratic:
    """½ (z − a)ᵀ Q (z − a)."""

    positive = False

    def __init__(self, draw, n, condition, dtype):
        U = np.linalg.qr(draw.normal(n, n))[0]
        sizes = condition ** -np.linspace(0, 1, n)
        Q = (U * sizes) @ U.T
        self.Q = torch.tensor((Q + Q.T) / 2, dtype=dtype)

    def value(self, z, a):
        return (z - a) @ (self.Q @ (z - a)) / 2

    def derivatives(self, z, a):
        Q = exact(self.Q)
        return Q * (z - a), Q, -Q

    def weakest(self):
        return torch.linalg.eigh(self.Q.double())[1][:, 0]


class Separable:
    """Σ φ(zᵢ, aᵢ)."""

    def derivatives(self, z, a):
        found = [self.each(z[i], a[i]) for i in range(len(z))]
        g, h, c = (list(x) for x in zip(*found, strict=True))
        return mp.matrix(g), mp.diag(h), mp.diag(c)


class Entropy(Separable):
    """Σ z log(z/a) − z."""

    positive = True

    def value(self, z, a):
        return (z * (z / a).log() - z).sum()

    def each(self, z, a):
        return mp.log(z / a), 1 / z, -1 / a


class Barrier(Separable):
    """Σ −log z + ½ (z − a)²."""

    positive = True

    def value(self, z, a):
        return -z.log().sum() + (z - a).square().sum() / 2

    def each(self, z, a):
        return -1 / z + z - a, 1 / z**2 + 1, mp.mpf(-1)


class PseudoHuber(Separable):
    """Σ √(1 + (z − a)²)."""

    positive = False

    def value(self, z, a):
        return (1 + (z - a).square()).sqrt().sum()

    def each(self, z, a):
        u = z - a
        q = 1 + u**2
        return u / mp.sqrt(q), q ** mp.mpf(-1.5), -(q ** mp.mpf(-1.5))


class SoftPlus(Separable):
    """Σ log(1 + e^(z − a)) + ½ z²/4."""

    positive = False

    def value(self, z, a):
        return F.softplus(z - a).sum() + z.square().sum() / 8

    def each(self, z, a):
        q = 1 / (1 + mp.exp(a - z))
        h = q * (1 - q)
        return q + z / 4, h + mp.mpf(1) / 4, -h


class Wells(Separable):
    """Σ ((z − a)² − 1)²/4: minima at a ± 1, a maximum at a."""

    positive = False

    def value(self, z, a):
        return ((z - a).square() - 1).square().sum() / 4

    def each(self, z, a):
        u = z - a
        return u * (u**2 - 1), 3 * u**2 - 1, 1 - 3 * u**2


#: φ as it may be written, with its slopes left and right of 0.
RULED = {
    "abs": (lambda a: a.abs().sum(), -1, 1),
    "__abs__": (lambda a: abs(a).sum(), -1, 1),
    "mean": (lambda a: a.abs().mean() * a.numel(), -1, 1),
    "relu": (lambda a: torch.relu(a).sum(), 0, 1),
    "F.relu": (lambda a: F.relu(a).sum(), 0, 1),
    "clamp": (lambda a: a.clamp(min=0).sum(), 0, 1),
    "leaky_relu": (lambda a: F.leaky_relu(a, 0.1).sum(), 0.1, 1),
    "maximum": (lambda a: torch.maximum(a, -2 * a).sum(), -2, 1),
    "minimum": (lambda a: -torch.minimum(-a, 2 * a).sum(), -2, 1),
    "l1_loss": (lambda a: F.l1_loss(a, torch.zeros_like(a), reduction="sum"), -1, 1),
    "norm": (lambda a: torch.linalg.vector_norm(a, 1), -1, 1),
    "abs and relu": (lambda a: (a.abs() + torch.relu(a)).sum(), -1, 2),
    "of each": (lambda a: sum(a[i].abs() for i in range(len(a))), -1, 1),
    "hinge": (lambda a: (a + 3 * torch.relu(-a)).sum(), -2, 1),
    "stacked": (lambda a: torch.stack([a, -a]).amax(dim=0).sum(), -1, 1),
}
#: Those that ddnkit has no rule for: where they are active, that is to be told.
UNRULED = {
    "where": (lambda a: torch.where(a > 0, a, -a).sum(), -1, 1),
    "sign": (lambda a: (a * a.sign()).sum(), -1, 1),
    "branch": (lambda a: sum(x if x > 0 else -x for x in a), -1, 1),
    "mask": (lambda a: ((a > 0) * a).sum() - ((a < 0) * a).sum(), -1, 1),
    "root of a square": (lambda a: a.square().sqrt().sum(), -1, 1),
}


class Kinks:
    """p Σ φ(aⱼ): a = z − o, differences of neighbours − o, or one row gᵀz − o."""

    def __init__(self, draw, n, form):
        self.form = form
        self.phi, self.left, self.right = {**RULED, **UNRULED}[form]
        self.of = draw.choice(["entries", "neighbours", "row"])
        if self.of == "row" and form in UNRULED:
            # The rounding of a sum puts it beside its kink, where nothing that has no rule shows one.
            self.of = "entries"
        rows = np.eye(n)
        if self.of == "neighbours":
            rows = rows[1:] - rows[:-1]
        elif self.of == "row":
            rows = draw.normal(1, n)
        self.rows = rows

    def value(self, z, o):
        if self.of == "entries":
            return self.phi(z - o)
        if self.of == "neighbours":
            return self.phi(z[1:] - z[:-1] - o)
        return self.phi((torch.tensor(self.rows, dtype=z.dtype, device=z.device) @ z) - o)


class Largest:
    """p max zᵢ, or of |zᵢ|, whose tied entries are the kink."""

    def __init__(self, draw, absolute):
        self.absolute = absolute
        self.form = draw.choice(["max", "amax", "max of dim"])

    def value(self, z, o):
        z = z.abs() if self.absolute else z
        if self.form == "max":
            return z.max()
        return z.amax() if self.form == "amax" else z.max(dim=0).values


# -- a node ---------------------------------------------------------------------------------------


class Node(DeclarativeNode):
    """The drawn problem; `read` and `weight` are where faults come in."""

    def __init__(self, terms, kinks, surface, names, unit, w):
        self.terms, self.kinks, self.surface, self.names = terms, kinks, surface, names
        self.unit, self.w = unit, w
        self.input_dims = tuple(DIMS[name] for name in names)
        self.fault = lambda name, x: x
        self.weight = lambda: 1.0
        self.of_y = lambda y: y
        self.factor = lambda x: 1.0
        self.answer = None

    def _read(self, xs):
        x = dict(zip(self.names, xs, strict=True))
        return types.SimpleNamespace(**{name: self.fault(name, value) for name, value in x.items()})

    def _unit(self, x):
        return x.unit if "unit" in self.names else self.unit

    def objective(self, *xs, y):
        x = self._read(xs)
        unit = self._unit(x)
        z, a = unit * self.of_y(y), unit * x.a
        total = self.weight() * sum(term.value(z, a) for term in self.terms) + x.b @ z
        if self.kinks is not None:
            o = None if isinstance(self.kinks, Largest) else _first(unit, x.o) * x.o
            total = total + x.p * self.kinks.value(z, o)
        return self.w * self.factor(x) * total


class Constrained(Node):
    """The same on a plane or a sphere."""

    def equality_constraints(self, *xs, y):
        x = dict(zip(self.names, xs, strict=True))
        z, r = x.get("unit", self.unit) * y, self.fault("r", x["r"])
        if self.surface == "sphere":
            return z.square().sum() / 2 - r
        return torch.tensor(self.normal, dtype=z.dtype) @ z - r


#: Dimensions of an input of one problem.
DIMS = {"a": 1, "b": 1, "p": 0, "o": 1, "r": 0, "unit": 1}


def _first(unit, like):
    """The unit of o, which may be shorter than y."""
    if isinstance(unit, float) or len(unit) == len(like):
        return unit
    return unit[: len(like)]


def exact(x):
    """The entries of a tensor in 40 digits."""
    x = x.detach().double()
    if x.ndim == 0:
        return mp.mpf(float(x))
    return mp.matrix(x.tolist())


class Draw(random.Random):
    """A source of random things."""

    def normal(self, *shape):
        values = [self.gauss(0, 1) for _ in range(int(np.prod(shape)))]
        return np.array(values).reshape(shape)

    def size(self, low, high):
        return 10.0 ** self.uniform(low, high)


@dataclasses.dataclass
class Outcome:
    """What became of a drawn node.

    Attributes:
        told: "" if nothing was said; else "refused", "warned", "doubted" or "crashed".
        error: of the worst input's gradient, relative; infinite where there is no gradient to be had.
        beyond: by how much error exceeds the certificate's bound, if it has one; else 0.
    """

    seed: int
    kind: str
    node: str
    told: str
    text: str
    error: float
    beyond: float
    dtype: torch.dtype

    @property
    def sound(self):
        """Whether nothing was wrong with the node."""
        return self.kind in SOUND or self.node.endswith("[sound]")

    @property
    def silent_and_wrong(self):
        """What must not be."""
        return self.told == "crashed" or (not self.told and not self.error <= WRONG)

    @property
    def false_alarm(self):
        """Told of a sound node whose gradient is right, or that is refused and has one."""
        if not self.sound or not self.told:
            return False
        return self.told == "refused" or self.error <= RIGHT[self.dtype]

    def __str__(self):
        what = self.told or "trusted"
        return f"seed {self.seed}: {self.node}: {what}, error {self.error:.1e} {self.text[:160]}"


class Drawn:
    """The node of one seed, with its inputs and its gradient."""

    def __init__(self, seed):
        self.seed = seed
        self.kind = KINDS[seed % len(KINDS)]
        self.draw = draw = Draw(seed)
        self.texts = []
        kind = self.kind
        self.dtype = torch.float32 if draw.random() < 0.25 else torch.float64
        self.n = draw.randint(2, 5)
        self.B = draw.choice([1, 1, 2, 3])
        self.certify = "full" if draw.random() < 0.2 else "fast"
        self.form = draw.choice(["auto", "auto", "auto", "dense", "krylov", "embedded_field"])
        if kind in ("own adjoint", "wrong adjoint"):
            self.form = draw.choice(["auto", "closed_form"])
        high = 2 if self.dtype is torch.float32 else 3
        self.condition = draw.size(0, high)
        if kind == "ill-conditioned" or kind == "valley":
            self.dtype = torch.float64 if kind == "valley" else self.dtype
            self.condition = draw.size(4, 10 if self.dtype is torch.float64 else 4)
        self.right_gradient = True
        self.solver = "given"
        self.solution = None
        self._terms()
        self._kinks()
        self._surface()
        self._units()
        self._point()
        self._data()
        self.node.answer = self.y
        self.after = lambda: None
        self._faults()
        if self.solver == "newton":
            self._by_newton()
        else:
            self._given()

    # -- parts ------------------------------------------------------------------------------------

    def _terms(self):
        draw, n = self.draw, self.n
        if self.kind == "saddle":
            self.terms = [Wells()]
            return
        choice = draw.choice([Quadratic, Entropy, Barrier, PseudoHuber, SoftPlus])
        if self.kind == "valley":
            choice = draw.choice([Entropy, Barrier, PseudoHuber])
        terms = [choice]
        if draw.random() < 0.3:
            terms.append(draw.choice([Quadratic, PseudoHuber, SoftPlus]))
        if self.kind in ("ill-conditioned", "valley"):
            terms = terms[:1]
        self.terms = [
            t(draw, n, self.condition, self.dtype) if t is Quadratic else t() for t in terms
        ]
        self.texts.append("+".join(type(t).__name__ for t in self.terms))

    def _kinks(self):
        draw, kind = self.draw, self.kind
        self.kinks = None
        often = {
            "smooth": 0.0, "ill-conditioned": 0.0, "constrained": 0.3, "units": 0.4, "saddle": 0.0,
            "own adjoint": 0.0, "wrong adjoint": 0.0, "valley": 0.0, "far start": 0.0,
            "harmless": 0.0, "kink": 1.0, "wrong at a kink": 1.0, "leaving a kink": 1.0,
        }.get(kind, 0.3)  # fmt: skip
        if draw.random() >= often:
            return
        pick = draw.random()
        if pick < 0.2:
            self.kinks = Largest(draw, absolute=draw.random() < 0.4)
        else:
            unruled = pick > 0.9 and kind != "wrong solve"
            self.kinks = Kinks(draw, self.n, draw.choice(sorted(UNRULED if unruled else RULED)))
        of = getattr(self.kinks, "of", "absolute" if getattr(self.kinks, "absolute", 0) else "")
        self.texts.append(f"{type(self.kinks).__name__} {self.kinks.form} {of}")

    def _surface(self):
        draw = self.draw
        often = {"constrained": 1.0, "own adjoint": 0.0, "wrong adjoint": 0.0, "saddle": 0.0}
        self.surface = None
        if draw.random() < often.get(self.kind, 0.15):
            self.surface = draw.choice(["plane", "sphere"])
            self.texts.append(self.surface)

    def _units(self):
        draw = self.draw
        self.unit_log, self.w = [0.0] * self.B, 1.0
        reach = 5 if self.dtype is torch.float32 else 12
        if self.kind == "units":
            rows = draw.random() < 0.5
            logs = [draw.uniform(-reach, reach) for _ in range(self.B)]
            self.unit_log = logs if rows else logs[:1] * self.B
            self.w = draw.size(-reach, reach)
        self.unit = 10.0 ** np.array(self.unit_log)[:, None] * np.ones((self.B, self.n))
        if self.kind == "units within":
            spread = draw.uniform(1, reach) / 2
            self.unit = 10.0 ** np.array([[draw.uniform(-spread, spread) for _ in range(self.n)]])
            self.unit = self.unit * np.ones((self.B, 1))
            if self.kinks is not None and getattr(self.kinks, "of", "") == "neighbours":
                self.kinks = None
        if self.kinks is not None and getattr(self.kinks, "of", "") == "row":
            self.unit[:] = self.unit[:, :1]
        self.per_item = bool((self.unit != self.unit[0, 0]).any())
        if self.w != 1 or bool((self.unit != 1).any()):
            self.texts.append(f"units {self.unit.min():.0e}..{self.unit.max():.0e} w {self.w:.0e}")

    def _point(self):
        """z, a, p and o, with which kinks are active and at which slopes."""
        draw, n, B = self.draw, self.n, self.B
        positive = any(t.positive for t in self.terms)
        spread = min(np.log10(self.condition), 10.0)
        if any(isinstance(t, Barrier) for t in self.terms):
            spread /= 2
        z = draw.normal(B, n) * 2
        a = draw.normal(B, n)
        if positive:
            z = 10.0 ** np.array([[draw.uniform(-spread, 0) for _ in range(n)] for _ in range(B)])
            if self.kind in ("ill-conditioned", "valley"):
                z[:, 0], z[:, -1] = 10.0**-spread, 1.0
            a = np.exp(draw.normal(B, n))
        elif self.kind == "ill-conditioned" and isinstance(self.terms[0], PseudoHuber):
            # Curvatures (1 + u²)^(-3/2).
            u = self.condition ** (np.linspace(0, 1, n) / 3)
            z = a + u * np.sign(draw.normal(B, n))
        elif self.kind == "valley":
            u = min(self.condition, 1e8) ** (np.linspace(0, 1, n) / 3)
            z = a + u * np.sign(draw.normal(B, n))
        if self.kind == "saddle":
            signs = np.sign(draw.normal(B, n))
            self.at_maximum = draw.random() < 0.7
            if self.at_maximum:
                signs[:, : draw.randint(1, n)] = 0
            self.right_gradient = not self.at_maximum
            z = a + signs
            self.texts.append("" if self.at_maximum else "minimum")
        if self.kind == "offset":
            far = draw.size(2, 8 if self.dtype is torch.float64 else 3)
            if not positive:
                z, a = z + far, a + far
                self.texts.append(f"offset {far:.0e}")
        if self.kind == "state" and draw.random() < 0.3:
            a = z.copy()  # where values do not tell
        self.z, self.a = z, a
        self.p = np.array([draw.size(-1, 1) for _ in range(B)])
        self.active, self.slopes, self.tied, self.o = [], [], [], None
        if isinstance(self.kinks, Largest):
            self._ties()
        elif self.kinks is not None:
            self._active()

    def _ties(self):
        draw = self.draw
        fault = self.kind in ("wrong at a kink", "leaving a kink")
        most = self.n if self.surface is None else self.n - 1
        count = max(draw.randint(1, most), 2 if fault else 1)
        self.right_gradient = not fault
        positive = any(t.positive for t in self.terms)
        for k in range(self.B):
            tied = sorted(draw.sample(range(self.n), count))
            z = self.z[k]
            size = np.abs(z).max() + 0.1
            others = [i for i in range(self.n) if i not in tied]
            signs = np.ones(self.n)
            if self.kinks.absolute and not positive:
                signs = np.where(draw.normal(self.n) > 0, 1.0, -1.0)
                z[others] = np.clip(z[others], -size + 0.1, size - 0.1)
            z[tied] = size * signs[tied]
            t = np.zeros(self.n)
            shares = np.array([draw.uniform(0.2, 1) for _ in tied])
            if self.kind == "leaving a kink":
                shares[0] = 0
            if self.kind == "wrong at a kink":
                shares[0] = -shares[1:].sum() * draw.uniform(0.1, 0.9)
            t[tied] = shares / shares.sum() * signs[tied]
            rows = [np.eye(self.n)[i] * signs[i] for i in tied]
            self.active.append([rows[i] - rows[0] for i in range(1, len(rows))])
            self.slopes.append(t)
            self.tied.append(tied)

    def _active(self):
        """Which of the kinks are at 0, and the rest away from it; o makes it so."""
        draw, kinks = self.draw, self.kinks
        rows, count = kinks.rows, len(kinks.rows)
        free = self.n - 1 - (self.surface is not None)
        self.o = np.zeros((self.B, count))
        self.chosen = []
        for k in range(self.B):
            least = 1 if self.kind in ("wrong at a kink", "leaving a kink") else 0
            some = draw.randint(least, max(least, min(count, free)))
            chosen = sorted(draw.sample(range(count), some))
            away = np.array([draw.size(-2, 0.3) * draw.choice([-1, 1]) for _ in range(count)])
            away[chosen] = 0
            if kinks.of == "neighbours":
                self.o[k] = np.diff(self.z[k]) - away
            else:
                self.o[k] = rows @ self.z[k] - away
            low, high = kinks.left, kinks.right
            t = np.where(away > 0, high, low).astype(float)
            for j in chosen:
                t[j] = low + (high - low) * draw.uniform(0.1, 0.9)
            if self.kind == "leaving a kink":
                t[chosen[0]] = draw.choice([low, high])
                self.right_gradient = False
            if self.kind == "wrong at a kink":
                beyond = draw.size(-1, 2) * (high - low)
                t[chosen[0]] = draw.choice([low - beyond, high + beyond])
                self.right_gradient = False
            self.slopes.append(t)
            self.chosen.append(chosen)

    def _data(self):
        """Tensors, b by the equation, and J of each input in 40 digits."""
        n, B, dtype = self.n, self.B, self.dtype
        unit = torch.tensor(self.unit, dtype=dtype)
        y = torch.tensor(self.z / self.unit, dtype=dtype)
        x = {"a": torch.tensor(self.a / self.unit, dtype=dtype)}
        p = torch.tensor(self.p, dtype=dtype)
        if self.o is not None:
            count = self.o.shape[1]
            x["o"] = torch.tensor(self.o / self.unit[:, :count], dtype=dtype)
            for k, chosen in enumerate(self.chosen):
                for j in chosen:  # exactly at the kink
                    if self.kinks.of == "entries":
                        x["o"][k, j] = y[k, j]
                    elif self.kinks.of == "neighbours":
                        x["o"][k, j] = y[k, j + 1] - y[k, j]
        if isinstance(self.kinks, Largest):
            for k, tied in enumerate(self.tied):  # exactly alike
                y[k, tied] = y[k, tied[0]].abs() * y[k, tied].sign()
        b = torch.zeros(B, n, dtype=dtype)
        r = torch.zeros(B, dtype=dtype)
        normal = self.draw.normal(n)
        self.jacobians = []
        for k in range(B):
            s = exact(unit[k])
            z = _times(s, exact(y[k]))
            a = _times(s, exact(x["a"][k]))
            g, H, cross = mp.zeros(n, 1), mp.zeros(n, n), mp.zeros(n, n)
            for term in self.terms:
                of_z, of_zz, of_za = term.derivatives(z, a)
                g, H, cross = g + of_z, H + of_zz, cross + of_za
            pull, C, owners = mp.zeros(n, 1), [], []
            if isinstance(self.kinks, Largest):
                pull = mp.matrix(self.slopes[k].tolist())
                C = [mp.matrix(row.tolist()) for row in self.active[k]]
                owners = [None] * len(C)
            elif self.kinks is not None:
                rows = mp.matrix(torch.tensor(self.kinks.rows, dtype=dtype).double().tolist())
                pull = rows.T * mp.matrix(self.slopes[k].tolist())
                C = [rows[j, :].T for j in self.chosen[k]]
                owners = [("o", j) for j in self.chosen[k]]
            if self.surface is not None:
                # On a sphere ν < 0 makes the Lagrangian convex.
                nu = mp.mpf(-self.draw.size(-1, 0.5))
                row = z if self.surface == "sphere" else exact(torch.tensor(normal, dtype=dtype))
                g_h = row
                if self.surface == "sphere":
                    H = H - nu * mp.eye(n)
                    r[k] = float((z.T * z)[0] / 2)
                else:
                    r[k] = float((row.T * z)[0])
                C, owners = [*C, row], [*owners, ("r", 0)]
            weight = exact(p[k])
            rhs = -(g + weight * pull)
            if self.surface is not None:
                rhs = rhs + nu * g_h
            b[k] = torch.tensor([float(rhs[i]) for i in range(n)], dtype=torch.float64).to(dtype)
            self.jacobians.append(self._jacobian(k, s, H, cross, pull, C, owners))
        x["b"] = b
        if self.kinks is not None:
            x["p"] = p
        if self.surface is not None:
            x["r"] = r
        names = [name for name in DIMS if name in x]
        self.wanted = list(names)
        if self.per_item:
            x["unit"] = unit
            names.append("unit")
        cls = Node if self.surface is None else Constrained
        self.node = cls(self.terms, self.kinks, self.surface, names, float(unit[0, 0]), self.w)
        self.node.normal = normal
        self.x, self.y = x, y

    def _jacobian(self, k, s, H, cross, pull, C, owners):
        """dy/dθ by [H Cᵀ; C 0], in y's units."""
        n, m = self.n, len(C)
        K = mp.zeros(n + m, n + m)
        K[:n, :n] = H
        for j, row in enumerate(C):
            for i in range(n):
                K[n + j, i] = K[i, n + j] = row[i]
        try:
            inverse = mp.inverse(K)
        except ZeroDivisionError:
            raise DependentError from None
        Z, N = inverse[:n, :n], inverse[:n, n:] if m else None
        found = {"a": -Z * cross, "b": -Z}
        # What the sums cancel from.
        sizes = {"a": _absolute(Z) * _absolute(cross), "b": Z}
        if self.kinks is not None:
            found["p"], sizes["p"] = -Z * pull, _absolute(Z) * _absolute(pull)
        if self.o is not None:
            found["o"] = mp.zeros(n, self.o.shape[1])
            sizes["o"] = mp.zeros(n, self.o.shape[1])
        if self.o is not None and self.kinks.form == "root of a square":
            # √(a²) has the curvature 1/|a| − a²/|a|³ beside its kink: what an exact zero cancels from.
            rows, z = self.kinks.rows, self.z[k]
            beside = np.abs(rows @ z - self.o[k])
            for j in range(len(rows)):
                if j not in self.chosen[k]:
                    row = mp.matrix((self.p[k] / beside[j] * np.abs(rows[j])).tolist())
                    sizes["o"][:, j] = _absolute(Z) * row
        for j, owner in enumerate(owners):
            if owner is None:
                continue
            name, place = owner
            if name == "r":
                found["r"] = N[:, j]
            else:
                for i in range(n):
                    found["o"][i, place] = sizes["o"][i, place] = N[i, j]
        own = np.array([float(v) for v in s])

        def in_units(name, J):
            J = np.array(J.tolist(), dtype=float).reshape(n, -1) / own[:, None]
            return J * own[None, : J.shape[1]] if name in ("a", "o") else J

        return {
            name: (in_units(name, J), np.abs(in_units(name, sizes.get(name, J))))
            for name, J in found.items()
        }

    # -- how it is solved -------------------------------------------------------------------------

    def _given(self):
        cls, returned, prepare = type(self.node), self.y, getattr(self, "prepare", None)
        if self.solution is not None:
            returned = self.solution

        def solve(node, *xs):
            if prepare is not None:
                prepare(xs)
            return returned.clone()

        self._subclass(cls, solve=solve, batched_solve=True)

    def _by_newton(self):
        start = self.start

        def initial_point(node, *xs):
            return start.clone()

        self._subclass(type(self.node), initial_point=initial_point, solver="newton")

    def _subclass(self, cls, **members):
        self.node.__class__ = type("DrawnNode", (cls,), members)

    # -- faults -----------------------------------------------------------------------------------

    def _faults(self):
        getattr(self, "_" + self.kind.replace(" ", "_").replace("-", "_"), lambda: None)()

    def _smooth(self):
        if self.draw.random() < 0.4:
            self._near_start()

    _ill_conditioned = _smooth

    def _near_start(self):
        self.solver = "newton"
        self.start = self.y.mean(dim=0) * (1 + 0.1 * self.draw.random())

    def _far_start(self):
        draw = self.draw
        self.solver = "newton"
        far = draw.size(0, 3)
        if any(t.positive for t in self.terms):
            self.start = self.y[0] * torch.tensor(
                [far ** draw.choice([-1, 1]) for _ in range(self.n)], dtype=self.dtype
            )
        else:
            self.start = self.y[0] + far * torch.tensor(draw.normal(self.n), dtype=self.dtype)
        self.texts.append(f"start {far:.0e} away")

    def _harmless(self):
        what = self.draw.choice(
            [
                "detached scale",
                "item scale",
                "copy in place",
                "no dropout",
                "put back",
                "numpy scale",
            ]
        )
        node = self.node
        if what == "detached scale":
            node.factor = lambda x: 1 / (1 + x.b.detach().square().sum())
        elif what == "item scale":
            node.factor = lambda x: 1 / (1 + float(x.b.abs().max()))
        elif what == "numpy scale":
            node.factor = lambda x: 1 / (1 + float(np.abs(x.b.detach().numpy()).max()))
        elif what == "copy in place":
            node.fault = lambda name, x: x.clone().mul_(2).div_(2)
        elif what == "no dropout":
            node.of_y = lambda y: F.dropout(y, 0.5, training=False)
        else:
            node.k = 1.0
            node.weight = lambda: node.k

            def after():
                node.k = 7.0
                node.k = 1.0

            self.after = after
        self.texts.append(what)

    def _state(self):
        draw, node, dtype = self.draw, self.node, self.dtype
        new = draw.choice([0.1, 1.1, 3.0, 30.0])
        how = draw.choice(
            ["number", "tensor rebound", "tensor in place", "list", "dict", "buffer in place",
             "buffer rebound", "parameter data", "global", "closure", "array in place", "object",
             "data of a term", "flag", "class attribute"]
        )  # fmt: skip
        self.texts.append(f"{how} -> {new}")
        one = torch.ones((), dtype=dtype)
        if how == "number":
            node.k = 1.0
            node.weight = lambda: node.k
            self.after = lambda: setattr(node, "k", new)
            # A function on the node sees the node itself, not a copy of it: as a method does not.
            self._through_self("k")
        elif how in ("tensor rebound", "tensor in place"):
            node.k = one
            self._through_self("k")
            if how == "tensor rebound":
                self.after = lambda: setattr(node, "k", one * new)
            else:
                self.after = lambda: one.mul_(new)
        elif how in ("list", "dict"):
            node.k = [1.0] if how == "list" else {0: 1.0}
            self._through_self("k", 0)
            self.after = lambda: node.k.__setitem__(0, new)
        elif how.startswith("buffer"):
            node.k = nn.Module()
            node.k.register_buffer("scale", one)
            self._through_self("k", "scale")
            if how == "buffer in place":
                self.after = lambda: node.k.scale.mul_(new)
            else:
                self.after = lambda: setattr(node.k, "scale", one * new)
        elif how == "parameter data":
            node.k = nn.Parameter(one)
            self._through_self("k")
            self.after = lambda: node.k.data.mul_(new)
        elif how in ("global", "closure"):
            kept = {"k": 1.0}
            if how == "global":
                kept = globals()
                kept["k"] = 1.0
            node.weight = lambda: kept["k"]
            self.after = lambda: kept.__setitem__("k", new)
        elif how == "array in place":
            node.k = np.ones(1)
            self._through_self("k", 0)
            self.after = lambda: node.k.__setitem__(0, new)
        elif how == "object":
            node.k = types.SimpleNamespace(scale=1.0)
            self._through_self("k", "scale")
            self.after = lambda: setattr(node.k, "scale", new)
        elif how == "flag":
            node.k = True
            node.weight_of = lambda self: 1.0 if self.k else new
            self.after = lambda: setattr(node, "k", False)
        elif how == "class attribute":
            self._subclass(type(node), k=1.0)
            self._through_self("k")
            cls = type(node)
            self.after = lambda: setattr(cls, "k", new)
        else:
            term = self.terms[0]
            if isinstance(term, Quadratic):
                self.after = lambda: term.Q.mul_(new)
            else:
                node.k = [[1.0]]
                self._through_self("k", 0, 0)
                self.after = lambda: node.k[0].__setitem__(0, new)

    def _through_self(self, *path):
        def weight_of(node):
            value = node
            for step in path:
                value = value[step] if isinstance(step, int) else getattr(value, step)
            return value

        self.node.weight_of = weight_of

    def _random(self):
        draw, node = self.draw, self.node
        how = draw.choice(
            ["randn", "rand_like", "dropout", "normal_", "numpy", "python", "bernoulli", "randperm",
             "module"]
        )  # fmt: skip
        size = draw.size(-1, 0)
        self.texts.append(how)
        self.right_gradient = False
        if how == "randn":
            node.weight = lambda: 1 + size * torch.randn(()).abs()
        elif how == "normal_":
            node.weight = lambda: 1 + size * torch.empty(()).normal_().abs()
        elif how == "numpy":
            node.weight = lambda: 1 + size * np.random.rand()
        elif how == "python":
            node.weight = lambda: 1 + size * random.random()
        elif how == "rand_like":
            node.of_y = lambda y: y * (1 + size * torch.rand_like(y))
        elif how == "bernoulli":
            node.of_y = lambda y: y * (1 + size * torch.bernoulli(torch.full_like(y, 0.5)))
        elif how == "dropout":
            node.of_y = lambda y: F.dropout(y, 0.5) + 0.1 * y
        elif how == "randperm":
            node.of_y = lambda y: y[torch.randperm(len(y))]
        else:
            node.module = nn.Dropout(0.5)
            node.of_y = lambda y: node.module(y) + 0.1 * y

    def _hidden(self):
        draw, node = self.draw, self.node
        name = draw.choice(self.wanted)
        ways = {
            "detach": lambda x: x.detach(),
            "data": lambda x: x.data,
            "numpy": lambda x: torch.from_numpy(x.detach().numpy().copy()),
            "tolist": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
            "no_grad": _without_grad,
            "new tensor": lambda x: torch.tensor(x.detach().numpy()),
            "halves": lambda x: (x + x.detach()) / 2,
            "set_grad_enabled": _switched,
            "float": lambda x: float(x) if x.ndim == 0 else torch.stack([x[0].detach(), *x[1:]]),
        }
        how = draw.choice(sorted(ways))
        self.texts.append(f"{name} by {how}")
        node.fault = lambda called, x: ways[how](x) if called == name else x

    def _in_place(self):
        draw, node = self.draw, self.node
        how = draw.choice(["objective", "objective's y", "solve", "solve to nothing", "constraint"])
        name = draw.choice([name for name in self.wanted if name in ("a", "b")])
        self.texts.append(f"{how} {name}")
        place = node.names.index(name)
        if how in ("objective", "constraint"):
            node.fault = lambda called, x: x.mul_(1.5) if called == name else x
        elif how == "objective's y":
            node.of_y = lambda y: y.mul_(1.5) if not y.requires_grad else y
        elif how == "solve":
            self.prepare = lambda xs: xs[place].mul_(draw.choice([0.5, 2.0]))
        else:
            self.prepare = lambda xs: xs[place].zero_()

    def _wrong_solve(self):
        draw, y = self.draw, self.y
        how = draw.choice(["factor", "offset", "entry", "early", "another's"])
        size = draw.size(-3, 0)
        noise = torch.tensor(draw.normal(*y.shape), dtype=y.dtype)
        positive = any(t.positive for t in self.terms)
        if how == "factor" or positive:
            self.solution = y * (1 + size)
        elif how == "offset":
            self.solution = y + size
        elif how == "entry":
            self.solution = y.clone()
            self.solution[:, 0] += size
        elif how == "early":
            self.solution = (1 - size) * y + size * noise
        else:
            self.solution = y.flip(0) + size * noise
        self.texts.append(f"{how} {size:.0e}")

    def _valley(self):
        # Of the unknown whose curvature is least, relative to the others.
        size = self.draw.size(-2, 0)
        self.solution = self.y.clone()
        weak = -1
        if isinstance(self.terms[0], PseudoHuber):
            self.solution[:, weak] += size * self.y[:, weak].abs()
        else:
            self.solution[:, weak] *= 1 + size
        self.texts.append(f"off by {size:.0e} along the valley")

    def _units_within(self):
        if self.draw.random() < 0.6:
            size = self.draw.size(-1, 0.5)
            self.solution = self.y.clone()
            at = self.draw.randrange(self.n)
            self.solution[:, at] *= 1 + size
            self.texts.append(f"entry {at} off by {size:.0e}")
        else:
            self.texts.append("[sound]")

    def _offset(self):
        if self.draw.random() < 0.6:
            size = self.draw.size(-1, 0.5)
            self.solution = self.y + size * (1 if any(t.positive for t in self.terms) else -1)
            self.texts.append(f"off by {size:.0e}")
        else:
            self.texts.append("[sound]")

    def _own_adjoint(self):
        self._adjoint(lambda gradients: gradients)

    def _wrong_adjoint(self):
        draw = self.draw
        how = draw.choice(["factor", "sign", "missing", "swapped", "one input", "slightly", "v"])
        self.texts.append(how)
        size = draw.size(-1.5, 0.5)
        wrong = {
            "factor": lambda g: [2 * x for x in g],
            "sign": lambda g: [-x for x in g],
            "missing": lambda g: [torch.zeros_like(g[0]), *g[1:]],
            "swapped": lambda g: [g[1], g[0], *g[2:]],
            "one input": lambda g: [g[0], g[1] * (1 + size), *g[2:]],
            "slightly": lambda g: [x * (1 + size) for x in g],
            "v": lambda g: g,
        }[how]
        self._adjoint(wrong, transposed=how == "v")

    def _adjoint(self, wrong, transposed=False):
        node_type = type(self.node)

        def of_one(node, xs, y, v):
            with torch.enable_grad():
                xs = [x.detach().requires_grad_() for x in xs]
                point = y.detach().requires_grad_()
                (g,) = torch.autograd.grad(node.objective(*xs, y=point), point, create_graph=True)
                H = torch.stack([torch.autograd.grad(e, point, retain_graph=True)[0] for e in g])
                u = v * H.diagonal() if transposed else torch.linalg.solve(H, v)
                found = torch.autograd.grad(g, xs, -u, allow_unused=True)
            found = [
                torch.zeros_like(x) if f is None else f for x, f in zip(xs, found, strict=True)
            ]
            return wrong(found)

        def adjoint(node, *xs, y, v):
            items = [of_one(node, [x[k] for x in xs], y[k], v[k]) for k in range(len(y))]
            return tuple(torch.stack(parts) for parts in zip(*items, strict=True))

        self._subclass(node_type, adjoint=adjoint, preferred_backward="closed_form")
        y = self.y
        self.solution = y

    # -- what becomes of it -----------------------------------------------------------------------

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return " | ".join(
            [self.kind, dtype, f"B={self.B} n={self.n}", self.form, self.certify, self.solver]
            + [text for text in self.texts if text]
        )

    def outcome(self):
        """Call the layer, pull v back, and hold the result against what is known."""
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        random.seed(self.seed)
        node = self.node
        if hasattr(node, "weight_of"):
            cls = type(node)
            self._subclass(cls, weight=lambda node: node.weight_of(node))
            del node.weight
        leaves = {name: self.x[name].clone() for name in node.names}
        before = {name: value.clone() for name, value in leaves.items()}
        for name in self.wanted:
            leaves[name].requires_grad_()
        told, text, error, beyond = "", "", float("inf"), 0.0
        layer = None
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                layer = DeclarativeLayer(node, self.form, certify=self.certify)
                y = layer(*leaves.values())
                v = torch.tensor(Draw(self.seed + 1).normal(*y.shape), dtype=self.dtype)
                self.after()
                gradients = torch.autograd.grad(
                    y, [leaves[name] for name in self.wanted], v, allow_unused=True
                )
                gradients = dict(zip(self.wanted, gradients, strict=True))
                error = self._error(gradients, v)
                if any(not torch.equal(leaves[name].detach(), before[name]) for name in leaves):
                    error = float("inf")
            except DdnkitError as problem:
                told, text = "refused", str(problem)
            except Exception as problem:
                told, text = "crashed", f"{type(problem).__name__}: {problem}"
        if not told and layer is not None and layer.certificate is not None:
            warned = [w for w in heard if issubclass(w.category, DdnkitWarning)]
            if warned:
                told, text = "warned", str(warned[0].message)
            elif set(layer.certificate.verdicts()) != {"trusted"}:
                told, text = "doubted", "; ".join(layer.certificate.causes())
            bound = layer.certificate.error_bound
            if bound is not None and not told and np.isfinite(error):
                beyond = max(self._error(gradients, v, True) - float(bound.max()) - 1e-12, 0.0)
        return Outcome(self.seed, self.kind, str(self), told, text, error, beyond, self.dtype)

    def _error(self, gradients, v, bounded=False):
        """The worst input's; ``bounded``: relative to what `error_bound` says that it is relative to."""
        if not self.right_gradient:
            return float("inf")
        worst = 0.0
        for k in range(self.B):
            u = v[k].double().numpy()
            # A gradient that is less than the tolerance of the largest, by what changes of the inputs make
            # of y, is held against that: a bound says nothing of how much smaller an exact zero comes out.
            own = {name: self._own_size(name, k) for name in gradients}
            largest = max(
                np.linalg.norm(u @ self.jacobians[k][name][0]) * own[name] for name in own
            )
            for name, g in gradients.items():
                J, sizes = self.jacobians[k][name]
                expected = u @ J
                found = np.zeros_like(expected) if g is None else g[k].double().numpy().reshape(-1)
                size = max(
                    np.linalg.norm(expected),
                    CANCELLED[self.dtype] * np.linalg.norm(np.abs(u) @ sizes),
                )
                if bounded and own[name] > 0:
                    size = max(size, CANCELLED[self.dtype] * largest / own[name])
                apart = np.linalg.norm(found - expected)
                if not np.isfinite(apart):
                    return float("inf")
                worst = max(worst, 0.0 if apart == 0 else apart / max(size, 1e-300))
        return worst

    def _own_size(self, name, k):
        """The size that an input's entries differ by, or their own where they do not."""
        x = self.x[name][k].double().numpy().reshape(-1)
        spread, whole = np.linalg.norm(x - x.mean()), np.linalg.norm(x)
        return spread if spread > 64 * torch.finfo(self.dtype).eps * whole else whole


class DependentError(Exception):
    """The drawn kinks and constraints are dependent: drawn anew."""


def drawn(seed):
    """The node of a seed."""
    for again in range(20):
        try:
            return Drawn(seed + again * len(KINDS) * 10_000_000)
        except DependentError:
            continue
    raise RuntimeError(f"nothing to draw at seed {seed}")


def _without_grad(x):
    with torch.no_grad():
        return x.clone()


def _switched(x):
    with torch.set_grad_enabled(False):
        return 1 * x


def _absolute(x):
    return x.apply(abs)


def _times(s, x):
    return mp.matrix([s[i] * x[i] for i in range(len(x))])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        print(drawn(int(argument)).outcome())
