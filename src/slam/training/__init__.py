"""A model, a task and a budget → the model trained: what pre-training and preference tuning share.

A training is a function of its settings and data: the step decides the batch, the share of the budget spent
decides the learning rate, and a checkpoint holds everything else (weights, moments, random state, clock), so
that a killed run, resumed, equals the run that was never killed.
"""

from slam.training.checkpoints import CHECKPOINTS_FOLDER, State, discard_checkpoints
from slam.training.engine import precision
from slam.training.log import METRICS_FILE
from slam.training.loop import train
from slam.training.parallel import gathered_weights
from slam.training.task import Task, Verdict

__all__ = [
    "CHECKPOINTS_FOLDER",
    "METRICS_FILE",
    "State",
    "Task",
    "Verdict",
    "discard_checkpoints",
    "gathered_weights",
    "precision",
    "train",
]
