"""When a device fails in the middle of a run: what is saved, and a sentence.

A lost device takes along the arrays on it. What a run holds of its last whole step is
saved where it can still be read; otherwise the newest checkpoint stands, untouched.

Example::

    with device_loss.explained(saver, 'round', lambda: last):
        for number in range(first, total):
            state = step(state)
            last = number + 1, state
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from trustml import checkpoint

# Of the runtime's errors, those that the program is not to blame for.
_STATUSES = ("UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "DATA_LOSS", "ABORTED")


class DeviceError(RuntimeError):
    """A device, or the runtime on it, failed; the text says what is left."""


@contextlib.contextmanager
def explained(
    saver: checkpoint.Checkpointer,
    unit: str,
    last: Callable[[], tuple[int, Any] | None],
) -> Iterator[None]:
    """Saves the last whole step where a device fails, and says how to go on.

    Args:
      saver: of the run.
      unit: of its steps, 'round' or 'step'.
      last: () -> (steps done, state after them), or None where nothing is whole but
        what is on disk. The state must not have been donated.

    Raises:
      DeviceError: in place of a `jax.errors.JaxRuntimeError` of a device or for want
        of memory; others are bugs and stay as they are.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())[:300]
        if not text.startswith(_STATUSES) or "callback" in text.lower():
            raise  # a bug; it keeps its traceback
        whole = _saved(saver, last())
        where = f"what there is after {unit} {whole} is saved"
        cure = "run the same command again, which goes on from there"
        if "RESOURCE_EXHAUSTED" in text:
            cure = f"free memory, or take fewer examples at once, and {cure}"
        raise DeviceError(f"a device failed: {text}; {where}; {cure}.") from error


def _saved(saver, last) -> int:
    """Steps that the newest checkpoint holds, `last` among them if it can be read."""
    there = saver.steps()
    if last is not None and last[0] not in there:
        with contextlib.suppress(jax.errors.JaxRuntimeError, OSError, RuntimeError):
            saver.save(*last)
    return max(saver.steps(), default=0)
