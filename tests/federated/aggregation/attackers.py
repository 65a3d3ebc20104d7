"""What malicious clients send; messages [m, d], the first `count` rows theirs.

References: https://arxiv.org/abs/1902.06156 (a little is enough),
https://arxiv.org/abs/1903.03936 (inner-product manipulation)
"""

import numpy as np
from scipy import stats


def sign_flip(messages, count, scale=10.0):
    out = messages.copy()
    out[:count] = -scale * messages[:count]
    return out


def scaled(messages, count, scale=1e6):
    """All of them the same, far away."""
    out = messages.copy()
    out[:count] = scale * np.abs(messages[count:]).max()
    return out


def little_is_enough(messages, count):
    """As many standard deviations off as half of all clients would bear out."""
    out, honest = messages.copy(), messages[count:]
    total = len(messages)
    supporters = total // 2 + 1 - count
    z = stats.norm.ppf((total - count - supporters) / (total - count))
    out[:count] = honest.mean(0) - z * honest.std(0)
    return out


def inner_product(messages, count, scale=1.1):
    """Against the mean of the honest ones, and little longer."""
    out = messages.copy()
    out[:count] = -scale * messages[count:].mean(0)
    return out


ALL = {
    "sign_flip": sign_flip,
    "scaled": scaled,
    "little_is_enough": little_is_enough,
    "inner_product": inner_product,
}
