"""The figure of clients and labels: what is drawn, and what is left out."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from trustml.report import partition


def _counts(clients, labels, seed=0):
    return np.random.default_rng(seed).integers(1, 30, (clients, labels))


def _bubbles(svg):
    groups = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g")
    found = [g for g in groups if "PathCollection" in g.get("id", "")]
    return sum(
        len(list(g.iter("{http://www.w3.org/2000/svg}use")))
        or len(g.findall("{http://www.w3.org/2000/svg}path"))
        for g in found
    )


def test_a_bubble_for_every_label_a_client_holds():
    counts = _counts(12, 4)
    counts[3, 1] = counts[5] = 0  # a label, and a client without examples
    svg = partition.clients(counts, ["cat", "dog", "a name far too long to show", "x"])
    assert "between 0 and" in svg
    assert _bubbles(svg) == 12 * 4 - 5
    assert ">cat<" in svg
    assert "a name far too lo…" in svg
    assert svg == partition.clients(
        counts, ["cat", "dog", "a name far too long to show", "x"]
    )


def test_many_clients_are_thinned_out_evenly():
    counts = np.zeros((1000, 2), int)
    counts[:, 0] = np.arange(1000) + 1
    svg = partition.clients(counts)
    assert "between 1 and 1000 examples" in svg  # largest and smallest are there
    assert "50 of 1,000 clients" in svg
    assert _bubbles(svg) == 50


def test_many_labels_are_joined():
    counts = _counts(5, 40)
    svg = partition.clients(counts)
    assert "16 others" in svg
    table, names = partition._join_rare(counts, list(map(str, range(40))))
    assert table.sum() == counts.sum()
    assert (table.sum(axis=1) == counts.sum(axis=1)).all()
    assert len(names) == table.shape[1] == 25
    kept = [int(name) for name in names[1:]]
    np.testing.assert_array_equal(table[:, 1:], counts[:, kept])
    rest = np.delete(counts, kept, axis=1).sum(axis=0)
    assert rest.max() <= counts[:, kept].sum(axis=0).min()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 2)], ids=str)
def test_nothing_to_draw(shape):
    assert partition.clients(np.zeros(shape, int)) == ""
