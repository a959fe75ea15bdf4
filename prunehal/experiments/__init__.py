"""Ablations: ``description`` (what an experiment is), ``grids`` (many of them), ``sweep`` (make their rows), ``store`` (keep
them), ``compare`` (tables against a baseline), ``parameters`` (of notebooks).

Below them, ``pictures`` finds images and their truth, ``prefill`` gives the model its prompts, ``worker`` captions a batch under
several policies, ``sampling`` draws words independently of the batch, and ``versions`` refuses rows that something else made.
"""

from prunehal.experiments.compare import at_equal_length, changes, equal_lengths, graded
from prunehal.experiments.experiment import Experiment
from prunehal.experiments.grids import grid, read_grid
from prunehal.experiments.parameters import check_parameters, note_names
from prunehal.experiments.store import Store
from prunehal.experiments.sweep import sweep

__all__ = [
    "Experiment",
    "Store",
    "at_equal_length",
    "changes",
    "check_parameters",
    "equal_lengths",
    "graded",
    "grid",
    "note_names",
    "read_grid",
    "sweep",
]
