"""Text that the model writes itself: decided by the seed, kept batch by batch, written once."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.calibration import self_text
from pruner_zero.calibration.self_text import (
    OPENINGS,
    begun_anywhere,
    describe_written,
    documents_of,
    note_written,
    repeated_shares,
    self_windows,
)
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import locked
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.load import load_model
from pruner_zero.models.sampling import sample_windows
from pruner_zero.offload.model import load_offloaded
from pruner_zero.progress import reported_to
from pruner_zero.tensor_file import TensorFile
from pruner_zero.text.mixture import SelfText
from pruner_zero.text.scripts import tokens_outside
from pruner_zero.text.token_windows import Windows
from tests.elsewhere import HERE, elsewhere
from tests.models.test_dialogue import TEMPLATE
from tests.processes import Forked
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

SEQLEN, BATCH = 12, 3
Write = Callable[..., Windows]


def language_model(architecture: str = "llama", seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny_model(architecture, seed), tiny_tokenizer(), architecture)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Has a tiny model write windows, in batches of three that are kept for this test alone."""
    monkeypatch.setattr(self_text, "BATCH_TOKENS", BATCH * SEQLEN)

    def call(windows: int, seed: int = 0, **options: Any) -> Windows:
        model = options.pop("model", None) or language_model()
        seqlen = options.pop("seqlen", SEQLEN)
        return self_windows(model, windows, seqlen, seed, **{"folder": tmp_path, **options})

    return call


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A label for each batch that is written and not only read."""
    labels: list[str] = []
    sample = sample_windows

    def count(*args: Any, **options: Any) -> torch.Tensor:
        labels.append(options["label"])
        return sample(*args, **options)

    monkeypatch.setattr(self_text, "sample_windows", count)
    return labels


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("text-*/*.safetensors"))


def test_the_seed_decides(write: Write, tmp_path: Path) -> None:
    tokens = write(4).tokens
    assert tokens.shape == (4, SEQLEN)
    assert torch.equal(tokens, write(4, folder=tmp_path / "again").tokens)
    assert not torch.equal(tokens, write(4, seed=1).tokens)


@pytest.mark.parametrize("windows", [1, BATCH, BATCH + 1])
def test_fewer_windows_are_the_first_of_more(windows: int, write: Write, tmp_path: Path) -> None:
    many = write(2 * BATCH, folder=tmp_path / "many").tokens
    assert torch.equal(write(windows).tokens, many[:windows])
    first, second = many.split(BATCH)
    assert not (first[:, 1:4] == second[:, 1:4]).all(1).any()


def test_shorter_windows_are_not_written_in_larger_batches(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "BATCH_WINDOWS", BATCH)
    write(2 * BATCH, seqlen=SEQLEN // 3)
    shapes = [TensorFile(file).read("tokens").shape for file in kept(tmp_path)]
    assert shapes == [(BATCH, SEQLEN // 3)] * 2


FAST = "pruner_zero.models.sampling.has_fast_bfloat16"


def test_text_of_another_version_of_transformers_or_dtype_is_kept_apart(
    write: Write, sampled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FAST, lambda device: False)
    fine = write(BATCH).tokens
    monkeypatch.setattr(FAST, lambda device: True)
    assert not torch.equal(write(BATCH).tokens, fine)
    assert len(sampled) == 2
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    write(1)
    assert len(sampled) == 3


@pytest.mark.parametrize("first", [1, BATCH, BATCH + 2])
def test_windows_from_a_number_on_follow_the_earlier_windows(first: int, write: Write) -> None:
    many = write(first + 4).tokens
    assert torch.equal(write(4, first=first).tokens, many[first:])


def test_text_that_was_written_is_read_again(write: Write, sampled: list[str]) -> None:
    tokens = write(BATCH + 1).tokens
    assert sampled == ["writing text 1/2", "writing text 2/2"]
    assert torch.equal(write(BATCH + 1).tokens, tokens)
    assert len(sampled) == 2
    write(2 * BATCH + 1)
    assert sampled[2:] == ["writing text 1/1"]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"seqlen": SEQLEN + 1}, {"model": language_model(seed=1)}],
    ids=["seed", "seqlen", "weights"],
)
def test_other_text_is_kept_apart(
    changes: dict[str, Any], write: Write, sampled: list[str]
) -> None:
    write(1)
    write(1, **changes)
    assert len(sampled) == 2


@pytest.mark.parametrize("damage", ["cut off", "changed", "of other windows", "no file of tensors"])
def test_a_damaged_file_is_written_again(
    damage: str, write: Write, sampled: list[str], tmp_path: Path
) -> None:
    tokens = write(2 * BATCH).tokens
    first, second = kept(tmp_path)
    content = bytearray(first.read_bytes())
    match damage:
        case "cut off":
            first.write_bytes(content[:-8])
        case "changed":
            content[-8] ^= 1
            first.write_bytes(content)
        case "of other windows":
            write(1, seqlen=SEQLEN + 1)
            [longer_file] = set(kept(tmp_path)) - {first, second}
            first.write_bytes(longer_file.read_bytes())
        case _:
            first.write_bytes(b"")
    sampled.clear()
    for _ in range(2):
        assert torch.equal(write(2 * BATCH).tokens, tokens)
        assert len(sampled) == 1


def test_two_processes_do_not_write_the_same_text(write: Write, tmp_path: Path) -> None:
    write(1)
    [file] = kept(tmp_path)
    with locked(file.parent):
        write(1)
        with pytest.raises(PrunerZeroError, match="another process is working in"):
            write(BATCH + 1)


def test_a_model_on_disk_is_read_to_memory_while_it_writes(
    write: Write, llama_folder: Path, sampled: list[str], tmp_path: Path
) -> None:
    on_disk = load_offloaded(llama_folder)
    tokens = write(2, model=on_disk).tokens
    assert not on_disk.loaded
    assert {p.dtype for p in on_disk.model.parameters()} == {torch.float32}
    assert all(parameter.isnan().all() for parameter in on_disk.model.parameters())
    in_memory = load_model(llama_folder)
    assert torch.equal(write(2, model=in_memory).tokens, tokens)
    assert len(sampled) == 1
    assert torch.equal(write(2, model=in_memory, folder=tmp_path / "again").tokens, tokens)


def test_a_model_on_disk_that_memory_has_no_room_for_reads_what_it_wrote(
    write: Write, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = load_offloaded(llama_folder)
    monkeypatch.setattr("pruner_zero.offload.model.available_bytes", lambda device: 1)
    with pytest.raises(PrunerZeroError, match="has no room for it"):
        write(2, model=on_disk)
    tokens = write(2, model=load_model(llama_folder)).tokens
    assert torch.equal(write(2, model=on_disk).tokens, tokens)


def test_a_model_elsewhere_writes_the_same_in_the_same_dtype(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FAST, lambda device: False)
    expected = write(2).tokens
    model = language_model()
    with elsewhere():
        model.model.to(HERE)
        assert torch.equal(write(2, model=model, folder=tmp_path / "there").tokens, expected)


def test_windows_longer_than_learned_positions_are_refused(write: Write) -> None:
    with pytest.raises(PrunerZeroError, match="windows of 65 tokens are longer than the 64"):
        write(1, model=language_model("gpt2"), seqlen=65)


def test_the_description_says_who_wrote_the_text(write: Write) -> None:
    windows = write(2, seed=7)
    assert windows.describe() == {
        "text": "self",
        "text_sha256": None,
        "joined": "documents that the dense model wrote from '<s>' on",
        "selection": "sampled",
        "seed": 7,
        "windows": 2,
        "seqlen": SEQLEN,
        "tokens": 2 * SEQLEN,
        "tokens_available": None,
        "tokens_sha256": windows.sha256,
        **windows.written,
    }
    assert windows.written.keys() == {"sample", "scripts", "repeated"}
    assert write(2, first=2).describe()["text"] == "self, from window 2 on"


@pytest.fixture
def not_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window begins with the first token of a document."""
    monkeypatch.setattr(self_text, "begun_anywhere", lambda tokens, *_: tokens)


