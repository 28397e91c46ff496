"""Keeping the output of transformers off the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO


@contextmanager
def quiet() -> Iterator[StringIO]:
    """Keep the bars and advice of transformers off the terminal; its errors still come through.

    Yields what is written to stderr in its place.
    """
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()) as written:
            yield written
    finally:
        library.setLevel(level)
