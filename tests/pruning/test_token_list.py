"""`prune --list`: the tokens that a model expects most, as a file, and nothing else."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.pruning.prune import plan, prune
from pruner_zero.pruning.token_list import list_tokens, read_list, shares, write_list
from pruner_zero.structure.vocabulary import Vocabulary, expected_counts
from tests.cli.conftest import Cli, cli, tree
from tests.full_disk import full_disk
from tests.processes import Forked
from tests.structure.test_tokens import TEXT, byte_level
from tests.structure.test_vocabulary import model
from tests.tiny import fingerprint

__all__ = ["cli"]

GIVEN: dict[str, Any] = {"calibration": TEXT, "windows": 8, "seqlen": 24}


def test_the_numbers_are_int32_ascending_with_all_special_tokens(tmp_path: Path) -> None:
    """The model is as it was, and nothing else is written."""
    tokenizer = byte_level()
    dense, file = model(len(tokenizer)), tmp_path / "new" / "draft.bin"
    before = fingerprint(dense)
    result = list_tokens(dense, tokenizer=tokenizer, tokens=60, list=file, **GIVEN)
    data = file.read_bytes()
    numbers = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    assert numbers == sorted(set(numbers)) == list(result.tokens)
    assert len(numbers) == 60
    assert set(numbers) <= set(range(len(tokenizer)))
    special = tokenizer.convert_tokens_to_ids(["<s>", "<end>"])
    assert {*special, dense.config.eos_token_id} <= set(numbers)
    assert fingerprint(dense) == before
    assert len(tokenizer) == result.rows == len(byte_level())
    assert tree(tmp_path) == {"new": -1, "new/draft.bin": 240}


def test_the_tensors_are_offsets_and_a_mask(tmp_path: Path) -> None:
    """As in EAGLE-3: the place of a token in the list and its offset make its number."""
    tokenizer = byte_level()
    dense, rows = model(len(tokenizer) + 8), len(tokenizer) + 8
    for name in ("draft.bin", "new/draft.safetensors"):
        list_tokens(dense, tokenizer=tokenizer, sparsity=0.8, list=tmp_path / name, **GIVEN)
    numbers = read_list(tmp_path / "draft.bin").tolist()
    assert len(numbers) == round(0.2 * rows)
    tensors = load_file(tmp_path / "new" / "draft.safetensors")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "d2t": torch.int64,
        "t2d": torch.bool,
    }
    assert [place + int(offset) for place, offset in enumerate(tensors["d2t"])] == numbers
    assert len(tensors["t2d"]) == rows
    assert [number for number in range(rows) if tensors["t2d"][number]] == numbers
    assert read_list(tmp_path / "new" / "draft.safetensors").tolist() == numbers


def test_the_highest_counts_are_listed_without_their_paths() -> None:
    """Bytes and pieces that merges pass through need not be there; a draft encodes no text."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<unused0>", "<unused1>"], special_tokens=True)
    rows = len(tokenizer) + 8
    dense = LanguageModel(model(rows), tokenizer, "dense")
    counts = torch.rand(rows, generator=torch.Generator().manual_seed(0))
    unused = tokenizer.convert_tokens_to_ids(["<unused0>", "<unused1>"])
    windows = torch.tensor([[1, 2, unused[1]]])
    kept = tokenizer(" quicker", add_special_tokens=False)["input_ids"]
    cut = Vocabulary(0.0, tokens=40, words=("quicker",))
    listed = cut.listed(dense, windows, counts)
    always = {*tokenizer.convert_tokens_to_ids(["<s>", "<end>"]), 300, unused[1], *kept}
    always |= set(tokenizer("quicker", add_special_tokens=False)["input_ids"])
    assert always <= set(listed)
    assert unused[0] not in listed
    others = [n for n in range(len(tokenizer)) if n not in always and n not in unused]
    best = sorted(others, key=lambda n: -float(counts[n]))[: 40 - len(always)]
    assert listed == tuple(sorted([*always, *best]))
    # Of equal counts the lowest numbers.
    assert max(cut.listed(dense, windows, torch.zeros(rows))[:20]) < 40


