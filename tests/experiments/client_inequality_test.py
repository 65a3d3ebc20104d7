"""The table of unequal clients: counts from accuracies, and when there is none."""

import numpy as np
import pytest

from trustml.experiments import client_inequality
from trustml.fairness import clients


def test_accuracies_become_counts():
    right, examples = np.array([3, 0, 7, 5]), np.array([4, 0, 9, 5])
    accuracy = np.divide(right, examples, where=examples > 0, out=np.full(4, np.nan))
    accuracy = accuracy.astype(np.float32).astype(np.float64)  # as devices give it
    found = client_inequality.measure(accuracy, examples, "classification", 0.95)
    wanted = clients.measure(right, examples)
    assert found.s == wanted.s and found.variance == wanted.variance
    html = client_inequality.table(found, 0.95)
    assert "95% interval" in html
    assert "97.5% interval" in client_inequality.table(found, 0.975)
    alone = client_inequality.measure(
        np.array([0.5]), np.array([10]), "classification", 0.95
    )
    assert "nan" not in client_inequality.table(alone, 0.95)
    assert "Over all 3 clients" in html and "variance without luck" in html
    assert f"{wanted.gini.value:.3g}" in html


@pytest.mark.parametrize(
    ("kind", "examples"), [("tagging", [4, 9]), ("classification", [0, 0])]
)
def test_what_is_not_counted_has_no_table(kind, examples):
    accuracy = np.array([0.5, 0.25])
    found = client_inequality.measure(accuracy, np.array(examples), kind, 0.95)
    assert found is None and client_inequality.table(found, 0.95) == ""
