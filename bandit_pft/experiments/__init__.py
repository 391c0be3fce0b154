"""The experiments behind every claim: importing this package registers them all, in the order of the table."""

from bandit_pft.experiments import bandits, sequences, theory, literature_offline, literature_online  # isort: skip

__all__ = ["bandits", "literature_offline", "literature_online", "sequences", "theory"]
