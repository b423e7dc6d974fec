from .asymptotics import (
    collapse_curve,
    collapse_rate,
    fixed_point_kappa,
    gram_recursion,
    published_kappa,
)
from .collapse import LayerCollapse, decompose, dnc1, dnc2, layer_collapse
from .deep_rfm import DeepRFM, DeepRFMLayer, LayerStages
from .factorisations import MatrixRoot, matrix_sqrt
from .feature_maps import FeatureMap, FourierFeatures, IdentityMap, ReLUFeatures
from .kernel_agop import agop
from .kernel_optimum import (
    OptimalityCheck,
    collapsed_kernel,
    krr_lower_bound,
    optimality_check,
    parametrised_krr_objective,
)
from .kernels import Gaussian, Kernel, L1Laplace, Laplace, RadialKernel
from .network_agop import module_agop, module_agops, nfa_correlation, nfa_correlations, nfm
from .regression import (
    KernelRegression,
    SingularKernelWarning,
    SolveReport,
    UnsolvedKernelWarning,
)
from .samples import Standardisation, label_targets, unit_rows
from .settings import AGOPNeuralCollapse, DeepRFMCollapse, LayerwiseCollapse, RFMTheory

__all__ = [
    "AGOPNeuralCollapse",
    "DeepRFM",
    "DeepRFMCollapse",
    "DeepRFMLayer",
    "FeatureMap",
    "FourierFeatures",
    "Gaussian",
    "IdentityMap",
    "Kernel",
    "KernelRegression",
    "L1Laplace",
    "Laplace",
    "LayerCollapse",
    "LayerStages",
    "LayerwiseCollapse",
    "MatrixRoot",
    "OptimalityCheck",
    "RFMTheory",
    "RadialKernel",
    "ReLUFeatures",
    "SingularKernelWarning",
    "SolveReport",
    "Standardisation",
    "UnsolvedKernelWarning",
    "agop",
    "collapse_curve",
    "collapse_rate",
    "collapsed_kernel",
    "decompose",
    "dnc1",
    "dnc2",
    "fixed_point_kappa",
    "gram_recursion",
    "krr_lower_bound",
    "label_targets",
    "layer_collapse",
    "matrix_sqrt",
    "module_agop",
    "module_agops",
    "nfa_correlation",
    "nfa_correlations",
    "nfm",
    "optimality_check",
    "parametrised_krr_objective",
    "published_kappa",
    "unit_rows",
]
