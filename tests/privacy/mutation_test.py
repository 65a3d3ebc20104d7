"""Every seeded bug is caught, and the trainer as it is raises no alarm.

The table of what each check catches, not only those it must:

    python -m pytest tests/privacy/mutation_test.py -m slow -k table -s
"""

import pathlib
import traceback

import jax
import numpy as np
import pytest

from tests.privacy import checks, mutants

SEEDS_IN_CI = 2


def notices(name, seed=0) -> str:
    """What a check says of the library as it stands; '' where it is content.

    Only the check's own assertions count, and not JAX's check that no key is used
    twice, which a user of the library does not have switched on.
    """
    with jax.debug_key_reuse(False):
        try:
            checks.ALL[name](seed)
        except AssertionError as alarm:
            files = [
                frame.filename for frame in traceback.extract_tb(alarm.__traceback__)
            ]
            last = pathlib.Path(files[-1])
            own = last.parent == pathlib.Path(checks.__file__).parent
            if not own and files[-1] != np.testing._private.utils.__file__:
                raise
            return str(alarm).strip().splitlines()[0] if str(alarm) else "asserted"
    return ""


# Each takes three runs from end to end; one of their kind is tried always.
LONG = {"batches begin anew after a resume", "steps are counted from 0 after a resume"}


# Their false alarms are looked for over many seeds only, below.
ALSO_LONG = {"resume", "low_precision", "audit", "events"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
        for name in mutants.TABLE
    ],
)
def test_mutant_is_caught(name):
    mutant = mutants.TABLE[name]
    with mutants.of(mutant):
        alarm = notices(mutant.caught_by[0])
    assert alarm, f"{mutant.caught_by[0]} did not notice: {name}"


@pytest.mark.parametrize("name", sorted(set(checks.ALL) - ALSO_LONG))
def test_no_false_alarm(name):
    for seed in range(SEEDS_IN_CI):
        checks.ALL[name](seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", checks.ALL)
def test_no_false_alarm_over_many_seeds(name):
    for seed in range(SEEDS_IN_CI, 22):
        checks.ALL[name](seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", mutants.TABLE)
def test_table_of_all_that_must_notice(name):
    mutant = mutants.TABLE[name]
    for check in mutant.caught_by:
        with mutants.of(mutant):
            alarm = notices(check)
        print(f"\n{name} | {check} | {alarm}")
        assert alarm, f"{check} did not notice: {name}"


def test_the_suite_is_as_large_as_it_says():
    assert LONG < set(mutants.TABLE) and len(mutants.TABLE) >= 60
    named = {check for mutant in mutants.TABLE.values() for check in mutant.caught_by}
    assert named == set(checks.ALL), "a check that no mutant needs, or one unknown"


def test_mutants_are_undone_and_their_texts_are_found():
    before = {
        (id(edit.owner), edit.name): getattr(edit.owner, edit.name)
        for mutant in mutants.TABLE.values()
        for edit in mutant.edits
    }
    for mutant in mutants.TABLE.values():
        with mutants.of(mutant):
            for edit in mutant.edits:
                now = getattr(edit.owner, edit.name)
                assert now is not before[id(edit.owner), edit.name]
    for mutant in mutants.TABLE.values():
        for edit in mutant.edits:
            assert getattr(edit.owner, edit.name) is before[id(edit.owner), edit.name]
    stale = mutants.Edit(np, "mean", (("no such text", ""),))
    with pytest.raises(LookupError, match="0 times, not once"):
        mutants.rewritten(stale)
