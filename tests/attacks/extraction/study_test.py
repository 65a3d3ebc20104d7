"""Canaries of SNIPS in a joint bi-GRU: exposure against copies, beside both controls.

    TRUSTML_STUDY_SEEDS=16 python -m pytest -m slow -s \
        tests/attacks/extraction/study_test.py

is the undefended part of configs/canary_extraction.py with its claims asserted.
"""

import os
import pathlib
import runpy

import jax
import numpy as np
import pytest

from trustml import config as config_lib
from trustml.experiments import build, canary_extraction

ROOT = pathlib.Path(__file__).resolve().parents[3]
SEEDS = int(os.environ.get("TRUSTML_STUDY_SEEDS", "3"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_exposure_grows_with_copies(tmp_path):
    """Exposure over its control: 5 bits in the median at 1 copy, 8 at 10.

    Recovery, whole and by words, is asserted from 16 seeds on only: of three seeds one
    was read out whole from 100 copies, which says neither 0.1 nor 0.9.
    """
    made = runpy.run_path(str(ROOT / "configs/canary_extraction.py"))
    cfg = made["get_config"]("undefended")
    cfg.canary.seeds = SEEDS
    config = config_lib.from_config_dict(cfg)
    data = build.dataset(config)
    (variant,) = canary_extraction.variants(config)
    ready = canary_extraction.prepare(variant, data)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        asked = canary_extraction.collect(ready, data, tmp_path)
    found = canary_extraction.measure(ready, data, asked)
    rows = {row.copies: row for row in found.rows}
    for copies, row in rows.items():
        whole = {name: one.whole for name, one in row.guesses.items()}
        print(f"{copies} copies: {np.median(row.bits):.2f} bits, whole {whole}")
        print(f"  {row.summary}")
    assert rows[1].summary.delta_median >= 5
    assert rows[10].summary.delta_median >= 8
    if SEEDS >= 16:
        assert rows[100].guesses["exhaustive"].share.value >= 0.5
        for copies in (1, 10, 100):
            ways = rows[copies].guesses
            exhaustive, relaxed = ways["exhaustive"].words, ways["relaxed"].words
            assert exhaustive.value >= relaxed.value - 0.05
    assert found.uniform_p > 1e-3
