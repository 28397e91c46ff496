"""Documents read from local files; errors name the line or byte that cannot be read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pruner_zero.errors import PrunerZeroError

STREAMS = (".txt", ".raw", ".md")
SUFFIXES = (*STREAMS, ".jsonl", ".parquet")
# The key, or the column, of the documents.
_KEY = "text"


def read_stream(path: Path) -> str:
    """The UTF-8 text of `path`, without a byte order mark and with lines that end in "\\n".

    Line ends are converted so that the same text gives the same tokens, whatever system wrote
    it. Raises PrunerZeroError where the file cannot be read, is not UTF-8 or holds a NUL byte, as
    binary files and UTF-16 do.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise PrunerZeroError(
            f"{path} is not UTF-8 at byte {error.start}: convert it to UTF-8"
        ) from error
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise PrunerZeroError(
            f"{path} is no text, with a NUL at byte {data.index(0)}: convert it to UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The place and the JSON value of each line of `path`; blank lines are skipped.

    Raises PrunerZeroError, naming the line, where one is not JSON.
    """
    # Not str.splitlines, which would also cut at U+2028 inside a string.
    for number, line in enumerate(read_stream(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, read_json(line, place)


def read_json(text: str, place: str) -> Any:
    """The JSON value that `text` is. Raises PrunerZeroError, naming the `place`, for other text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise PrunerZeroError(
            f"{place} is not JSON ({error.msg}, {line}column {error.colno}): mend or remove it"
        ) from error
    except (ValueError, RecursionError) as error:
        # A number of more than 4300 digits, or brackets nested too deep.
        raise PrunerZeroError(
            f"{place} holds a number too long or brackets too deep: mend or remove it"
        ) from error


def read_jsonl(path: Path) -> list[str]:
    """The string under `text` of each line's JSON object; blank lines are skipped.

    Raises PrunerZeroError with the line number where a line is not such an object.
    """
    return [_text_of(row, place) for place, row in json_lines(path)]


def _text_of(row: Any, place: str) -> str:
    if not isinstance(row, dict):
        raise PrunerZeroError(f'{place} is not a JSON object: write it as {{"{_KEY}": ...}}')
    if _KEY not in row:
        raise PrunerZeroError(
            f"{place} has no key '{_KEY}': rename one of its keys ({', '.join(row) or 'none'})"
        )
    text = row[_KEY]
    if not isinstance(text, str):
        raise PrunerZeroError(f"{place}: '{_KEY}' is {type(text).__name__}, not a string: mend it")
    return text


def read_parquet(path: Path) -> list[str]:
    """The strings of column `text`, or of the only string column; nulls are skipped.

    Raises PrunerZeroError where `pyarrow` is missing, the file is not parquet, or no column
    can be chosen.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise PrunerZeroError(
            f"{path} needs pyarrow: pip install pyarrow, or convert the file to .jsonl"
        ) from error
    try:
        # Opened here: given a path, pyarrow would read `key=value` folders as columns.
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            strings = [field.name for field in parquet.schema_arrow if _is_string(field.type)]
            columns = [_KEY] if _KEY in strings else strings
            if len(columns) != 1:
                raise PrunerZeroError(
                    f"{path} has no string column '{_KEY}': "
                    f"rename one of its string columns ({', '.join(strings) or 'none'})"
                )
            texts = parquet.read(columns=columns).column(columns[0]).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PrunerZeroError(
            f"{path} is not a readable parquet file: write it anew, or use .jsonl"
        ) from error
    except OSError as error:
        raise PrunerZeroError(f"{path} cannot be read: {error.strerror or error}") from error
    return [text for text in texts if text is not None]


def _is_string(dtype: object) -> bool:
    from pyarrow import types

    return bool(types.is_string(dtype) or types.is_large_string(dtype))
