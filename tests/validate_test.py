import math
import pathlib

import numpy as np
import pytest

from trustml import _validate


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (_validate.positive, [1, 0.5, np.float32(2)], [0, -1.0, math.inf, math.nan]),
        (_validate.non_negative, [0, 3.5], [-1e-9, math.inf, math.nan]),
        (_validate.finite, [-1, 0.0, 1e300], [math.inf, -math.inf, math.nan]),
    ],
)
def test_numbers(check, good, bad):
    for value in good:
        assert check("a.b", value) == value
        assert isinstance(check("a.b", value), float)
    for value in [*bad, "1", None, True, [1.0]]:
        with pytest.raises(ValueError, match=r"^a\.b=.* must be .*; do this\.$"):
            check("a.b", value, "do this")


def test_intervals_know_their_ends():
    assert _validate.in_open_interval("delta", 1e-5, 0, 1) == 1e-5
    for value in (0, 1, -1, 2, math.nan):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            _validate.in_open_interval("delta", value, 0, 1)
    assert _validate.in_half_open_interval("p", 0, 0, 1) == 0
    for value in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            _validate.in_half_open_interval("p", value, 0, 1)


def test_integers_are_integers():
    assert _validate.integer_at_least("steps", np.int32(3), 1) == 3
    assert type(_validate.integer_at_least("steps", np.int32(3), 1)) is int
    for value in (0, 3.0, True, "3", None):
        with pytest.raises(ValueError, match=r"^steps=.*>= 1"):
            _validate.integer_at_least("steps", value, 1)


def test_booleans_are_booleans():
    assert _validate.boolean("check", False) is False
    with pytest.raises(ValueError, match=r"^check=1 must be True or False\.$"):
        _validate.boolean("check", 1)


def test_one_of_suggests_the_nearest_name():
    names = ("book_keeping", "vmap", "auto")
    assert _validate.one_of("method", "vmap", names) == "vmap"
    with pytest.raises(ValueError) as error:
        _validate.one_of("method", "bookeeping", names)
    assert str(error.value) == (
        "method='bookeeping' is not one of book_keeping, vmap, auto; "
        "did you mean 'book_keeping'?"
    )
    with pytest.raises(ValueError, match="auto; choose one of them.$"):
        _validate.one_of("method", "zzz", names, "choose one of them")
    with pytest.raises(ValueError, match="is not one of"):
        _validate.one_of("method", 3, names)


def test_existing_file_says_where_it_looked(tmp_path, monkeypatch):
    (tmp_path / "train.tsv").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert _validate.existing_file("data.path", "train.tsv") == tmp_path / "train.tsv"
    with pytest.raises(FileNotFoundError) as error:
        _validate.existing_file("data.path", "trian.tsv")
    assert str(tmp_path / "trian.tsv") in str(error.value)
    assert "did you mean 'train.tsv'?" in str(error.value)
    with pytest.raises(FileNotFoundError, match="check the path"):
        _validate.existing_file("data.path", pathlib.Path("no/such/thing"))
    with pytest.raises(ValueError, match="is a directory"):
        _validate.existing_file("data.path", tmp_path)
    for value in ("", None, 3):
        with pytest.raises(ValueError, match="must be the path of a file"):
            _validate.existing_file("data.path", value)


def test_existing_directory(tmp_path):
    assert _validate.existing_directory("d", tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="looked for"):
        _validate.existing_directory("d", tmp_path / "no")
    with pytest.raises(ValueError):
        _validate.existing_directory("d", "")


def test_arrays_hold_numbers():
    for good in (
        [1, 2],
        (0.5,),
        np.float32([[1]]),
        3,
        [np.float32(1), 2],
        [True, False],
    ):
        found = _validate.numbers_of("a.b", good)
        np.testing.assert_array_equal(found, good)
        assert found.dtype == np.float64
    bad = ("0.1", ["0.1", "0.2"], [[1.0], [1.0, 2.0]], [None], [{}], [1j], [object()])
    for value in bad:
        with pytest.raises(
            ValueError, match=r"^a\.b is .* must be an array of numbers"
        ):
            _validate.numbers_of("a.b", value, "do this")
