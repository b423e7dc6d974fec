from . import bench, registry, testing
from .backward.form import BackwardForm, SystemSolution, SystemSolve, TangentSolve
from .certificate import Certificate
from .checking.manifold_report import ManifoldReport
from .checking.manifolds import check_manifold
from .checking.report import CheckReport
from .checking.run import check
from .checking.target import load_target
from .errors import (
    DamagedFileError,
    DdnkitError,
    DdnkitWarning,
    InputError,
    PluginError,
    UnsupportedProblemError,
    UntrustedGradientError,
    nearest_choice,
)
from .fixed_point import FixedPointNode
from .importing import import_object
from .layer import DeclarativeLayer
from .manifold import Manifold, gaussian
from .memory import peak_resident_memory, reset_peak_resident_memory
from .node import DeclarativeNode
from .parametrization import nearest_point, parametrize
from .problem import Problem
from .quadratic.node import QPNode
from .recipe.pipeline import (
    Job,
    Paper,
    Pipeline,
    PublishedFigure,
    Table,
    published_figures,
)
from .recipe.schema import settings_from
from .recipe.settings import Component, Doubt, Settings, component
from .run.files import read_json, read_table, read_yaml, replace_file
from .solution import Adjoint, Multipliers, Solution, Status
from .solver import Solver
from .transforms import under_transform

__version__: str
__all__ = [
    "Adjoint",
    "BackwardForm",
    "Certificate",
    "CheckReport",
    "Component",
    "DamagedFileError",
    "DdnkitError",
    "DdnkitWarning",
    "DeclarativeLayer",
    "DeclarativeNode",
    "Doubt",
    "FixedPointNode",
    "InputError",
    "Job",
    "Manifold",
    "ManifoldReport",
    "Multipliers",
    "Paper",
    "Pipeline",
    "PluginError",
    "Problem",
    "PublishedFigure",
    "QPNode",
    "Settings",
    "Solution",
    "Solver",
    "Status",
    "SystemSolution",
    "SystemSolve",
    "Table",
    "TangentSolve",
    "UnsupportedProblemError",
    "UntrustedGradientError",
    "bench",
    "check",
    "check_manifold",
    "component",
    "gaussian",
    "import_object",
    "load_target",
    "nearest_choice",
    "nearest_point",
    "parametrize",
    "peak_resident_memory",
    "published_figures",
    "read_json",
    "read_table",
    "read_yaml",
    "registry",
    "replace_file",
    "reset_peak_resident_memory",
    "settings_from",
    "testing",
    "under_transform",
]
