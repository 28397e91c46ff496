"""Settings come from YAML and keywords, and are refused in one line that names the option."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, model_validator

import pruner_zero
from pruner_zero import PrunerZeroError
from pruner_zero.settings.base import Option, Settings, options_of
from pruner_zero.settings.compare_settings import CompareSettings
from pruner_zero.settings.evaluate_settings import EvaluateSettings
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.read_settings import REMOVED, of_removed, read_settings
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.settings.search_settings import SearchSettings


class Recipe(Settings):
    """Something to set."""

    sugar: float
    eggs: Annotated[int, Field(ge=1)] = 2
    spices: tuple[str, ...] = ()
    baking_time: int | None = None

    @model_validator(mode="after")
    def _sweet_enough(self) -> "Recipe":
        if self.eggs > 10 * self.sugar:
            raise ValueError("Give more --sugar for so many --eggs")
        return self


def refusal(tmp_path: Path, yaml: str, **options: object) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml)
    with pytest.raises(PrunerZeroError) as raised:
        read_settings(Recipe, options, file)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_keywords_win_over_yaml_and_none_counts_as_not_given(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("sugar: 0.5\neggs: 3\nspices: [cinnamon, cloves]\n")
    recipe = read_settings(Recipe, {"eggs": 4, "sugar": None}, file)
    assert recipe == Recipe(sugar=0.5, eggs=4, spices=("cinnamon", "cloves"))


def test_defaults_fill_the_rest_and_nothing_changes_afterwards() -> None:
    recipe = read_settings(Recipe, {"sugar": 1})
    assert recipe.eggs == 2
    with pytest.raises(ValueError, match="frozen"):
        recipe.eggs = 3  # type: ignore[misc]


def test_an_unknown_key_names_the_near_one(tmp_path: Path) -> None:
    assert refusal(tmp_path, "suger: 1\nsugar: 1\n") == "no setting 'suger': did you mean 'sugar'?"
    assert "did you mean 'baking_time'?" in refusal(tmp_path, "sugar: 1\nbaking-time: 3\n")


def test_a_wrong_value_names_its_option_and_what_it_accepts(tmp_path: Path) -> None:
    assert refusal(tmp_path, "sugar: sweet\n").startswith("--sugar is 'sweet': input should be")
    assert "--eggs is 0: input should be greater than or equal to 1" in refusal(
        tmp_path, "sugar: 1\neggs: 0\n"
    )
    assert "--eggs is 2.5" in refusal(tmp_path, "sugar: 1\neggs: 2.5\n")
    assert "--spices is 'cloves': input should be a list" in refusal(
        tmp_path, "sugar: 1\nspices: cloves\n"
    )
    assert "--spices is 7" in refusal(tmp_path, "sugar: 1\nspices: [cloves, 7]\n")
    assert "--baking-time is 'long'" in refusal(tmp_path, "sugar: 1\nbaking_time: long\n")


def test_a_conflict_of_settings_is_named_without_listing_all_values(tmp_path: Path) -> None:
    assert refusal(tmp_path, "sugar: 0.1\n") == "give more --sugar for so many --eggs"


def test_an_endless_value_is_cut(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, f"sugar: {'x' * 10_000}\n")) < 250


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "eggs: 3\n").startswith("the setting 'sugar' is missing")


@pytest.mark.parametrize("yaml", ["- 1\n- 2\n", "just words", "3: 4\n", ""])
def test_yaml_that_holds_no_settings_is_refused(tmp_path: Path, yaml: str) -> None:
    assert "must hold settings as `name: value` lines" in refusal(tmp_path, yaml)


@pytest.mark.parametrize("yaml", ["a: [1", "a: b: c", "\t- x", "a: !!python/name:os.system ''"])
def test_broken_and_unsafe_yaml_is_refused_with_its_place(tmp_path: Path, yaml: str) -> None:
    assert "is not valid YAML" in refusal(tmp_path, yaml)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrunerZeroError, match=r"none\.yaml cannot be read: No such file"):
        read_settings(Recipe, {}, tmp_path / "none.yaml")
    with pytest.raises(PrunerZeroError, match="cannot be read: Is a directory"):
        read_settings(Recipe, {}, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"sugar: \xe9\n")
    with pytest.raises(PrunerZeroError, match="is not valid YAML"):
        read_settings(Recipe, {}, tmp_path / "latin.yaml")


VERBS = [CompareSettings, EvaluateSettings, PruneSettings, RecoverSettings, SearchSettings]
SOURCE = Path(pruner_zero.__file__).parent
MOST_PARAMETERS = 12


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(SOURCE)}: {node.name}", node


def test_no_function_has_more_than_twelve_parameters() -> None:
    counts = {
        name: len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        for name, node in functions()
    }
    large = {name for name, count in counts.items() if count > MOST_PARAMETERS}
    assert large == set()


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_every_field_is_described_in_whole_sentences(kind: type[Settings]) -> None:
    assert VERBS
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description[-1] == ".", name


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_a_dozen_options_come_first(kind: type[Settings]) -> None:
    first = [o.name for o in options_of(kind).values() if o.panel == Settings.panel]
    assert 4 <= len(first) <= 12
    assert "model" in first


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_an_unknown_keyword_is_refused_with_a_near_name(kind: type[Settings]) -> None:
    with pytest.raises(PrunerZeroError, match="no setting 'dtyp': did you mean 'dtype'"):
        read_settings(kind, {"model": "m", "dtyp": "float32"})


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_an_option_of_version_0_3_is_refused_by_name(kind: type[Settings], tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("damping: 0.1\n")
    with pytest.raises(PrunerZeroError) as raised:
        read_settings(kind, {"model": "m"}, file)
    assert str(raised.value) == "'damping' was an option of version 0.3 and is gone: leave it out"


def test_a_removed_option_names_what_takes_its_place() -> None:
    with pytest.raises(PrunerZeroError, match=r"gone: leave it out, set OMP_NUM_THREADS$"):
        read_settings(Recipe, {"sugar": 1, "threads": 2})
    assert all(of_removed(name) for name in REMOVED)


def test_words_set_an_option_as_a_shell_would() -> None:
    options = options_of(PruneSettings)
    assert options["sparsity"].words(0.5) == ["--sparsity", "0.5"]
    assert options["offload"].words(True) == ["--offload"]
    assert options["offload"].words(False) == []
    assert options["include"].words(["a", "b"]) == ["--include", "a", "--include", "b"]


def test_help_has_choices_and_default_unless_the_description_has_them() -> None:
    options: dict[str, Option] = options_of(PruneSettings)
    assert options["dtype"].full_help.endswith(
        "One of auto, float32, bfloat16, float16. [default: auto]"
    )
    assert "One of" not in options["update"].full_help
    assert "[default: the metric's own, else none]" in options["update"].full_help
    assert "Repeatable." in options["include"].full_help
    assert options["seed"].full_help.endswith("[default: 0]")
