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


def set_and_point(problem, xs, s, t, noise):
    # Where a set and what is projected on it grow alike, the same constraints stay active.
    return [s * x for x in xs]


def half_space(problem, xs, s, t, noise):
    # The plane's normal has a unit of its own; t moves x along the plane.
    x, a, b = xs
    along = noise(x)
    along = along - a * (a @ along) / (a @ a)
    return [s * (x + t * along), a / s, b]


def capped(problem, xs, s, t, noise):
    # x moves as a whole, which τ takes up.
    x, k, u = xs
    return [s * (x + t * noise(k)), s * k, s * u]


def onto_sum(problem, xs, s, t, noise):
    x, r = xs
    return [s * (x + t * noise(r)), s * r]


def isotonic(problem, xs, s, t, noise):
    x, w = xs
    return [s * x + t * noise(w[0]), s * w]


def nonnegative(problem, xs, s, t, noise):
    # Another part of b that no y reaches: its multipliers stay as they are.
    A, b = xs
    rest = noise(b)
    rest = rest - A @ torch.linalg.lstsq(A, rest.unsqueeze(1)).solution.squeeze(1)
    return [s * A, b + t * rest]


def mixed_program(problem, xs, s, t, noise):
    # Q and q in units of f; C and d in those of a constraint.
    Q, q, b, C, d = xs
    return [s * Q, s * q, b, C / s, d / s]


def vertex(problem, xs, s, t, noise):
    C, d = xs
    return [C, s * d]


def power(problem, xs, s, t, noise):
    # n > 0: f is a logarithm, and the level is the sum's.
    n, P = xs
    return [s * n, s * P]


def capped_logits(problem, xs, s, t, noise):
    x, u = xs
    return [x + 10 * t * noise(u), u]


def trust_region(problem, xs, s, t, noise):
    Q, q, r = xs
    return [s * Q, s * q, r]


def prices(problem, xs, s, t, noise):
    c, amount = xs
    return [s * c, amount * (1 + t)]


def wells(problem, xs, s, t, noise):
    # The unit of y is that of the wells.
    return list(xs)


def _mild(s):
    return min(max(s, 1 / 3), 3)


#: By class, the nearest in a problem's line of ancestors; `freely` for all others.
def outward(problem, xs, s, t, noise):
    # Beyond a bound that is active: no smaller.
    (x,) = xs
    return [max(_mild(s), 1.0) * x]


def inward(problem, xs, s, t, noise):
    # Within a ball: no larger.
    (x,) = xs
    return [min(_mild(s), 1.0) * x]


MOVES = {
    "PoseWithin": outward,
    "Exponential": logits,
    "PointOfBall": inward,
    "EntropicPairs": logits,
    "NearestUnitRows": scaled,
    "SteinLoss": scaled,
    "GeometricMean": scaled,
    "RayleighQuotient": scaled,
    "LeadingSubspace": scaled,
    "SubspaceAndVector": scaled,
    "TruncatedSVD": scaled,
    "PolarFactor": scaled,
    "NearestRotation": scaled,
    "Registration": scaled,
    "NearestUnitVector": direction,
    "NearestUnitVectorAbove": scaled,
    "NearestUnitColumns": scaled,
    "HyperbolicMean": scaled,
    "SoftmaxOnSimplex": logits,
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
    "ProjectionOnBox": set_and_point,
    "ProjectionOnMaxNormBall": set_and_point,
    "ProjectionOnHalfSpace": half_space,
    "ProjectionOnCorner": set_and_point,
    "ProjectionOnBall": set_and_point,
    "ProjectionOnSumBall": set_and_point,
    "ProjectionOnSimplex": onto_sum,
    "ProjectionOnCappedSimplex": capped,
    "ProjectionOnSecondOrderCone": set_and_point,
    "IsotonicRegression": isotonic,
    "AtTheEdge": set_and_point,
    "NonnegativeLeastSquares": nonnegative,
    "MixedQP": mixed_program,
    "VertexOfLinearProgram": vertex,
    "WaterFilling": power,
    "CappedSoftmax": capped_logits,
    "TrustRegion": trust_region,
    "GeometricProgram": prices,
    "SeparableDoubleWell": wells,
}
