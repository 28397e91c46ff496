"""The header of a GGUF file, and the numbers in it that are refused."""

from pathlib import Path

import gguf
import pytest

from pruner_zero.models.gguf_header import read_header
from pruner_zero.models.load import load_model
from tests.models.gguf_file import write_gguf
from tests.models.test_gguf_file import dense_model, tokenizer_of
from tests.text.refusals import refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tokenizer = tokenizer_of("llama")
    write_gguf(dense_model("llama", len(tokenizer)), tmp_path / "x.gguf", tokenizer)
    return tmp_path / "x.gguf"


def overwrite(file: Path, key: str, value: int, size: int = 4) -> None:
    """Put another number in the place of the first of a key, in so many bytes."""
    fields = gguf.GGUFReader(file).fields
    # Before it stand the key with its length, its type and, for an array, that of its items.
    skipped = 16 if fields[key].types[0] == gguf.GGUFValueType.ARRAY else 12
    place = fields[key].offset + (0 if key.startswith("GGUF.") else skipped + len(key))
    data = bytearray(file.read_bytes())
    data[place : place + size] = value.to_bytes(size, "little")
    file.write_bytes(data)


def test_it_is_read_as_the_package_gguf_reads_it(file: Path) -> None:
    header, reader = read_header(file, "x"), gguf.GGUFReader(file)
    assert header.architecture == "llama"
    assert header.fields == {
        key: (field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    assert [
        (name, tensor.shape, tensor.type, tensor.start) for name, tensor in header.tensors.items()
    ] == [
        (each.name, tuple(reversed(each.shape)), each.tensor_type, each.data_offset)
        for each in reader.tensors
    ]


@pytest.mark.parametrize(
    ("key", "value", "size", "words"),
    [
        ("llama.block_count", 3, 4, "llama.block_count is 3, and it has tensors of 4 blocks"),
        ("llama.block_count", 2**31 - 1, 4, "and it has tensors of 4 blocks"),
        ("llama.embedding_length", 2**20, 4, "has hidden_size 1048576, more than its 39 tensors"),
        ("llama.feed_forward_length", 2**31, 4, "has intermediate_size 2147483648, more than its"),
        ("llama.attention.head_count", 0, 4, "a value in its files does not fit the others"),
        ("tokenizer.ggml.eos_token_id", 999, 4, "eos_token_id is 999, and it has 378 tokens"),
        ("tokenizer.ggml.tokens", 2**63, 8, f"damaged one (an array of {2**63} items)"),
        ("tokenizer.ggml.tokens", 3, 8, "damaged one (it has no room for what its byte"),
        ("GGUF.tensor_count", 2**40, 8, "damaged one (it has no room for what its byte"),
        ("GGUF.kv_count", 2**63, 8, "damaged one (it has no room for what its byte"),
    ],
)
def test_numbers_that_do_not_fit(key: str, value: int, size: int, words: str, file: Path) -> None:
    overwrite(file, key, value, size)
    message = refusal(lambda: load_model(file))
    assert words in message
    assert str(file) in message