def test_about_half_of_the_windows_begin_in_the_middle_and_half_of_them_after_a_token() -> None:
    tokens = torch.arange(200)[:, None] * 100 + torch.arange(16)
    rotated = begun_anywhere(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(rotated.sort(1).values, tokens)
    starts = (rotated[:, 0] % 100).tolist()
    assert 80 < starts.count(0) < 125
    assert len(set(starts)) == 16
    for row, start in zip(rotated, starts, strict=True):
        assert (row % 100).tolist() == [*range(start, 16), *range(start)]
    # Where `start` begins none of them, about a quarter of all get it.
    begun = begun_anywhere(tokens, torch.Generator().manual_seed(0), start=(-1,))
    chosen = begun[:, 0] == -1
    assert 35 < chosen.sum() < 65
    assert torch.equal(begun[chosen, 1:], rotated[chosen, :-1])
    assert torch.equal(begun[~chosen], rotated[~chosen])


def test_every_window_begins_as_the_tokenizer_begins_a_text(write: Write) -> None:
    """Those that begin in the middle follow the token; those of a document have it once."""
    model = language_model()
    bare = write(4 * BATCH, model=model).tokens
    tokenizer = tiny_tokenizer(begins=True)
    windows = write(4 * BATCH, model=replace(model, tokenizer=tokenizer))
    start = tokenizer.bos_token_id
    assert windows.start == (start,)
    assert {True, False} == set((bare[:, 0] == start).tolist())
    for expected, window in zip(bare.tolist(), windows.tokens.tolist(), strict=True):
        assert window == (expected if expected[0] == start else [start, *expected[:-1]])


def test_dialogues_stand_after_the_token_that_begins_a_document(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "STARTED", 1.0)
    start = language_model().tokenizer.bos_token_id
    dialogues = write(BATCH, seqlen=80, model=with_template(), text=SelfText("self:chat"))
    assert (dialogues.tokens[:, 0] == start).all()
    # It begins documents already.
    assert not (write(4 * BATCH).tokens[:, 0] == start).all()


def with_template() -> LanguageModel:
    model = language_model()
    model.tokenizer.chat_template = TEMPLATE
    return model


@pytest.mark.usefixtures("not_rotated")
def test_a_model_with_a_chat_template_writes_dialogues(write: Write) -> None:
    windows = write(4, seqlen=80, model=with_template(), text=SelfText("self:chat"))
    texts = language_model().tokenizer.batch_decode(windows.tokens)
    assert all(text.startswith("Be kind.<user>") for text in texts)
    begun = [next((o for o in OPENINGS if text[14:].startswith(o)), None) for text in texts]
    assert begun == [None, OPENINGS[0], None, OPENINGS[1]]
    assert windows.joined == "dialogues that the dense model wrote by its chat template"
    plain = SelfText("self:documents")
    documents = write(2, model=with_template(), text=plain).tokens
    assert torch.equal(documents, write(2, text=plain).tokens)
    assert torch.equal(documents, write(2).tokens)
    with pytest.raises(PrunerZeroError, match="llama has no chat template"):
        write(2, text=SelfText("self:chat"))


@pytest.mark.parametrize(
    ("unusual", "wanted"), [({}, "self:documents"), ({"Han": 0.5}, "self:chat")]
)
def test_self_is_dialogues_where_documents_are_in_scripts_that_the_template_lacks(
    write: Write, monkeypatch: pytest.MonkeyPatch, unusual: dict[str, float], wanted: str
) -> None:
    monkeypatch.setattr(self_text, "unusual_scripts", lambda *_: unusual)
    monkeypatch.setattr(self_text, "BATCH_WINDOWS", 2)
    windows = write(2, seqlen=80, model=with_template())
    expected = write(2, seqlen=80, model=with_template(), text=SelfText(wanted))
    assert torch.equal(windows.tokens, expected.tokens)
    assert (windows.corpus, windows.joined) == ("self", expected.joined)


@pytest.mark.usefixtures("not_rotated")
def test_every_prompt_begins_as_many_windows(write: Write) -> None:
    prompts = tuple(({"role": "user", "content": letter},) for letter in "abcdef")
    tokens = write(2 * BATCH, text=SelfText(prompts=prompts)).tokens
    first = language_model().tokenizer.batch_decode(tokens[:, :2])
    assert first == ["<s>a", "<s>c", "<s>e", "<s>b", "<s>d", "<s>f"]
    few = write(BATCH, text=SelfText(prompts=prompts[:2])).tokens[:, 1].tolist()
    assert len(set(few)) == 2


def test_a_prompt_needs_room_in_a_window(write: Write) -> None:
    prompts = (({"role": "user", "content": SEQLEN * "a"},),)
    with pytest.raises(PrunerZeroError, match=r"after 13 tokens .* --seqlen, or shorter prompts"):
        write(1, text=SelfText(prompts=prompts))


def test_scripts_are_kept_to(write: Write, sampled: list[str]) -> None:
    free, kept_to = write(BATCH), write(BATCH, text=SelfText(scripts=("Latin",)))
    tokenizer = language_model().tokenizer
    assert (tokens_outside(["Latin"], tokenizer)[:, None] != kept_to.tokens.flatten()).all()
    assert free.sha256 != kept_to.sha256
    assert len(sampled) == 2


def test_control_tokens_are_not_drawn(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    half = frozenset(range(0, 256, 2))
    monkeypatch.setattr(self_text, "control_tokens", lambda _tokenizer: half)
    monkeypatch.setattr(self_text, "end_tokens", lambda _model: frozenset({4}))
    drawn = set(write(3).tokens[:, 1:].flatten().tolist())
    assert not drawn & (half - {4, *documents_of(language_model(), SelfText())[0][0][0]})
    assert len(drawn) > 10


@pytest.mark.parametrize("varied", [[0, 1, 2], [0, 2, 3], [3, 4], []])
def test_spare_windows_take_the_place_of_those_that_repeat_themselves(
    write: Write, monkeypatch: pytest.MonkeyPatch, varied: list[int]
) -> None:
    def sample(model: Any, documents: list[Any], seqlen: int, *_: Any, **__: Any) -> torch.Tensor:
        numbers = torch.arange(len(documents))[:, None]
        return numbers * 20 + torch.arange(seqlen) * torch.isin(numbers, torch.tensor(varied))

    monkeypatch.setattr(self_text, "SPARE", 2 / 3)
    monkeypatch.setattr(self_text, "sample_windows", sample)
    repeated = [number for number in range(BATCH + 2) if number not in varied]
    wanted = sorted((varied + repeated)[:BATCH])
    assert write(BATCH).tokens[:, 0].tolist() == [number * 20 for number in wanted]


def test_a_killed_run_goes_on_after_its_last_batch(llama_folder: Path, tmp_path: Path) -> None:
    cache, windows = tmp_path / "cache", 4 * self_text.BATCH_WINDOWS
    command = [
        *("prune", llama_folder, "--metric", "wanda", "--sparsity", 0.5, "--calibration", "self"),
        *("--windows", windows, "--seqlen", 32),
        *("--cache", cache, "-o", tmp_path / "out"),
    ]
    process = Forked(*command, log=tmp_path / "log")
    deadline = time.monotonic() + 60
    while len(kept(cache)) < 1 and process.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    finished = {file: file.stat().st_mtime_ns for file in kept(cache)}
    assert 1 <= len(finished) < 4
    assert Forked(*command, log=tmp_path / "log").end() == 0
    assert {file: file.stat().st_mtime_ns for file in kept(cache)}.items() >= finished.items()
    assert len(kept(cache)) == 4
    again = self_windows(load_model(llama_folder), windows, 32, 0, folder=tmp_path / "undisturbed")
    assert again.sha256 in (tmp_path / "out" / "pruning.json").read_text()


def test_four_tokens_that_stood_before_are_repeated_but_for_pieces_of_a_template() -> None:
    windows = torch.tensor([[*range(12)], [7] * 12, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 9, 9]])
    assert repeated_shares(windows, [((0,),)]).tolist() == [0, 1 - 1 / 9, 1 - 8 / 9]
    window = torch.tensor([[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]])
    pieces = [((1, 2, 3, 4, 5), (6,))]
    assert repeated_shares(window, pieces).item() == 1 - 4 / 5
    assert repeated_shares(window[:, :3], pieces).item() == 0


def test_a_description_shows_what_the_model_wrote() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["Ask: What  is\nthis?", "Ask: 1 + 1 = 2 abcd"]
    windows = torch.tensor([tokenizer.encode(text) for text in texts])
    opening = tuple(tokenizer.encode("Ask: "))
    described = describe_written(windows, [((1, 2),), (opening,)], tokenizer)
    assert described == {"sample": "What is this?", "scripts": {"Latin": 1.0}, "repeated": 0.0}


def test_the_sample_is_of_a_window_that_begins_with_a_document() -> None:
    tokenizer = tiny_tokenizer()
    windows = [tokenizer.encode(text) for text in ("middle Ask: x", "Ask: Why is it so", "Ask: y")]
    rows = torch.tensor([window[:12] for window in windows[:2]])
    short, long = (tuple(tokenizer.encode(text)) for text in ("Ask: ", "Ask: Why"))
    assert describe_written(rows, [(short,), (long,)], tokenizer)["sample"] == "is"
    assert describe_written(rows[:1], [(short,)], tokenizer)["sample"] == "middle Ask:"


def notes(scripts: dict[str, float], text: SelfText) -> list[str]:
    progress, facts = Notes(), {"sample": "Why?", "scripts": scripts, "repeated": 0.04}
    with reported_to(progress):
        note_written(facts, tiny_tokenizer(), text)
    return progress.lines


def test_a_note_says_what_the_text_is_like() -> None:
    assert notes({"Latin": 0.98, "Han": 0.02}, SelfText()) == [
        "the model wrote text such as: Why? (letters: Latin 98%, Han 2%; 4% of it repeats itself)"
    ]


def test_a_script_that_the_template_does_not_have_is_noted_with_the_option() -> None:
    mixed = {"Latin": 0.6, "Han": 0.4}
    assert notes(mixed, SelfText())[1:] == [
        "of the letters that the model wrote, Han 40%: if the pruned model is not for that, give "
        "--scripts Latin"
    ]
    assert not notes(mixed, SelfText(scripts=("Latin", "Han")))[1:]
