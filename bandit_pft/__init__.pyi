"""The public names and their modules: what type checkers and editors see, and `__init__.py` loads when asked."""

from bandit_pft.groups import ExactGroup, Group, prepare
from bandit_pft.methods import ADAM, SGD, Method
from bandit_pft.objectives import OBJECTIVES, force, measure, objective, with_kl
from bandit_pft.policies import context_network, factorised, tabular, tabular_shared, transformer
from bandit_pft.probes import State, distribution_probe, standard_probe, top_probe
from bandit_pft.problems import (
    Problem,
    bandit,
    contextual_bandit,
    length_problem,
    paper_bandit,
    paper_reference,
    paper_sequences,
    peaks,
    sequences,
)
from bandit_pft.sharding import join_processes, shard_actions
from bandit_pft.simulate import simulate
from bandit_pft.sweep import load, save, sweep
from bandit_pft.version import __version__

__all__ = [
    "ADAM",
    "OBJECTIVES",
    "SGD",
    "ExactGroup",
    "Group",
    "Method",
    "Problem",
    "State",
    "__version__",
    "bandit",
    "context_network",
    "contextual_bandit",
    "distribution_probe",
    "factorised",
    "force",
    "join_processes",
    "length_problem",
    "load",
    "measure",
    "objective",
    "paper_bandit",
    "paper_reference",
    "paper_sequences",
    "peaks",
    "prepare",
    "save",
    "sequences",
    "shard_actions",
    "simulate",
    "standard_probe",
    "sweep",
    "tabular",
    "tabular_shared",
    "top_probe",
    "transformer",
    "with_kl",
]
