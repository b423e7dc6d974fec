"""Problems with known answers, and assertions, for anyone's solver, backward form or node.

    for problem in ddnkit.testing.bank():
        xs = ddnkit.testing.sample(problem, seed=0)
        layer = ddnkit.DeclarativeLayer(problem, backward="mine")
        ...compare with problem.jacobians(*xs, y=layer(*xs))

or all of it at once, first and second derivatives, forward mode, vmap and batches:

    for row in ddnkit.testing.sweep(forms=["mine"]):
        print(row)

All are in float64. L = f − νᵀh; each class states its problem, its answer and its derivative, and
`KnownProblem` what may be asked of each. `assert_gradients` holds a node of your own to `check`.
"""

import lazy_loader

from ..renamed import with_old_names

_lookup, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, _lookup, {"sampled": "sample", "joined": "join_parts"})
