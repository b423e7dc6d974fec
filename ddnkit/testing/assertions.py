"""What a test says of a node: its report of `ddnkit.check` has no failed row."""

from __future__ import annotations

from typing import Any

from ..checking.run import check
from ..layer import DeclarativeLayer
from ..node import DeclarativeNode


def assert_gradients(
    node: DeclarativeNode | DeclarativeLayer, *xs: object, **settings: Any
) -> None:
    """Assert that `ddnkit.check` finds nothing wrong with a node or layer.

    The report is the message: what is wrong, what to do next, and a script with the smallest failing
    inputs. Of a layer the node is checked, with the layer's form, tolerance and batch dimensions.

    Args:
        *xs: inputs to check on; drawn from the node's `sample_inputs` if there are none.
        **settings: of `ddnkit.check`.
    """
    report = check(node, *xs, **settings)
    assert report.ok, f"\n{report}"
