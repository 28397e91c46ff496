"""Files of an unfinished run that were torn or in which a bit has flipped.

What is damaged is refused in one line or computed again; either way no result is another one.
"""

import random
import shutil
from pathlib import Path

import pytest

from tests.faults.conftest import Tried, Whole
from tests.faults.verbs import VERBS, Verb, halted, one_line, run

DAMAGES = {
    "flipped": lambda data, place: (
        data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]
    ),
    "torn": lambda data, place: data[: place // 8],
}
FEW = [pytest.param(2, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)]
# Of a model whose weights changed: its key is another, or it can no longer be read as a model.
REFUSALS = ("other settings", "damaged", "NaN", "cannot be loaded", "lacks", "has the shape")
every_damage = pytest.mark.parametrize("damage", DAMAGES)


def stop(verb: Verb, folder: Path) -> None:
    """Leave an unfinished run of `verb` in a new folder, killed in the middle."""
    halted(verb, folder, lines=3).kill()


def hit(files: list[Path], damage: str, generator: random.Random) -> Path:
    """Damage one of `files` at a random place; which one."""
    file = generator.choice([one for one in sorted(files) if one.stat().st_size])
    data = file.read_bytes()
    file.write_bytes(DAMAGES[damage](data, generator.randrange(8 * len(data))))
    return file


def same_or_refused(verb: Verb, folder: Path, whole: Whole, told: object) -> str:
    """The line that refuses to go on, "" where the result came out the same."""
    outcome = run(*verb.arguments(folder))
    if outcome.code:
        return one_line(outcome)
    assert verb.result(folder) == whole.result, told
    return ""


@pytest.mark.fault(
    "a bit flipped in, or the end torn off, a journal or checkpoint",
    "one line that names the file, or computed again; never another result",
)
@pytest.mark.usefixtures("forks")
@every_damage
@pytest.mark.parametrize("times", FEW)
@pytest.mark.parametrize("verb", VERBS, indirect=True)
def test_an_unfinished_run(
    verb: Verb,
    times: int,
    damage: str,
    whole: Whole,
    generator: random.Random,
    tried: Tried,
    tmp_path: Path,
) -> None:
    stop(verb, tmp_path / "stopped")
    for number in range(times):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "stopped", folder)
        kept = [one for one in folder.rglob("*") if one.suffix in (".jsonl", ".safetensors")]
        file = hit(kept, damage, generator)
        line = same_or_refused(verb, folder, whole, file)
        assert not line or "is damaged: " in line or "other settings" in line, line
    tried(times)


@pytest.mark.fault(
    "a bit flipped in, or the end torn off, a file of the statistics cache",
    "the statistics are collected again; the same result",
)
@every_damage
@pytest.mark.parametrize("times", FEW)
@pytest.mark.parametrize("verb", ["search", "gradients"], indirect=True)
def test_the_cache(
    verb: Verb,
    times: int,
    damage: str,
    whole: Whole,
    generator: random.Random,
    tried: Tried,
    tmp_path: Path,
) -> None:
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        cache = shutil.copytree(whole.folder / "cache", folder / "cache")
        file = hit([one for one in cache.rglob("*") if one.is_file()], damage, generator)
        assert same_or_refused(verb, folder, whole, file) == ""
    tried(times)


@pytest.mark.fault(
    "a bit flipped in, or the end torn off, the model's weights while a run is unfinished",
    "one line; the run never goes on with other weights than it began with",
)
@pytest.mark.usefixtures("forks")
@every_damage
@pytest.mark.parametrize("times", FEW)
@pytest.mark.parametrize("name", VERBS)
def test_the_model(
    name: str,
    times: int,
    damage: str,
    models: dict[str, Path],
    text_file: Path,
    generator: random.Random,
    tried: Tried,
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models["pruned" if name == "recover" else "dense"], model)
    verb = VERBS[name](model, text_file)
    stop(verb, tmp_path / "run")
    weights = model / "model.safetensors"
    good, before = weights.read_bytes(), verb.progress(tmp_path / "run")
    for _ in range(times):
        hit([weights], damage, generator)
        if name == "gradients":
            # Nothing is pruned yet, so what was begun gives way, under a key of its own.
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
            outcome = run(*verb.arguments(tmp_path / "copy"))
            assert "going on" not in outcome.err
            shutil.rmtree(tmp_path / "copy")
        else:
            line = one_line(run(*verb.arguments(tmp_path / "run")))
            assert any(word in line for word in REFUSALS), line
        weights.write_bytes(good)
        assert verb.progress(tmp_path / "run") == before
    tried(times)
