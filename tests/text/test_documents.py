"""Local files: every kind reads, and whatever is wrong is placed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pruner_zero.text.corpus import load_corpus
from tests.text.refusals import line


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a.md", "A.TXT"])
def test_a_text_file_stands_as_it_is(tmp_path: Path, name: str) -> None:
    text = " = Title = \n\n\n größe\n"
    path = write(tmp_path / name, text)
    corpus = load_corpus(path)
    assert (corpus.name, corpus.text) == (str(path), text)
    assert corpus.joined == "one stream as it stands"
    assert load_corpus(str(path), "test") == corpus


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_lines_end_alike_and_a_byte_order_mark_is_no_text(tmp_path: Path, end: bytes) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone" + end + end + b"two" + end)
    assert load_corpus(path).text == "one\n\ntwo\n"


def test_jsonl_joins_its_documents_by_a_blank_line(tmp_path: Path) -> None:
    rows = '{"text": "one\u2028still one"}\n\n{"text": "two", "url": "x"}\n'
    corpus = load_corpus(write(tmp_path / "a.jsonl", rows))
    assert corpus.text == "one\u2028still one\n\ntwo"
    assert corpus.joined == r"2 documents joined by '\n\n'"


def test_parquet_reads_its_text_column_or_its_only_string_column(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", url=["x", "y", "z"], text=["one", None, "two"])
    assert load_corpus(path).text == "one\n\ntwo"
    path = parquet(tmp_path / "b.parquet", id=[1, 2], sentence=["one", "two"])
    assert load_corpus(path).text == "one\n\ntwo"


def test_parquet_reads_large_strings_in_a_partitioned_folder(tmp_path: Path) -> None:
    (tmp_path / "lang=en").mkdir()
    path = tmp_path / "lang=en" / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["one"], pa.large_string())}), path)
    assert load_corpus(path).text == "one"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{oops", "is not JSON (Expecting property name enclosed in double quotes, column 2)"),
        ("[1]", 'is not a JSON object: write it as {"text": ...}'),
        ('{"a": 1, "b": 2}', "has no key 'text': rename one of its keys (a, b)"),
        ("{}", "has no key 'text': rename one of its keys (none)"),
        ('{"text": 3}', "'text' is int, not a string"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_its_number(tmp_path: Path, row: str, complaint: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one"}\n\n' + row)
    text = line(path)
    assert f"{path}, line 3" in text
    assert complaint in text


def test_a_bad_parquet_file_is_refused(tmp_path: Path) -> None:
    assert "is not a readable parquet file" in line(write(tmp_path / "a.parquet", "no parquet"))
    path = parquet(tmp_path / "b.parquet", title=["x"], body=["y"], id=[1])
    assert "no string column 'text': rename one of its string columns (title, body)" in line(path)
    assert "(none)" in line(parquet(tmp_path / "c.parquet", text=[1]))


def test_text_that_is_not_utf8_or_holds_a_nul_names_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfgr\xf6\xdfe")
    assert line(path) == f"{path} is not UTF-8 at byte 5: convert it to UTF-8"
    path = write(tmp_path / "a.txt", "words".encode("utf-16-le"))
    assert line(path) == f"{path} is no text, with a NUL at byte 1: convert it to UTF-8"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        assert "is empty" in line(write(tmp_path / name, "\n"))
    assert "is empty" in line(parquet(tmp_path / "a.parquet", text=pa.array([], pa.string())))


def test_a_folder_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    assert line(tmp_path) == f"{tmp_path} is a folder: name one file in it"
    text = line(write(tmp_path / "a.pdf", "words"))
    assert "unknown suffix '.pdf'" in text
    assert ".txt, .raw, .md, .jsonl, .parquet" in text


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    path = write(tmp_path / "a.txt", "words")
    assert line(path) == f"{path} cannot be read: Permission denied"
