"""Do draws follow a distribution?"""

import numpy as np
from scipy import stats


def p_value(index, log_prob) -> float:
    """Of a chi-square test that these draws have these probabilities; rare responses are counted as one.

    0 if a response of probability 0 was drawn.
    """
    prob = np.exp(np.asarray(log_prob, np.float64))
    count = np.bincount(np.asarray(index), minlength=prob.size)
    if count[prob == 0].any():
        return 0.0
    common = prob * count.sum() > 5
    seen, expected = count[common], prob[common]
    if prob[~common].sum() * count.sum() > 1:
        seen, expected = np.append(seen, count[~common].sum()), np.append(expected, prob[~common].sum())
    return float(stats.chisquare(seen, seen.sum() * expected / expected.sum()).pvalue)
