"""Euclidean distances of all pairs, with all their digits where points nearly coincide.

    ‖x − z‖² = ‖x‖² + ‖z‖² − 2⟨x, z⟩

costs one matrix product, and its digits cancel: the relative error is about ε(‖x‖² + ‖z‖²)/‖x − z‖², so
that in float32 points of unit length at a distance of 3e-4 have none left. The samples of a class come
that near as they collapse, and the diagonal, whose distance is 0, would come out as 3e-4. Hence

* the product is taken in float64, whatever the samples' precision;
* the points are taken relative to their mean, which changes no difference: a common offset costs nothing;
* pairs with ‖x − z‖² ≤ `NEAR` ‖x‖² are taken again, from the differences x − z.

What remains of a distance's relative error is at most (2/`NEAR`) d ε = 4e-11 d just above that limit, and
in practice, where roundings are of both signs, below 1e-10: distances of float32 samples are correct to the
last digit. Points that coincide have distance 0 exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Pairs at less than 1/300 of their distance to the mean are taken from differences. In a collapsing
#: layer that is DNC1 < 5e-6, when all pairs of a class are: a hundred times the work of a product.
NEAR = 1e-5

#: Numbers in a block of differences, which stays in a processor's cache.
_DIFFERENCES = 1 << 18


def squared_distances(
    X: Tensor, Z: Tensor, coincidence: float = 0.0, centre: Tensor | None = None
) -> Tensor:
    """‖x_i − z_j‖² ``(n, m)``, float64, of samples ``(n, d)`` and ``(m, d)``.

    Args:
        X, Z: samples of one dtype.
        coincidence: pairs with ‖x − z‖ at most this share of ‖x‖, relative to the centre, get 0.
        centre: a point ``(d,)`` amid the samples, float64; by default the mean of Z.
    """
    if centre is None:
        centre = Z.mean(dim=0, dtype=torch.float64)
    x, z = X - centre, Z - centre
    norms = x.square().sum(dim=1)
    squared = torch.addmm(z.square().sum(dim=1), x, z.T, alpha=-2).add_(norms[:, None])
    # Where ‖z‖ is the larger one, the distance is at least nearly as large: ‖x‖ alone decides.
    rows, columns = (squared <= NEAR * norms[:, None]).nonzero(as_tuple=True)
    size = max(_DIFFERENCES // X.shape[1], 1)
    for i, j in zip(rows.split(size), columns.split(size), strict=True):
        exact = (X[i].to(torch.float64) - Z[j]).square_().sum(dim=1)
        squared[i, j] = torch.where(exact <= coincidence**2 * norms[i], 0.0, exact)
    return squared
