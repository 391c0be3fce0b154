"""The loop of learning: a learner, what it collects, and the steps that it takes (Algorithm 1 of Tajwar et al. 2024)."""
