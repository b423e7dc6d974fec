from .paper import Experiment, GuidingNeuralCollapse, experiment, experiment_names

__all__ = ["Experiment", "GuidingNeuralCollapse", "experiment", "experiment_names"]
