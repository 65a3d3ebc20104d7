"""Checks of the numbers a sampler is made from, one sentence for each mistake."""

from trustml import _validate


def num_examples(value: int) -> int:
    """N, from 1 to 2**31 - 1."""
    size = _validate.integer_at_least("num_examples", value, 1, "load some data")
    if size >= 2**31:
        _validate.fail("num_examples", value, "must be below 2**31", "use fewer")
    return size


def mean_size(value: float) -> float:
    """Mean size m > 0, as an int where it is whole."""
    mean = _validate.positive("expected_batch_size", value, "lower the batch size")
    return int(mean) if mean.is_integer() else mean


def rate(given: float | None, mean: float, size: int, parts: int = 1) -> float:
    """The probability `given`, or that of `mean` examples from one of `parts`."""
    if given is None:
        if mean * parts > size:
            too_large(mean, size, parts)
        return mean * parts / size
    rate = _validate.positive("sample_rate", given, "it is a probability")
    if rate > 1:
        cure = "lower the batch size"
        _validate.fail("sample_rate", given, "must be at most 1", cure)
    return rate


def batch_size(value: int, size: int) -> int:
    """The size m as a whole number from 1 to N."""
    cure = "this sampler's batches have one integer size"
    batch = _validate.integer_at_least("expected_batch_size", value, 1, cure)
    if batch > size:
        too_large(value, size)
    return batch


def too_large(value: float, size: int, parts: int = 1) -> None:
    """Raises: more than there are, or than there are in one of `parts`."""
    bound = f"must be at most the {size} examples there are"
    if parts > 1:
        bound += f", over {parts} bands"
    _validate.fail("expected_batch_size", value, bound, "lower train.batch_size")
