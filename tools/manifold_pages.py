"""docs/manifolds/: a page for each manifold that comes with ddnkit, and their table: `make manifolds`.

What the pages say is what the classes say: a class's docstring, and the first sentence of each method's.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from ddnkit_manifolds.product import Parts, Product

import ddnkit
from ddnkit import Manifold, registry

DOCS = Path(__file__).parents[1] / "docs" / "manifolds"
#: What each method is, in the words of a page; in this order.
PARTS = {
    "constraint": "Constraint j(y)",
    "vertical": "Vertical directions",
    "project": "Projection",
    "tangent": "Tangent part of a vector",
    "multipliers": "Multipliers σ of ∇f",
    "normal": "Normal part Σ σᵢ ∇jᵢ",
    "constraint_curvature": "Curvature Σ σᵢ ∇²jᵢ z",
    "inner": "Metric ⟨u, v⟩",
    "gradient": "Riemannian gradient",
    "hessian": "Riemannian Hessian",
    "retract": "Retraction",
    "exponential": "Exponential",
    "transport": "Transport",
    "random": "Random point",
    "point_of": "Free tensor → point",
    "free_of": "Weight → free tensor",
}
#: What `Manifold` itself has, where that is not by automatic differentiation.
_DEFAULTS = {
    "vertical": "none: every point means another",
    "tangent": "the vector less its normal part",
    "gradient": "the tangent part of ∇f",
    "hessian": "the tangent part of ∇²f z − Σ σᵢ ∇²jᵢ z",
    "inner": "Euclidean",
    "retract": "the projection of y + z",
    "transport": "the tangent part at the other point",
    "point_of": "the nearest point",
    "free_of": "the projection of the weight",
}
_TABLE = ("constraint", "tangent", "retract", "multipliers")
_HEAD = """# Manifolds

Each is a class of `ddnkit_manifolds`, and a `manifold = Sphere()` of a node, or a weight by
`ddnkit.parametrize(module, "weight", Stiefel())`. `ddnkit check manifold:NAME` compares each method with
automatic differentiation. One of your own needs three methods
([solvers](../solvers.md#a-manifold-of-your-own)); what it does not write is by automatic differentiation and
projection, in the Euclidean metric.

"""


def kinds() -> dict[str, type[Manifold]]:
    """The registered manifolds that come with ddnkit, by name."""
    found = {name: registry.get("manifolds", name) for name in registry.names("manifolds")}
    return {name: kind for name, kind in found.items() if kind.__module__.startswith("ddnkit_")}


def part(kind: type[Manifold], method: str) -> str:
    """The first sentence of a method's docstring; what the contract has where it is not its own."""
    if kind is Product:
        kind = Parts
    if not hasattr(kind, method):
        return "none"
    if getattr(kind, method) is getattr(Manifold, method, None):
        return _DEFAULTS.get(method, "by autograd")
    text = inspect.cleandoc(getattr(kind, method).__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def page(name: str, kind: type[Manifold]) -> str:
    """The page of one manifold."""
    lines = [f"# {kind.__name__}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += [f"Registered as `{name}`."]
    if kind.closed_form_solvers:
        lines += [
            "",
            "Closed forms: " + ", ".join(f"`{x}`" for x in kind.closed_form_solvers) + ".",
        ]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {title} | {_cell(part(kind, method))} |" for method, title in PARTS.items()]
    module = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    lines += ["", "## Mathematics", "", "```text", module, "```", ""]
    return "\n".join(lines)


def table() -> str:
    """The page with all of them."""
    lines = [_HEAD + "| manifold | set | " + " | ".join(PARTS[x] for x in _TABLE) + " |"]
    lines += ["|---" * (len(_TABLE) + 2) + "|"]
    for name, kind in kinds().items():
        first = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
        cells = [_cell(part(kind, method)) for method in _TABLE]
        lines += [f"| [{kind.__name__}]({name}.md) | {_cell(first)} | " + " | ".join(cells) + " |"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write(folder: Path) -> None:
    """All pages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.md").write_text(table())
    for name, kind in kinds().items():
        (folder / f"{name}.md").write_text(page(name, kind))


if __name__ == "__main__":
    write(DOCS)
    print(f"{len(kinds())} manifolds of ddnkit {ddnkit.__version__} in {DOCS.name}/")
