"""The commands that reproduce a result, and those that continue from it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pruner_zero.evolution.study import Study
from pruner_zero.report.results import ComparisonRun, PruneRun, RecoveryRun, Result
from pruner_zero.settings.base import STRINGS, Settings, options_of, quoted
from pruner_zero.settings.compare_settings import CLASSICS, CompareSettings
from pruner_zero.settings.prune_settings import PruneSettings
from pruner_zero.settings.recover_settings import RecoverSettings
from pruner_zero.settings.search_settings import SearchSettings
from pruner_zero.text.corpus import SOURCES

_VERBS: Mapping[type, tuple[str, type[Settings]]] = {
    Study: ("search", SearchSettings),
    PruneRun: ("prune", PruneSettings),
    RecoveryRun: ("recover", RecoverSettings),
    ComparisonRun: ("compare", CompareSettings),
}
# Their defaults depend on other settings, so that commands state them.
_STATED = frozenset({"windows", "seqlen", "update"})
# Settings of a search that the commands after it do not share.
_OF_SEARCH = ("scope",)


def repeat(result: Result) -> str | None:
    """The command that reproduces `result` at a new path beside it; None for measurements."""
    if type(result) not in _VERBS:
        return None
    path = _named(result.path)
    again = path.with_name(f"{path.stem}-again{path.suffix}")
    return command(*_VERBS[type(result)], result.settings, again)


def repeatable(result: Result) -> bool:
    """Whether all texts have names that a command can give; strings from Python have none."""
    return not any(
        value == STRINGS or (isinstance(value, dict) and STRINGS in value)
        for value in result.settings.values()
    )


def prune_with(run: Study) -> str:
    """The command that prunes the searched model with the best metric.

    Where the search judged masks alone, the text and the training that follow are those of `prune`.
    """
    path, best = _named(run.path), run.prune_options
    left_out = () if "structure" in best else ("windows", "seqlen", "update")
    settings = {name: value for name, value in _shared(run).items() if name not in left_out}
    settings |= {**best, "metric": str(run.path / "best.json")}
    return command("prune", PruneSettings, settings, path.with_name(f"{path.name}-pruned"))


def compare_with(run: Study) -> str:
    """The command that compares the best metric of a search with the classics.

    The text is that of the search where it is a built-in corpus, of which `compare` reads the test
    part; else it is the placeholder TEXT.
    """
    text = str(run.settings.get("search_text"))
    best = run.prune_options
    classics, units = CLASSICS, ""
    if structure := run.settings.get("structure"):
        units = f"@{structure}"
        classics = f"dense,magnitude{units},wanda{units}"
    settings = _shared(run) | {
        "methods": f"{classics},{quoted(best['metric'])}{units}",
        "text": text if text in SOURCES else "TEXT",
    }
    return command("compare", CompareSettings, settings, run.path / "comparison.json")


def command(verb: str, kind: type[Settings], settings: Mapping[str, Any], output: Path) -> str:
    """`pruner-zero VERB MODEL` with the fields of `kind` in `settings` that are not the default.

    settings: in JSON form. Where the command line has no option for a setting, the command is
    preceded by one that writes a settings file.
    """
    given = {
        name: settings[name]
        for name, field in kind.model_fields.items()
        if settings.get(name) not in (None, [], {})
        and (name in _STATED or settings[name] != field.get_default(call_default_factory=True))
    }
    words = ["pruner-zero", verb, str(given.pop("model", "MODEL")), *given.pop("others", ())]
    for name, option in options_of(kind).items():
        if name in given:
            words += option.words(given.pop(name))
    file = ""
    if given:
        words += ["--config", "settings.yaml"]
        written = yaml.safe_dump(given, default_flow_style=None, allow_unicode=True)
        file = f"cat > settings.yaml <<'END'\n{written}END\n"
    return file + shlex.join([*words, "-o", str(output)])


def _shared(run: Study) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name not in _OF_SEARCH}


def _named(path: Path) -> Path:
    """The path with a name at its end, which "." and ".." are not."""
    return path if path.name not in ("", "..") else path.resolve()