def test_what_is_covered_is_counted_on_held_out_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    dense = LanguageModel(model(len(tokenizer)), tokenizer, "dense")
    windows = torch.randint(len(tokenizer), (3, 10), generator=torch.Generator().manual_seed(1))
    listed = [0, 5, *range(60, 300)]
    covered, likeliest = shares(dense, windows, listed)
    inside = [int(token) in listed for window in windows for token in window[1:]]
    assert covered == pytest.approx(sum(inside) / len(inside))
    best = [int(n) for window in windows for n in dense.model(window[None]).logits[0].argmax(-1)]
    assert likeliest == pytest.approx(sum(n in listed for n in best) / len(best))
    counts = expected_counts(dense, windows, likeliest=True)
    assert counts.tolist() == [best.count(n) for n in range(len(tokenizer))]
    # The last eighth of the text is held out: here it is a single token, again and again.
    text = ["the quick brown fox " * 70 + "z" * 200]
    [last] = tokenizer("z", add_special_tokens=False)["input_ids"]
    given = {**GIVEN, "calibration": text, "list": tmp_path / "draft.bin", "overwrite": True}
    for size in (20, 370):
        result = list_tokens(dense, tokens=size, **given)
        assert result.covered == (last in result.tokens)
    assert result.covered
    assert f"{result.covered:.2%} of the tokens" in str(result)
    assert result.to_json()["tokens"] == 370


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": 378}, "a list of 378 of 378 tokens: choose --tokens from 3, .* to 377"),
        ({"tokens": 400}, "a list of 400 of 378 tokens"),
        ({"tokens": 2}, "a list of 2 of 378 tokens: choose --tokens from 3"),
        ({}, "needs either --sparsity"),
        ({"parameters": "0.5"}, "leave out --parameters"),
        ({"tokens": 90, "distill": 3}, "leave out --distill"),
        ({"tokens": 90, "metric": "wanda"}, "vocabulary takes no metric"),
        ({"tokens": 90, "structure": "blocks"}, "--tokens has no effect without --structure voc"),
        ({"sparsity": 0.5, "structure": "blocks"}, "--list has no effect without --structure voc"),
        ({"tokens": 90, "list": None}, "give the file of the tokens as --list"),
        ({"tokens": 90, "windows": 1}, "gets none of 0 windows: choose a larger --windows"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    tokenizer = byte_level()
    given = {**GIVEN, "list": tmp_path / "draft.bin", **settings}
    with pytest.raises(PrunerZeroError, match=words):
        list_tokens(model(len(tokenizer)), tokenizer=tokenizer, **given)
    assert tree(tmp_path) == {}


def test_a_file_is_replaced_where_it_is_a_list_and_that_is_asked_for(tmp_path: Path) -> None:
    tokenizer = byte_level()
    dense, file = model(len(tokenizer)), tmp_path / "draft.bin"
    given: dict[str, Any] = {**GIVEN, "tokenizer": tokenizer, "list": file}
    list_tokens(dense, tokens=50, **given)
    with pytest.raises(PrunerZeroError, match=r"exists: choose another file, or add --overwrite"):
        list_tokens(dense, tokens=60, **given)
    list_tokens(dense, tokens=60, overwrite=True, **given)
    assert len(read_list(file)) == 60
    others = {"empty": b"", "odd.bin": b"\0\0\0\0\1\0\0\0\2", "two": b"\1" * 8}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "folder").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in (*others, "model.safetensors"):
        with pytest.raises(PrunerZeroError, match="is no list of tokens: choose another file"):
            list_tokens(dense, tokens=60, overwrite=True, **{**given, "list": tmp_path / name})
    for place, words in {
        "folder": "is a folder: name a file as --list",
        "two/draft.bin": "two is not a folder: choose another place",
    }.items():
        with pytest.raises(PrunerZeroError, match=words):
            list_tokens(dense, tokens=60, overwrite=True, **{**given, "list": tmp_path / place})
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_the_command_writes_the_list_alone(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "draft.bin"
    size: list[object] = ["--structure", "vocabulary", "--tokens", 100]
    text = ["--calibration", text_file, "--windows", 3, "--seqlen", 16]
    base = ["prune", llama_folder, *size, *text, "--list", file]
    assert "leave out --output" in cli(*base, "-o", tmp_path / "out").last_error
    assert "leave out --dry-run" in cli(*base, "--dry-run").last_error
    outcome = cli(*base, "--quiet")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{file}: 100 of 257 tokens; on held-out text they are ")
    assert tree(tmp_path) == {"draft.bin": 400}
    assert "exists: choose another file" in cli(*base).error
    config = tmp_path / "settings.yaml"
    config.write_text(f"list: {tmp_path / 'again.safetensors'}\n")
    assert cli(*base[:-2], "--config", config, "--json").code == 0
    assert read_list(tmp_path / "again.safetensors").tolist() == read_list(file).tolist()


def test_prune_and_plan_name_the_function(llama_folder: Path, tmp_path: Path) -> None:
    for function in (prune, plan):
        with pytest.raises(PrunerZeroError, match="or call list_tokens"):
            function(llama_folder, structure="vocabulary", tokens=90, list=tmp_path / "draft.bin")


@pytest.mark.fault("the disk is full, read-only or a mount point at a known write")
@pytest.mark.parametrize("name", ["draft.bin", "draft.safetensors"])
def test_a_full_disk_leaves_no_half_of_a_list(name: str, tmp_path: Path) -> None:
    write_list(tmp_path / name, range(10), 900)
    before = (tmp_path / name).read_bytes()
    with full_disk(500), pytest.raises(PrunerZeroError, match="no space left"):
        write_list(tmp_path / name, range(800), 900)
    assert (tmp_path / name).read_bytes() == before
    assert len(tree(tmp_path)) == 1


@pytest.mark.usefixtures("forks")
def test_a_kill_leaves_no_half_of_a_list_and_the_same_command_ends_with_the_same_bytes(
    llama_folder: Path, tmp_path: Path
) -> None:
    def command(name: str) -> tuple[object, ...]:
        sizes = ("--tokens", 100, "--windows", 40, "--seqlen", 32, "--cache", tmp_path / "cache")
        place = ("--list", tmp_path / name / "draft.bin")
        return ("prune", llama_folder, "--structure", "vocabulary", *sizes, *place)

    start = time.perf_counter()
    whole = Forked(*command("whole"), log=tmp_path / "log")
    assert whole.end() == 0, whole.err.read_text()
    seconds = time.perf_counter() - start
    bytes_of_all = (tmp_path / "whole" / "draft.bin").read_bytes()
    for share in (0.2, 0.5, 0.8):
        process = Forked(*command("killed"), log=tmp_path / "log")
        time.sleep(share * seconds)
        process.kill()
        file = tmp_path / "killed" / "draft.bin"
        assert not file.exists() or file.read_bytes() == bytes_of_all
        file.unlink(missing_ok=True)
    last = Forked(*command("killed"), log=tmp_path / "log")
    assert last.end() == 0, last.err.read_text()
    assert (tmp_path / "killed" / "draft.bin").read_bytes() == bytes_of_all
