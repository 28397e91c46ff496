"""Bars on a terminal, of steps inside steps too, whatever version of rich draws them."""

import re
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

from pruner_zero.cli.terminal import BarProgress
from pruner_zero.progress import note, reported_to, track


@pytest.fixture
def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=80)


def shown(terminal: Console) -> str:
    """All that was written, without colours and movements of the cursor."""
    assert isinstance(terminal.file, StringIO)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", terminal.file.getvalue())


def test_a_step_inside_a_step_has_a_bar_below(terminal: Console) -> None:
    seen = []
    with reported_to(BarProgress(terminal)):
        for block in track(range(2), "race of masks"):
            seen.append((block, list(track(iter("abc"), "scores", 3))))
            note(f"[remark] {block}")
    assert seen == [(0, ["a", "b", "c"]), (1, ["a", "b", "c"])]
    for block in range(2):
        assert re.search(rf"race of masks .* {block}/2 .*\n.*scores .* 0/3 ", shown(terminal))
        assert f"[remark] {block}\n" in shown(terminal)


@pytest.mark.parametrize("fails", [False, True])
def test_bars_of_a_step_that_ends_early_are_closed(fails: bool, terminal: Console) -> None:
    with reported_to(BarProgress(terminal)):
        with suppress(ZeroDivisionError):
            for step in track(range(3), "ended"):
                for _ in track(range(3), "inner"):
                    assert not fails or 1 / step
                    break
                break
        before = shown(terminal)
        assert list(track(range(2), "next")) == [0, 1]
    assert re.search(r"ended .* 0/3 .*\n.*inner .* 0/3 ", before)
    after = shown(terminal).removeprefix(before)
    assert re.search("next .* 0/2 ", after)
    assert not re.search("ended|inner", after)


def test_a_step_of_unknown_length_has_a_bar(terminal: Console) -> None:
    with reported_to(BarProgress(terminal)):
        assert list(track(iter("ab"), "rows")) == ["a", "b"]
    assert "rows" in shown(terminal)
