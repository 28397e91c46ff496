"""Every option of the command line is a field of the settings with its description."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pruner_zero
from pruner_zero import PrunerZeroError
from pruner_zero.settings.base import Settings
from pruner_zero.settings.compare import CompareSettings
from pruner_zero.settings.evaluate import EvaluateSettings
from pruner_zero.settings.options import Option, options_of
from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.read import read_settings
from pruner_zero.settings.recover import RecoverSettings
from pruner_zero.settings.search import SearchSettings

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


def test_words_set_an_option_as_a_shell_would() -> None:
    options = options_of(PruneSettings)
    assert options["sparsity"].words(0.5) == ["--sparsity", "0.5"]
    assert options["refine"].words(True) == ["--refine"]
    assert options["refine"].words(False) == []
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
