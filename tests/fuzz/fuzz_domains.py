"""Inputs of a problem, scaled and shifted, that stay where its solution is defined and well-conditioned.

`moved(problem, xs, s, t, noise)`: s in [1e-3, 1e3] scales, t in [0, 1] shifts, noise(x) is normal.
"""

import torch

from ddnkit.testing.matrices import polar_factor


def moved(problem, xs, s, t, noise):
    """The inputs at another point of the problem's domain."""
    names = [kind.__name__ for kind in type(problem).__mro__]
    move = next((MOVES[name] for name in names if name in MOVES), freely)
    return tuple(move(problem, xs, s, t, noise))


def freely(problem, xs, s, t, noise):
    """sx + t·noise for every tensor: where any inputs will do."""
    return [s * x + t * noise(x) if isinstance(x, torch.Tensor) else x for x in xs]


def scaled(problem, xs, s, t, noise):
    """sx: the sign of a number, or the singular values of a matrix, stay as they are to each other."""
    return [s * x if isinstance(x, torch.Tensor) else x for x in xs]


def mildly_scaled(problem, xs, s, t, noise):
    """The same with s in [1/3, 3]: for maps that contract, up to a size of their inputs."""
    return scaled(problem, xs, _mild(s), t, noise)


def circle(problem, xs, s, t, noise):
    # The radius |x₂| away from zero.
    (x,) = xs
    return [torch.stack([s * x[0] + t * noise(x[0]), s * x[1]])]


def direction(problem, xs, s, t, noise):
    # ‖x‖ away from zero, where x/‖x‖ has no bound on its derivative.
    (x,) = xs
    x = s * x + t * noise(x)
    return [x * (1 + 0.1 / x.norm())]


def average(problem, xs, s, t, noise):
    x, alpha = xs
    return [s * x + t * noise(x), alpha * (0.5 + t)]


def transport(problem, xs, s, t, noise):
    # Positive sums that agree; γM at most 8, beyond which P underflows.
    M, r, c, gamma = xs
    r, c = (x * (t * noise(x)).exp() for x in (r, c))
    total = s * r.sum()
    return [M, total * r / r.sum(), total * c / c.sum(), gamma * (0.3 + 1.3 * t)]


def logits(problem, xs, s, t, noise):
    # The Hessian is diag(1/y): y spans five decades at most.
    (x,) = xs
    return [_mild(s) ** 0.5 * x + t / 2 * noise(x)]


def polytope(problem, xs, s, t, noise):
    # A box, cut by two half-planes that may be any; the origin is inside for b > 0.
    A, b = xs
    A = torch.cat([A[:4], A[4:] + t * noise(A[4:])])
    return [A, s * b]


def ridge(problem, xs, s, t, noise):
    X, target, lam = xs
    return [s * X + t * noise(X), target + t * noise(target), s * lam]


def weighted(problem, xs, s, t, noise):
    w, *rest = xs
    return [s * w, *freely(problem, rest, s, t, noise)]


def spectrum(problem, xs, s, t, noise):
    # Adding to the skew part, or a multiple of I, leaves the gaps between the eigenvalues.
    (X,) = xs
    skew = noise(X)
    return [s * X + t * (skew - skew.T) + t * torch.eye(len(X), dtype=X.dtype)]


def brockett(problem, xs, s, t, noise):
    # Newton's method may need more than its hundred steps from polar(B) where A is the larger by far.
    A, B = xs
    return [min(_mild(s), 1) ** 0.5 * A, B + t * noise(B) / 4]


def procrustes(problem, xs, s, t, noise):
    # Singular values away from zero; if d = C the polar factor jumps where det Y = 0.
    (Y,) = xs
    return [s * (Y + t * polar_factor(Y))]


def nearest_etf(problem, xs, s, t, noise):
    # In these cases H is special: a zero column, exact collapse, or a determinant that goes with P.
    H, P = xs
    if problem.case in ("missing", "collapsed", "square"):
        return [s * H, P]
    return [s * (H + t * noise(H) / 4), P]


def contraction(problem, xs, s, t, noise):
    # ‖W‖ at most 0.9.
    W, x = xs
    return [min(s, 1.1) * W, _mild(s) * x + t * noise(x)]


def plane(problem, xs, s, t, noise):
    # |b|/‖a‖ stays at most ½; x away from the direction of a.
    x, a, b = xs
    return [x + t * noise(x), s * a, s * b]


def two_parts(problem, xs, s, t, noise):
    a, B, w, c = xs
    return [*freely(problem, (a, B), s, t, noise), s * w, c + t * noise(c)]


def _mild(s):
    return min(max(s, 1 / 3), 3)


#: By class, the nearest in a problem's line of ancestors; `freely` for all others.
MOVES = {
    "Polynomial": scaled,
    "LinearOnScaledCircle": circle,
    "QuadraticOnSphere": direction,
    "CosineDistance": direction,
    "PseudoHuberAverage": average,
    "EntropicTransport": transport,
    "Softmax": logits,
    "AnalyticCentre": polytope,
    "Ridge": ridge,
    "WeightedLeastSquares": weighted,
    "SmallestEigenvector": spectrum,
    "Brockett": brockett,
    "BrockettOnStiefel": brockett,
    "Procrustes": procrustes,
    "ProcrustesEqualValues": scaled,
    "ProcrustesOnStiefel": procrustes,
    "NearestSimplexETF": nearest_etf,
    "KnownNearestETF": nearest_etf,
    "CubeRoot": scaled,
    "Equilibrium": contraction,
    "EquilibriumOfParts": mildly_scaled,
    "SphereCutByPlane": plane,
    "TwoPartQP": two_parts,
}
