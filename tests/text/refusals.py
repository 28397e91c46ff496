"""The one line that a refused call shows its user."""

from collections.abc import Callable

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.text.corpus import load_corpus


def refusal(action: Callable[[], object]) -> str:
    """The message of the PrunerZeroError that `action` raises: a single line."""
    with pytest.raises(PrunerZeroError) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message
    return message


def line(source: object, **options: str) -> str:
    """The line that refuses `source` as a corpus."""
    return refusal(lambda: load_corpus(source, **options))  # type: ignore[arg-type]
