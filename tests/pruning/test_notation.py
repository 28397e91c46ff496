"""Methods as users write them: a metric, its comparison group, an update."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.matrix import sweeps
from pruner_zero.pruning.notation import parse_recipe, split_methods
from pruner_zero.pruning.recipe import Order, Recipe
from pruner_zero.sparsity.least_squares import COLUMNS
from pruner_zero.sparsity.sweep import OBS
from pruner_zero.sparsity.update import Update, Updated
from pruner_zero.structure.blocks import Blocks
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.experts import Experts
from pruner_zero.structure.units import EqualWidths
from tests.pruning.conftest import recipe_of

CHANNELS = EqualWidths(0.25, "channels")


def expression_of(recipe: Recipe) -> str:
    """The expression of the metric of the masks."""
    assert recipe.metric is not None
    return str(recipe.metric.expression)


def scope_of(text: str, **options: Any) -> str | None:
    """The comparison group of the weights of a recipe."""
    pattern = recipe_of(text, **options).pattern
    assert pattern is not None
    return pattern.scope


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(PrunerZeroError) as raised:
        parse_recipe(text, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_scope_comes_from_the_text_then_the_setting_then_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(
        '{"data": "mul", "left": {"data": "W"}, "right": {"data": "G"}, "scope": "matrix"}'
    )
    assert scope_of("wanda", sparsity=0.5) == "row"
    assert scope_of(str(file), sparsity=0.5) == "matrix"
    assert scope_of(str(file), sparsity=0.5, scope="block") == "block"
    assert scope_of(f"{file}@global", sparsity=0.5, scope="block") == "global"
    assert scope_of(str(file), pattern="2:4") is None


def test_a_folder_of_a_tree_file_may_have_an_at_in_its_name(tmp_path: Path) -> None:
    tree = tmp_path / "a@b" / "tree.json"
    tree.parent.mkdir()
    tree.write_text(json.dumps({**Metric.of("wanda").to_tree(), "scope": "matrix"}))
    assert expression_of(parse_recipe(f"{tree}@block+obs", sparsity=0.5)) == "W * X"
    assert scope_of(f"{tree}@block+obs") == "block"
    assert scope_of(str(tree), sparsity=0.5) == "matrix"


@pytest.mark.parametrize("text", ["W" + "@" * 1_000_000 + ".json", "wanda@" + "a" * 1000 + ".json"])
def test_many_at_signs_are_refused_at_once(text: str) -> None:
    started = time.monotonic()
    assert refusal(text, sparsity=0.5)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("text", "options", "sweep"),
    [
        ("sparsegpt", {}, True),
        ("sparsegpt", {"scope": "row"}, True),
        ("sparsegpt", {"pattern": "2:4"}, True),
        ("sqr(W) / sqr(D)+obs", {}, True),
        ("sparsegpt@matrix", {}, False),
        ("wanda+obs", {}, False),
        ("sparsegpt-score", {}, False),
    ],
)
def test_the_sweep_chooses_by_formula_not_by_name(
    text: str, options: dict[str, Any], sweep: bool
) -> None:
    assert sweeps(recipe_of(text, **options)) == sweep


def test_sparsegpt_is_its_score_in_blocks_with_its_update(tmp_path: Path) -> None:
    recipe = recipe_of("sparsegpt")
    assert (scope_of("sparsegpt"), recipe.update) == ("block", OBS)
    assert recipe.metric == Metric.of("sparsegpt-score")
    file = tmp_path / "tree.json"
    file.write_text('{"data": "W", "name": "sparsegpt-score"}')
    assert not sweeps(recipe_of(f"{file}+obs"))


def test_spaces_do_not_matter() -> None:
    method = parse_recipe(" W * X @ global +obs ", sparsity=0.5)
    assert method.metric == Metric.of("W * X")
    assert (scope_of(method.name), method.update) == ("global", OBS)


@pytest.mark.parametrize(
    ("text", "option", "update"),
    [
        ("wanda", None, None),
        ("wanda + obs", None, OBS),
        ("abs(W) + X+obs", None, OBS),
        ("wanda", "obs", OBS),
        ("wanda+obs", "obs", OBS),
        ("sparsegpt", "none", None),
        ("sparsegpt+none", None, None),
        ("wanda+none", None, None),
        ("wanda@channels=0.25", None, COLUMNS),
        ("wanda@channels=0.25+none", None, None),
    ],
)
def test_the_update_comes_from_the_text_then_the_option_then_the_method(
    text: str, option: str | None, update: Update | None
) -> None:
    method = parse_recipe(text, sparsity=0.5, update=option)
    assert (method.update, method.name) == (update, text)


def test_an_update_of_the_callers_own_stands_in_the_place_of_a_name() -> None:
    own = Update("own", lambda layer: Updated(layer.weight, layer.required_mask), "as it was")
    assert parse_recipe("sparsegpt", sparsity=0.5, update=own).update is own
    assert "then: as it was" in parse_recipe("wanda", sparsity=0.5, update=own).lines()


def test_updates_that_are_unknown_or_named_twice_are_refused() -> None:
    assert refusal("wanda", sparsity=0.5, update="obss") == (
        "--update obss is unknown: did you mean 'obs'?"
    )
    assert refusal("wanda+obs", sparsity=0.5, update="none") == (
        "wanda+obs names its update: leave out --update none, or +obs"
    )
    assert refusal("wanda+obs+none", sparsity=0.5) == (
        "wanda+obs+none names two updates: keep one of them"
    )


def test_distillation_ends_the_text_of_a_method() -> None:
    method = parse_recipe(" wanda + obs +distill = 40 ", sparsity=0.5)
    assert (method.update, method.distill) == (OBS, 40)
    assert parse_recipe("wanda@channels=0.25+distill=3", sparsity=0.5).distill == 3
    assert parse_recipe("wanda", sparsity=0.5).distill == 0
    assert parse_recipe("wanda", sparsity=0.5, distill=2).distill == 2
    assert parse_recipe(method.name, sparsity=0.5, distill=40) == method
    for steps in (0, 3):
        assert refusal("wanda+distill=40", sparsity=0.5, distill=steps) == (
            f"wanda+distill=40 names +distill=40: leave it out, or --distill {steps}"
        )
    assert refusal("wanda+distill", sparsity=0.5) == (
        "wanda+distill: say how many steps of distillation, as in +distill=40"
    )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("magnitude", set()),
        ("wanda", {"X"}),
        ("pruner-zero", {"G"}),
        ("gblm", {"X", "G"}),
        ("sparsegpt-score", {"gram"}),
        ("pruner-zero+obs", {"G", "gram"}),
        ("sparsegpt", {"gram"}),
        ("wanda@channels=0.5", {"X", "gram", "tokens"}),
        ("wanda@channels=0.5+none", {"X"}),
    ],
)
def test_only_what_the_method_needs_is_collected(text: str, kinds: set[str]) -> None:
    assert parse_recipe(text, sparsity=0.5).kinds() == kinds


@pytest.mark.parametrize(
    ("text", "dense_inputs", "order"),
    [
        ("wanda", False, "one-shot"),
        ("wanda@global", False, "one-shot"),
        ("wanda+obs", False, "sequential"),
        ("wanda@global+obs", False, "sequential"),
        ("wanda@global+obs", True, "one-shot"),
        ("wanda+reconstruct=1", True, "sequential"),
        ("wanda@channels=0.25", False, "sequential"),
        ("wanda@channels=0.25+none", False, "one-shot"),
        ("block-influence@blocks=0.25", False, "one-shot"),
    ],
)
def test_blocks_go_one_by_one_where_weights_change_on_the_way(
    text: str, dense_inputs: bool, order: Order
) -> None:
    assert recipe_of(text, dense_inputs=dense_inputs).order == order


def test_either_a_share_or_a_pattern_decides_how_much() -> None:
    assert refusal("wanda") == "give either --sparsity, such as 0.5, or --pattern, such as 2:4"
    assert refusal("wanda", sparsity=0.5, pattern="2:4") == refusal("wanda")
    assert "write N:M such as 2:4, or give a share as --sparsity" in refusal("wanda", pattern="0.5")
    assert "0 < N < M" in refusal("wanda", pattern="4:4")
    assert "outside [0, 1)" in refusal("wanda", sparsity=1.0)
    assert "outside [0, 1)" in refusal("wanda", sparsity=-0.1)
    assert "0.5 for 50 %" in refusal("wanda", sparsity=50)
    assert "outside [0, 1)" in refusal("wanda", sparsity=float("nan"))


def test_groups_inside_rows_leave_no_other_scope() -> None:
    assert "leave out scope 'global'" in refusal("wanda@global", pattern="2:4")
    assert "leave out scope 'matrix'" in refusal("wanda", pattern="2:4", scope="matrix")
    assert scope_of("wanda", pattern="2:4", scope="row") is None


@pytest.mark.parametrize(
    ("text", "options", "cut", "update"),
    [
        ("W * X@channels=0.25", {"scope": "global"}, CHANNELS, COLUMNS),
        ("wanda", {"structure": "channels", "sparsity": 0.25}, CHANNELS, COLUMNS),
        ("wanda@heads", {}, EqualWidths(0.5, "heads"), COLUMNS),
        ("wanda@heads=0.5+none", {"pattern": "2:4"}, EqualWidths(0.5, "heads"), None),
        ("block-influence@blocks=.1", {}, Blocks(0.1), None),
        ("reap@experts=.25", {}, Experts(0.25), None),
        ("wanda@experts=.25", {}, Experts(0.25, by_metric=True), None),
    ],
)
def test_whole_units_stand_where_weights_would_compete(
    text: str, options: dict[str, Any], cut: Cut, update: Update | None
) -> None:
    recipe = recipe_of(text, **options)
    assert (recipe.cut, recipe.update) == (cut, update)
    assert (recipe.metric is None) == (cut.rule is not None)


def test_blocks_go_by_their_influence_at_once() -> None:
    recipe = recipe_of("block-influence@blocks=.1")
    assert recipe.kinds() == {"influence"}
    assert recipe.order == "one-shot"


def test_settings_that_do_not_go_with_whole_units_are_refused() -> None:
    def refused(text: str, **options: Any) -> str:
        return refusal(text, **{"sparsity": 0.5, **options})

    assert "which share of its units goes" in refused("wanda@heads", sparsity=None)
    assert "which share of its units goes" in refused("wanda@heads=half")
    assert "outside [0, 1)" in refused("wanda@heads=1.5")
    assert "wanda does not choose blocks" in refused("wanda@blocks")
    assert "block-influence does not choose heads" in refused("block-influence@heads")
    assert "block-influence does not choose weights" in refused("block-influence")
    assert "reap does not choose blocks" in refused("reap@blocks")
    assert "leave out @heads" in refused("wanda@heads", structure="heads")
    assert "+obs has nothing to do" in refused("wanda@heads+obs")
    assert "+obs has nothing to do" in refused("block-influence@blocks+obs")
    assert "keep one scope" in refused("wanda@heads@row")
    assert "did you mean 'heads'" in refused("wanda@head=0.5")


def test_near_names_are_named() -> None:
    assert "did you mean 'wanda'?" in refusal("wnada", sparsity=0.5)
    line = "unknown update 'obss': did you mean 'obs'?"
    for metric in ("wanda", "wanda@global", "W * G@global", "sparsegpt"):
        assert refusal(f"{metric}+obss", sparsity=0.5) == line
    assert "did you mean 'global'?" in refusal("wanda@gobal", sparsity=0.5)
    assert "unknown scope 'Global'" in refusal("wanda@Global", sparsity=0.5)
    assert "unknown scope 'owl'" in refusal("wanda@owl", sparsity=0.5)
    assert "keep one scope" in refusal("wanda@row@block", sparsity=0.5)


def test_commas_inside_parentheses_do_not_split() -> None:
    assert split_methods("dense, wanda ,max(W, G)@global,quotient(W,max(X,1))+obs") == [
        "dense",
        "wanda",
        "max(W, G)@global",
        "quotient(W,max(X,1))+obs",
    ]


def test_commas_in_double_quotes_do_not_split() -> None:
    text = 'dense,"my runs, old/best.json"+obs,max(W,G)'
    assert split_methods(text) == ["dense", "my runs, old/best.json+obs", "max(W,G)"]
    assert split_methods('"a(b.json",wanda,"c).json"') == ["a(b.json", "wanda", "c).json"]


@pytest.mark.parametrize("text", ["", "wanda,", ",wanda", "wanda,,ria", " , "])
def test_an_empty_name_in_the_list_is_refused(text: str) -> None:
    with pytest.raises(PrunerZeroError, match="an empty name in the list of methods"):
        split_methods(text)
