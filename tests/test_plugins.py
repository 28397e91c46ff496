"""Plug-ins are found by name alone, change nothing else, and fail in one line."""

import os
import pickle
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruner_zero import plugins
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import check_settings, workers_of
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.evolution.variation import MUTATIONS
from pruner_zero.execution.executor import make_executor
from pruner_zero.metric.canonical.form import canonical, simplify_opposing
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.latex import to_latex, to_mathml
from pruner_zero.metric.metric import NAMED, Metric
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.corpus import load_corpus
from pruner_zero.text.source import SOURCES
from tests.cli.conftest import Cli, cli
from tests.suites.executors import Doubling
from tests.suites.metrics import NamedMetricSuite
from tests.suites.operators import OperatorSuite
from tests.suites.texts import TextSourceSuite

__all__ = ["cli"]

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "pruner-zero-example"

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a package on the path as an installer leaves it: a module and its metadata."""
    for registry in (OPERATORS, NAMED):
        monkeypatch.setattr(registry, "_loaded", {})
    before = set(sys.modules)

    def write(package: str, group: str, entries: dict[str, str], code: str = "") -> None:
        site = tmp_path / "site" / package
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {package}:{value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[pruner_zero.{group}]\n{lines}")
        monkeypatch.syspath_prepend(str(site))
        plugins.forget()

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("plug_"):
            del sys.modules[name]
    monkeypatch.undo()
    plugins.forget()


OPERATOR = """
from pruner_zero.metric.operators import Operator
half = Operator("half", 1, lambda x: x / 2, factor=0.5)
"""


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(PrunerZeroError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_operator_serves_wherever_it_is_named(install: Install) -> None:
    install("plug_half", "operators", {"half": "half"}, OPERATOR)
    metric = Metric.of("half(W) * X")
    weights = {"W": torch.tensor([[1.0, 4.0]]), "X": torch.tensor([[3.0, 1.0]])}
    torch.testing.assert_close(metric.score(weights), torch.tensor([[1.5, 2.0]]))
    assert Metric.of(metric.to_tree()).expression == metric.expression
    assert pickle.loads(pickle.dumps(metric)) == metric
    space = SearchSpace(operators=("mul", "half"))
    assert space.allows(metric.expression)


FACTS = """
import torch
from pruner_zero.metric.operators import Operator
from pruner_zero.metric.operators import POWER, PRODUCT
soft = Operator("soft", 1, lambda x: x / (1 + x.abs()), increasing="always", sign="keeps",
    parity="odd", latex=(r"\\frac{#1}{1 + |#1|}", POWER))
