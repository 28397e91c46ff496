"""`analyze` on searches whose answer is known."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.analysis.analysis import Analysis, Share, features
from pruner_zero.analysis.analysis import analyze as analyze_study
from pruner_zero.choices import Scope
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import RUNGS
from pruner_zero.evolution.record import Record
from pruner_zero.evolution.study import Study
from pruner_zero.metric.canonical.form import canonical
from pruner_zero.metric.grammar import parse


def record(
    number: int,
    text: str = "W * X",
    results: Mapping[str, float] | None = None,
    scope: Scope = "row",
    **fields: Any,
) -> Record:
    """A candidate with these results, on the rungs up to the most expensive of them."""
    expression = parse(text)
    results = {} if results is None else results
    rung = max((RUNGS.index(name) + 1 for name in results), default=0)
    value = results[RUNGS[rung - 1]] if rung else math.inf
    return Record(
        Candidate(number, expression, scope),
        Evaluation(**{"rung": rung, "value": value, "results": results, **fields}),
        str(canonical(expression, scope)),
    )


def judged(texts: Sequence[str], losses: Sequence[float] | None = None) -> list[Record]:
    """Candidates that ran on all rungs; without `losses` the first candidate is the best."""
    losses = [float(place) for place in range(len(texts))] if losses is None else losses
    return [
        record(number, text, {"reconstruction": loss, "few": loss + 1, "all": loss + 2})
        for number, (text, loss) in enumerate(zip(texts, losses, strict=True))
    ]


def analyze(records: Sequence[Record], top: float = 0.1, **fields: Any) -> Analysis:
    """The analysis of a search that has these records."""
    return analyze_study(Study(Path("run"), {}, tuple(records), **fields), top)


def share(analysis: Analysis, name: str) -> Share:
    return next(row for row in analysis.shares if row.name == name)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 12])
def test_a_tiny_run_gives_a_sensible_answer(size: int) -> None:
    analysis = analyze(judged((["W * X", "W * G", "mms(G) * W"] * 4)[:size]))
    assert analysis.best_count == min(size, 1)
    assert analysis.best_rung is None
    assert all(math.isnan(row.low) for row in analysis.shares), "too few for an interval"
    assert json.loads(json.dumps(analysis.to_json(), allow_nan=False))["best_rung"] is None
    if size == 2:
        assert "what the best 1 (10% of all) use, beside 1 other candidates" in repr(analysis)
        assert {"name", "ratio", "low", "high"} <= set(analysis.to_pandas().columns)


def test_counts() -> None:
    records = [
        record(0, results={"reconstruction": 1.0}, seconds=1.0),
        record(1, results={"reconstruction": 0.5, "few": 3.0, "all": 4.0}, seconds=5.0),
        record(2, reason="3 of 64 scores are not finite (3 nan)", seconds=0.5),
        record(3, reason="12 of 1e6 scores are not finite (12 nan)"),
        record(4, reason="all 64 scores equal -0.5: nothing to rank by"),
        record(5, rung=1, value=1.0, same_as=0),
        record(6, rung=3, value=4.0, same_as=1, seconds=0.25),
        record(7, rung=3, value=4.0, same_as=1, seconds=0.25),
    ]
    counts = analyze(records, seconds={"all": [4.0], "reconstruction": [0.5, 0.5]}).counts
    assert (counts.candidates, counts.distinct) == (8, 2)
    assert counts.rejected == {
        "… of … scores are not finite (… nan)": 2,
        "all … scores equal …: nothing to rank by": 1,
    }
    assert counts.repeats == 3
    assert counts.ended == {"reconstruction": 1, "all": 1}
    assert counts.seconds == {"reconstruction": (2, 1.0), "all": (1, 4.0)}


@pytest.mark.parametrize("top", [0.0, 1.0, -0.1, math.nan])
def test_a_top_share_outside_0_and_1_is_refused(top: float) -> None:
    with pytest.raises(PrunerZeroError, match="between 0 and 1"):
        analyze([], top)


def test_a_planted_share_is_found() -> None:
    texts = ["W * G"] * 20 + ["W * X", "W * G", "W * X", "W * X"] * 45
    analysis = analyze(judged(texts), top=0.1)
    assert (analysis.best_rung, analysis.best_count) == ("all", 20)
    planted, absent, everywhere = (share(analysis, name) for name in ("G", "X", "W"))
    assert (planted.best, planted.others) == (20, 45)
    assert planted.ratio == pytest.approx(4)
    assert planted.low > 2
    assert (absent.best, absent.ratio) == (0, 0)
    assert (everywhere.ratio, everywhere.low, everywhere.high) == (1, 1, 1)
    assert share(analysis, "mul").feature == "operator"
    assert share(analysis, "row").feature == "scope"


def test_terminals_that_cannot_matter_do_not_count() -> None:
    facts = features(record(0, "W * X + sqr(G) - sqr(G)"))
    assert facts == {
        *(("terminal", name) for name in ("W", "X")),
        *(("operator", name) for name in ("mul", "add", "sqr", "sub")),
        ("scope", "row"),
    }


def test_the_best_candidates_are_of_the_most_expensive_rung_with_enough_of_them() -> None:
    records = judged(["W * G"] * 30) + [
        record(30 + n, results={"reconstruction": 40.0 + n, "few": 41.0 + n}) for n in range(90)
    ]
    analysis = analyze(records, top=0.1)
    assert (analysis.best_rung, analysis.best_count) == ("few", 12)
    assert share(analysis, "G").best == 12
    assert analyze(records, top=0.5).best_rung == "all"
    assert analyze(records, top=0.02).best_rung is None


def test_rungs_that_agree_and_rungs_that_do_not() -> None:
    records = [
        record(
            number,
            results={"reconstruction": number, "few": 100 - number, "all": 50 - 0.1 * number},
            scope="row" if number % 3 else "global",
        )
        for number in range(60)
    ]
    rows = {(row.cheap, row.expensive, row.among): row for row in analyze(records).agreements}
    agreeing = rows["few", "all", "all"]
    assert agreeing.n == 60
    assert agreeing.kendall == pytest.approx(1)
    assert rows["reconstruction", "all", "all"].kendall == pytest.approx(-1)
    assert rows["reconstruction", "few", "scope row"].n == 40
    assert rows["reconstruction", "few", "scope global"].n == 20
    assert rows["few", "all", "best 20"].n == 20
    assert len(rows) == 12


def test_agreement_takes_candidates_that_ran_on_both_rungs() -> None:
    """All of them have one scope, so no agreement within a scope is listed."""
    records = [*judged(["W * G"] * 5), record(5, results={"reconstruction": 0.0})]
    rows = analyze(records).agreements
    assert {(agreement.n, agreement.among) for agreement in rows} == {(5, "all")}
