"""Fixtures of tests that score texts with a small masked model."""

import pytest

from tests.fairness import pieces
from trustml.fairness import likelihood
from trustml.models import masked_lm


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return pieces.word_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="session")
def model():
    return masked_lm.load(pieces.GOLDEN / "bert_mlm")


@pytest.fixture(scope="session")
def batch(model):
    return pieces.jit(likelihood.masked_batch(model.log_probs, pieces.MASK))