both = Operator("both", 2, torch.hypot, sign="nonnegative", degree=1, commutative=True, twins=True)
times = Operator("times", 2, lambda x, y: x * y + 1, infix=("*", PRODUCT))
lift = Operator("lift", 1, lambda x: x - x.min(), reach="matrix", increasing="always")
share = Operator("share", 1, lambda x: x / x.abs().sum(), reach="matrix", rescaling="scale")
cube = Operator("cube", 1, lambda x: x.abs() ** 3, exponent=3)
rise = Operator("rise", 1, lambda x: x * x, increasing="nonnegative")
root = Operator("root", 1, lambda x: x.abs() ** (1 / 3), exponent=1 / 3, inverse="cube")
"""


@pytest.fixture
def facts(install: Install) -> None:
    names = ("soft", "both", "times", "lift", "share", "cube", "rise", "root")
    install("plug_facts", "operators", {name: name for name in names}, FACTS)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("both(W * X, G)", "both(G, X * W)"),
        ("soft(-S) * W", "-soft(S) * W"),
        ("soft(mms(W * X))", "W * X"),
        ("rise(mms(W * X))", "W * X"),
        ("soft(W)", "W"),
        ("share(W) * X", "W * X"),
        ("share(3 * W) + G", "share(W) + G"),
        ("cube(W * X)", "W * X"),
    ],
)
def test_an_operator_that_states_its_facts_is_simplified(text: str, same: str, facts: None) -> None:
    assert canonical(parse(text), "row") == canonical(parse(same), "row")


@pytest.mark.parametrize(
    "text",
    [
        "X * lift(2.0 * W)",
        "soft(G * W * X)",
        "rise(mms(W) - 0.5)",
        "rise(-mms(W))",
        "both(G, lift(-W))",
    ],
)
def test_facts_that_an_operator_does_not_state_are_not_assumed(text: str, facts: None) -> None:
    assert canonical(parse(text), "row") == parse(text)


def test_an_operator_is_shown_as_it_says_or_as_a_call(facts: None) -> None:
    soft, both = parse("soft(S) * W"), parse("both(W, G)")
    assert (str(soft), str(both)) == ("soft(S) * W", "both(W, G)")
    # With an infix symbol too: the grammar takes the symbol for that of a built-in operator.
    assert parse(str(parse("times(W, G) * X"))) == parse("times(W, G) * X")
    assert to_latex(soft) == r"\frac{S}{1 + \left|S\right|} \cdot W"
    assert to_latex(both) == r"\operatorname{both}(W, G)"
    assert "<mfrac>" in to_mathml(soft)
    assert ">both</mtext>" in to_mathml(both)
    assert both.meanings()["both"] == "both(x, y)"


def test_an_operator_is_varied_like_a_built_in_one(facts: None) -> None:
    generator = np.random.default_rng(0)
    space = SearchSpace(operators=("mul", "power", "log", "soft", "both", "share", "cube"))
    assert OPERATORS["soft"].family == "transcendental"
    # Nested transcendental functions, a power of a power, and twins are refused.
    for text in ("soft(W * log(G))", "cube(W^0.5)", "both(W, W)"):
        assert not space.allows(parse(text))
    for text in ("soft(W) * log(G)", "cube(W^0.5 * G)", "both(W, G)", "share(soft(W)) * X"):
        assert space.allows(parse(text))
    # Exchanging the operands of what commutes is no child.
    children = {
        str(MUTATIONS[name](generator, parse("cube(W) * both(G, X)"), space))
        for name in ("operator", "exponent")
        for _ in range(100)
    }
    assert {"cube(W) * (G * X)", "log(W) * both(G, X)"} <= children
    assert any(child.startswith("W^3.") for child in children), "a cube is a power"
    assert simplify_opposing(parse("root(cube(W))")) == parse("W")


def test_a_plug_in_that_is_not_named_is_neither_listed_nor_imported(install: Install) -> None:
    before = list(OPERATORS)
    install("plug_half", "operators", {"half": "half"}, OPERATOR)
    assert list(OPERATORS) == before
    assert len(OPERATORS) == len(before)
    assert "half" not in SearchSpace().operators
    assert "half" in OPERATORS
    # Known without being imported.
    assert OPERATORS.plugged == {"half": "plug_half"}
    assert "plug_half" not in sys.modules


def test_metric_list_shows_plug_ins_with_their_package(install: Install, cli: Cli) -> None:
    install("plug_half", "operators", {"half": "half"}, OPERATOR)
    metric = "from pruner_zero.metric.metric import NamedMetric\n"
    metric += 'deep = NamedMetric("deep", "W * O", "weight times gradient", "a package")\n'
    install("plug_deep", "metrics", {"deep": "deep"}, metric)
    lines = [line.split() for line in cli("metric", "list").out.splitlines()]
    assert ["half", "plug_half", "0.5", "*", "x"] in lines
    assert ["deep", "a", "package", "W", "*", "O"] in lines
    assert "description  weight times gradient" in cli("metric", "show", "deep").out


def test_a_plug_in_that_cannot_be_used_is_one_line_that_names_its_package(
    install: Install,
) -> None:
    code = (
        "from pruner_zero.metric.operators import OPERATORS\nother = OPERATORS['abs']\nnumber = 3\n"
    )
    install("plug_good", "operators", {"other": "other", "number": "number"}, code)
    install("plug_bad", "operators", {"broken": "x"}, "raise RuntimeError('no\\nlicence')")
    assert parse("abs(W)") is not None
    assert refusal(lambda: parse("broken(W)")) == (
        "column 1: 'broken' among the operators, from the package plug_bad, cannot be imported "
        "(no licence): mend or uninstall the package"
    )
    assert "package plug_good, is not of type Operator" in refusal(lambda: parse("number(W)"))
    assert "calls itself 'abs'" in refusal(lambda: parse("other(W)"))


def test_a_name_that_is_taken_is_refused(install: Install) -> None:
    install("plug_one", "operators", {"half": "half"}, OPERATOR)
    install("plug_two", "operators", {"half": "half"}, OPERATOR)
    assert refusal(lambda: parse("half(W)")) == (
        "the packages plug_one and plug_two both add 'half' to the operators: uninstall one of them"
    )
    install("plug_three", "metrics", {"wanda": "wanda"})
    assert str(Metric.of("wanda")) == "W * X"
    assert refusal(lambda: Metric.of("wnada")).startswith(
        "the package plug_three adds 'wanda' to the metrics, a name that is built in"
    )


def test_expressions_of_built_in_names_look_for_no_plug_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(group: str) -> Any:
        raise AssertionError(f"looked for {group}")

    monkeypatch.setattr(plugins, "_entry_points", refuse)
    Metric.of("abs(W * W) * mms(G)")
    Metric.of("wanda")


def test_an_executor_is_made_with_the_settings_of_the_search(install: Install) -> None:
    code = (
        "class Mine:\n"
        "    def __init__(self, work, workers):\n"
        "        self.given = (workers.count, workers.threads, workers.time_limit)\n"
    )
    install("plug_run", "executors", {"mine": "Mine"}, code)
    settings = SearchSettings(
        model="m",
        calibration="c",
        search_text="s",
        sparsity=0.5,
        evaluations=1,
        executor="mine",
        workers=3,
        threads=2,
    )
    check_settings(settings)
    executor: Any = make_executor(settings.executor, Doubling(), workers_of(settings))
    assert executor.given == (3, 2, 600.0)


def test_the_plug_ins_of_the_example_package_work_and_conform(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SOURCES, "_loaded", {})
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    for group, entries in project["entry-points"].items():
        names = {name: value.rpartition(":")[2] for name, value in entries.items()}
        kind = group.removeprefix("pruner_zero.")
        module = f"from pruner_zero_example import {', '.join(names.values())}"
        install(f"plug_{kind}", kind, names, module)
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    assert str(Metric.of("softsign-wanda")) == "softsign(W) * X"
    assert load_corpus("counting", "test").text.startswith("20000 20001 ")
    assert "has no part 'tset': did you mean 'test'?" in refusal(
        lambda: load_corpus("counting/tset")
    )
    operator, metric, text = OperatorSuite(), NamedMetricSuite(), TextSourceSuite()
    operator.operator = OPERATORS["softsign"]
    metric.metric = NAMED["softsign-wanda"]
    text.source = SOURCES["counting"]
    for suite in (operator, metric, text):
        for name in dir(suite):
            if name.startswith("test_"):
                getattr(suite, name)()


@pytest.mark.slow
def test_the_example_package_is_installed_and_its_own_tests_pass(tmp_path: Path) -> None:
    # A copy, for building leaves files beside the sources.
    copied, target = tmp_path / "example", tmp_path / "target"
    shutil.copytree(EXAMPLE, copied)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--disable-pip-version-check", "--target"]
    subprocess.run([*pip, *options, target, copied], check=True, capture_output=True)
    paths = os.pathsep.join([str(target), str(ROOT / "src")])
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", copied / "tests"],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stdout
    assert "3 passed" in completed.stdout
