"""The loop of learning: a learner, what it collects, and its steps (Algorithm 1 of Tajwar et al. 2024)."""
