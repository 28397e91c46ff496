"""What the options of `prune` and the model at hand make the recipe."""

from pathlib import Path
from typing import Any

import pytest

from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.default import EVOLVED, IN_ROWS, PRICED
from pruner_zero.pruning.planning import plan_recipe, read_recipe
from pruner_zero.pruning.recipe import Recipe
from tests.pruning.conftest import language_model

MODEL = language_model("llama")
PYDOC: dict[str, Any] = {"calibration": "builtin:pydoc"}
WANDA: dict[str, Any] = {"metric": "wanda"}
TOKENS: dict[str, Any] = {"structure": "vocabulary", "sparsity": 0.1}
FISHER = "sqrt(F) * column_normalize(W)"
# A third of the channels of a tiny model can go.
CHANNELS: dict[str, Any] = {"structure": "channels", "sparsity": 0.3}
NO_MORE = (0, 0, None)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a wide one."""
    monkeypatch.setattr("pruner_zero.models.matrices.MANY_INPUTS", 32)


def planned(metric: str | Metric | None = None, calibration: Any = None, **settings: Any) -> Recipe:
    """The recipe for a tiny LLaMA, at 50 % where no option says how much."""
    if "pattern" not in settings:
        settings.setdefault("sparsity", 0.5)
    return plan_recipe(*read_recipe("some", metric, calibration, None, settings), MODEL)


def after(recipe: Recipe) -> tuple[int, int, str | None]:
    """What follows the masks: passes, steps of distillation, the update of a matrix."""
    return recipe.reconstruct, recipe.distill, recipe.update.name if recipe.update else None


def entries(recipe: Recipe) -> list[tuple[str, str]]:
    return [(str(entry.metric.expression), str(entry.pattern)) for entry in recipe.entries]


def shape(recipe: Recipe) -> tuple[int, int] | None:
    return (recipe.text.windows, recipe.text.seqlen) if recipe.text else None


@pytest.mark.parametrize(
    ("options", "windows", "seqlen"),
    [
        ({}, 192, 256),
        ({"seqlen": 256}, 192, 256),
        ({"seqlen": 1024}, 48, 1024),
        ({"windows": 8}, 8, 256),
        ({"windows": 8, "seqlen": 64}, 8, 64),
        ({"seqlen": 100_000}, 1, 100_000),
        ({"calibration": "self"}, 192, 256),
        ({"calibration": {"self": 2.0}}, 192, 256),
        ({"calibration": {"self:chat": 1.0, "self:documents": 1.0}}, 192, 256),
        ({"calibration": "self", **WANDA}, 96, 256),
        ({"calibration": "self", **WANDA, "seqlen": 256}, 96, 256),
        (CHANNELS, 384, 256),
        (PYDOC, 48, 1024),
        ({**PYDOC, "seqlen": 1024}, 48, 1024),
        ({**PYDOC, **WANDA}, 24, 1024),
        ({**PYDOC, **WANDA, "seqlen": 1024}, 24, 1024),
        ({**PYDOC, **WANDA, "seqlen": 256}, 96, 256),
        ({"calibration": {"builtin:pydoc": 1.0, "self": 1.0}}, 48, 1024),
        ({**TOKENS, **PYDOC}, 192, 256),
        ({**TOKENS, **PYDOC, "seqlen": 256}, 192, 256),
        ({**TOKENS, **PYDOC, "seqlen": 512}, 96, 512),
        (TOKENS, 192, 256),
    ],
    ids=str,
)
def test_windows_follow_from_tokens(options: dict[str, Any], windows: int, seqlen: int) -> None:
    """A window of another length, or of the length that it has anyway, leaves their number."""
    assert shape(planned(**options)) == (windows, seqlen)


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, 384),
        ({"seqlen": 1024}, 96),
        (PYDOC, 96),
        ({"windows": 8}, 8),
        (CHANNELS, 384),
        (WANDA, 96),
    ],
    ids=str,
)
@pytest.mark.usefixtures("wide")
def test_wide_matrices_get_more_text(options: dict[str, Any], windows: int) -> None:
    text = planned(**options).text
    assert text is not None
    assert text.windows == windows


def test_masks_of_weights_alone_need_no_text() -> None:
    assert planned("magnitude").text is None
    assert planned("magnitude", distill=2).text is not None


HALF, GLOBAL = "50% per row", "50% global"
EVOLVED_TEXT = str(Metric.of(EVOLVED).expression)
PRICED_TEXT = str(Metric.of(PRICED).expression)
RACE = [(EVOLVED_TEXT, GLOBAL), (PRICED_TEXT, GLOBAL), ("W * X", HALF)]


def in_rows(pattern: str) -> list[tuple[str, str]]:
    return [(str(Metric.of(metric).expression), pattern) for metric in IN_ROWS]


@pytest.mark.parametrize(
    ("options", "masks", "follows"),
    [
        ({}, RACE, (4, 40, None)),
        ({"distill": 7, "reconstruct": 3}, RACE, (3, 7, None)),
        ({"distill": 0, "reconstruct": 0}, RACE, NO_MORE),
        ({"update": "obs"}, RACE, (4, 40, "obs")),
        ({"pattern": "2:4"}, in_rows("2:4"), (4, 40, None)),
        ({"scope": "row"}, in_rows(HALF), (4, 40, None)),
        ({"scope": "global"}, [(EVOLVED_TEXT, GLOBAL)], (4, 40, None)),
        (WANDA, [("W * X", HALF)], NO_MORE),
    ],
    ids=str,
)
def test_the_default_leaves_what_is_asked_for(
    options: dict[str, Any], masks: list[tuple[str, str]], follows: object
) -> None:
    recipe = planned(**options)
    assert entries(recipe) == masks
    assert after(recipe) == follows


@pytest.mark.parametrize(
    ("options", "follows"),
    [
        ({}, (2, 60, None)),
        ({"distill": 5}, (2, 5, None)),
        ({"reconstruct": 3}, (3, 60, None)),
        ({"scope": "row"}, (2, 60, None)),
        ({"pattern": "2:4"}, (2, 60, None)),
        ({"scope": "global"}, (2, 60, None)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("wide")
def test_wide_matrices_get_masks_without_gradients_of_weights_and_other_amounts(
    options: dict[str, Any], follows: object
) -> None:
    recipe = planned(**options)
    assert after(recipe) == follows
    if options.get("scope") == "global":
        assert entries(recipe) == [(PRICED_TEXT, GLOBAL)]
    elif {"scope", "pattern"} & options.keys():
        assert entries(recipe) == in_rows(options.get("pattern", HALF))
    else:
        assert entries(recipe) == RACE[1:]


@pytest.mark.parametrize(
    ("structure", "chooser", "family", "follows"),
    [
        ("channels", FISHER, "llama", (1, 120, "columns")),
        ("channels,heads", FISHER, "llama", (1, 120, "columns")),
        (None, FISHER, "llama", (1, 120, "columns")),
        ("experts", None, "mixtral", NO_MORE),
        ("blocks", None, "llama", NO_MORE),
        ("vocabulary", None, "llama", NO_MORE),
    ],
)
def test_units_have_a_price_and_all_that_follows_masks_or_a_rule_alone(
    structure: str | None, chooser: str | None, family: str, follows: object
) -> None:
    is_budget = structure is None or "," in structure
    asked = {"parameters": 0.8} if is_budget else {"sparsity": 0.3}
    settings = read_recipe("some", None, None, None, {"structure": structure, **asked})
    recipe = plan_recipe(*settings, language_model(family, blocks=8))
    assert after(recipe) == follows
    assert (recipe.metric and str(recipe.metric.expression)) == chooser


@pytest.fixture
def found(tmp_path: Path) -> str:
    """The tree file of a search."""
    file = tmp_path / "best.json"
    file.write_text(Metric(Metric.of("W * G").expression, scope="global").to_json())
    return str(file)


def test_a_found_metric_has_all_that_follows_the_masks_of_the_default(found: str) -> None:
    recipe = planned(found)
    assert entries(recipe) == [("W * G", GLOBAL)]
    assert (after(recipe), shape(recipe)) == ((4, 40, None), (192, 256))
    in_python = planned(Metric.of(found))
    assert entries(in_python) == entries(recipe)
    assert (after(in_python), shape(in_python)) == (after(recipe), shape(recipe))
    assert entries(planned(found, pattern="2:4")) == [("W * G", "2:4")]
    assert after(planned(found, **CHANNELS)) == (1, 120, "columns")


@pytest.mark.parametrize(
    ("options", "follows"),
    [
        ({"update": "obs"}, (0, 0, "obs")),
        ({"update": "none"}, NO_MORE),
        ({"reconstruct": 2}, (2, 0, None)),
        ({"reconstruct": 0}, NO_MORE),
        ({"distill": 3}, (0, 3, None)),
        ({"distill": 0}, NO_MORE),
    ],
    ids=str,
)
def test_a_found_metric_with_an_option_on_what_follows_has_that_alone(
    options: dict[str, Any], follows: object, found: str
) -> None:
    assert after(planned(found, **options)) == follows
    assert shape(planned(found, **options)) == (96, 256)
