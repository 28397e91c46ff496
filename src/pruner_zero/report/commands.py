"""The commands that reproduce a result, and those that continue from it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import Study
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.report.read import ComparisonRun, PruneRun, Result
from pruner_zero.settings.base import STRINGS, Settings, quoted, read_settings
from pruner_zero.settings.calibration import CalibrationSettings, SparsitySettings
from pruner_zero.settings.compare import CLASSICS, CompareSettings
from pruner_zero.settings.model import ModelSettings
from pruner_zero.settings.options import options_of
from pruner_zero.settings.prune import PruneSettings
from pruner_zero.settings.units import SizeSettings
from pruner_zero.text.corpus import NAMES

# Settings of a search that are passed on to prune; `threads` is left out, a worker setting.
_SHARED = (
    *(ModelSettings.model_fields.keys() - {"threads"}),
    *CalibrationSettings.model_fields,
    *SparsitySettings.model_fields,
    *SizeSettings.model_fields,
)


def repeat(result: Result) -> str:
    """The command that reproduces `result` at a new path beside it, without default settings.

    Where the command line has no option for a setting, the command is preceded by one that writes
    a settings file.
    """
    path = _named(result.path)
    again = path.with_name(f"{path.stem}-again{path.suffix}")
    kinds: dict[type[Result], tuple[str, type[Settings]]] = {
        Study: ("search", SearchSettings),
        PruneRun: ("prune", PruneSettings),
        ComparisonRun: ("compare", CompareSettings),
    }
    return _command(*kinds[type(result)], result.settings, again)


def _named(path: Path) -> Path:
    """The path with a name at its end, which "." and ".." are not."""
    return path if path.name not in ("", "..") else path.resolve()


def repeatable(result: Result) -> bool:
    """Whether all texts have names that a command can give; strings from Python have none."""
    return not any(
        value == STRINGS or (isinstance(value, dict) and STRINGS in value)
        for value in result.settings.values()
    )


def prune_with(run: Study) -> str:
    """The command that prunes with the best metric of a search as the search judged it."""
    asked, path = _calibration(run) | run.prune_options, _named(run.path)
    return _command("prune", PruneSettings, asked, path.with_name(f"{path.name}-pruned"))


def compare_with(run: Study) -> str:
    """The command that compares the best metric of a search with the classics.

    The text is that of the search where it is a built-in corpus, of which `compare` reads the test
    part; else it is the placeholder TEXT.
    """
    text = str(run.settings.get("search_text"))
    best = run.prune_options
    update = f"+{best['update']}" if "update" in best else ""
    classics, units = CLASSICS, ""
    if structure := run.settings.get("structure"):
        units = f"@{structure}"
        # The update that follows without being named.
        update = "" if update == "+exact" else update
        classics = f"dense,magnitude{units}{update},wanda{units}{update}"
    asked = _calibration(run) | {
        "methods": f"{classics},{quoted(best['metric'])}{units}{update}",
        "text": text if text in NAMES else "TEXT",
    }
    return _command("compare", CompareSettings, asked, run.path / "comparison.json")


def _calibration(run: Study) -> dict[str, Any]:
    """The settings that pruning shares with the search; the comparison group is the metric's."""
    return {name: run.settings[name] for name in _SHARED if name in run.settings}


def _command(verb: str, kind: type[Settings], asked: Mapping[str, Any], output: Path) -> str:
    given = {name: value for name, value in asked.items() if name in kind.model_fields}
    for name in list(given):
        rest = {other: value for other, value in given.items() if other != name}
        if _is_default(kind, name, given[name], rest):
            given = rest
    words = ["pruner-zero", verb, str(given.pop("model", "MODEL"))]
    for name, option in options_of(kind).items():
        value = given.pop(name, None)
        words += [] if value is None else option.words(value)
    file = ""
    if given:
        words += ["--config", "settings.yaml"]
        settings = yaml.safe_dump(given, default_flow_style=None, allow_unicode=True)
        file = f"cat > settings.yaml <<'END'\n{settings}END\n"
    return file + shlex.join([*words, "-o", str(output)])


def _is_default(kind: type[Settings], name: str, value: Any, rest: Mapping[str, Any]) -> bool:
    """Whether `value`, in JSON form, is the field's default, and is read from `rest` alone too.

    Some defaults depend on other settings. False if `rest` cannot be read on this machine, which
    may lack a plug-in.
    """
    default = kind.model_fields[name].get_default(call_default_factory=True)
    if value != (list(default) if isinstance(default, tuple) else default):
        return False
    # The device of the result may be missing on this machine.
    readable = {"model": "MODEL", **rest, "device": "auto"}
    try:
        return bool(getattr(read_settings(kind, readable), name) == default)
    except PrunerZeroError:
        return False
