"""The four fields of a threat model."""

import pytest

from trustml.attacks import threat


def test_defaults_and_errors():
    assert threat.model() == ("loss", "none", True, "randomised")
    with pytest.raises(ValueError, match="did you mean 'observational'"):
        threat.model(membership="observed")
    with pytest.raises(ValueError, match="threat.access='logits'"):
        threat.model(access="logits")
