"""Files that say whose each row is: splits by user, and what is refused."""

import json

import numpy as np
import pytest

from trustml.data import dataset, files

USERS = 40


@pytest.fixture
def table(tmp_path):
    """Rows of users, a whole number each; every third row of a user is as another's."""
    rows = [
        {"who": user, "text": f"word{n % 3 and user} {n}", "label": "ab"[n % 2]}
        for n in range(6)
        for user in range(USERS)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(users, rows):
    """What those users wrote, in the order of the file."""
    return [row["text"] for row in rows if str(row["who"]) in users]


def test_a_users_rows_stay_together_and_know_their_user(table):
    data = files.load(table, user_column="who", valid_fraction=0.2, test_fraction=0.2)
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    mine = set(data.user_ids)
    assert data.user_ids.dtype.kind == "U" and 10 < len(mine) < USERS
    assert data.texts["train"] == texts_of(mine, rows)
    assert len(data.user_ids) == len(data.train["label"]) == 6 * len(mine)
    for n, user in enumerate(data.user_ids):
        assert data.texts["train"][n] in texts_of({user}, rows)
    # A split depends on the user alone: the others stay where they are without one.
    gone = sorted(mine)[0]
    kept = [row for row in rows if str(row["who"]) != gone]
    table.write_text("".join(json.dumps(row) + "\n" for row in kept))
    again = files.load(table, user_column="who", valid_fraction=0.2, test_fraction=0.2)
    assert set(again.user_ids) == mine - {gone}
    assert again.texts["valid"] == data.texts["valid"]


def test_without_the_column_rows_are_their_own(table):
    data = files.load(table)
    assert data.user_ids is None
    assert data.digest != files.load(table, user_column="who").digest


def test_files_of_other_splits_need_no_users(table, tmp_path):
    other = tmp_path / "valid.jsonl"
    other.write_text('{"text": "word", "label": "a"}\n')
    data = files.load(table, user_column="who", valid_path=other, test_fraction=0.0)
    assert len(data.user_ids) == 6 * USERS and len(data.valid["label"]) == 1


def test_chosen_rows_take_their_users_along():
    split = dataset.Split(["a", "b", "c"], ["x", "y", "z"], users=["1", "2", "3"])
    assert dataset.take(split, np.array([2, 0])).users == ["3", "1"]


@pytest.mark.parametrize(
    "value", ["", None, 1.5, ["ann"]], ids=["empty", "null", "fraction", "list"]
)
def test_what_is_no_user(table, value):
    row = {"who": value, "text": "word", "label": "a"}
    table.write_text(json.dumps(row) + "\n" + table.read_text())
    sentence = r"line 1 has who=.*; give a user, as text or a whole number\."
    with pytest.raises(ValueError, match=sentence):
        files.load(table, user_column="who")
