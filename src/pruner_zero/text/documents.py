"""Documents read from local files; errors name the line or byte that cannot be read."""

import json
from pathlib import Path

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


def read_jsonl(path: Path) -> list[str]:
    """The string under `text` of each line's JSON object; blank lines are skipped.

    Raises PrunerZeroError with the line number where a line is not such an object.
    """
    # Not str.splitlines, which would also cut at U+2028 inside a string.
    lines = enumerate(read_stream(path).split("\n"), start=1)
    return [_text_of(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PrunerZeroError(
            f"{where} is not JSON ({error.msg}, column {error.colno}): mend or remove the line"
        ) from error
    except (ValueError, RecursionError) as error:
        # A number of more than 4300 digits, or brackets nested too deep.
        raise PrunerZeroError(
            f"{where} holds a number too long or brackets too deep: mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise PrunerZeroError(f'{where} is not a JSON object: write it as {{"{_KEY}": ...}}')
    if _KEY not in row:
        raise PrunerZeroError(
            f"{where} has no key '{_KEY}': rename one of its keys ({', '.join(row) or 'none'})"
        )
    text = row[_KEY]
    if not isinstance(text, str):
        raise PrunerZeroError(f"{where}: '{_KEY}' is {type(text).__name__}, not a string: mend it")
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
