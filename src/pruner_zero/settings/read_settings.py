"""Settings read from YAML and from keywords, and the error of a wrong one in one line."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from pruner_zero.errors import PrunerZeroError, did_you_mean, one_line
from pruner_zero.settings.base import Settings, options_of

# Options that are no settings.
_OPTIONS = frozenset({"cache", "config", "json", "output", "overwrite", "resume"})

# Options of version 0.3 that are gone, and what takes their place. A command that still has an
# option of the name is not concerned.
REMOVED: Mapping[str, str] = MappingProxyType(
    {
        "attn_implementation": "transformers chooses",
        "batch_size": "compare measures a window at a time",
        "bytes": "give --parameters",
        "damping": "",
        "executor": "give --ray-address for Ray",
        "few_windows": "",
        "fitness": "the mean over the models counts",
        "generate": "--beside measures the divergence",
        "judge_dtype": "",
        "list": "",
        "mode": "the order of work follows from what is done",
        "multiple_of": "it follows from the model's own widths",
        "parameters": "give a share in the name of a method, such as wanda@channels=0.25",
        "race": "",
        "ray_resources": "",
        "prompts": "give the text as self:FILE",
        "quiet": "send the standard error elsewhere",
        "refine": "",
        "revision": "give the model as NAME@REVISION",
        "sampled_weights": "",
        "scripts": "prune alone has it",
        "scope": "write it behind a method, as in wanda@global",
        "seqlen_eval": "perplexity is measured on windows of --seqlen tokens",
        "teacher_share": "it follows from the text",
        "threads": "set OMP_NUM_THREADS",
        "time_limit": "",
        "tokens": "give --sparsity or --parameters",
        "update": "give it to prune",
        "validation_windows": "",
        "widths": "it follows from the output",
    }
)

# YAML aliases let a few lines stand for more text than fits in memory.
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = _shorten.maxlong = 200
S = TypeVar("S", bound=Settings)


def read_settings(
    kind: type[S],
    given: Mapping[str, Any],
    file: str | Path | None = None,
    *,
    within: str | None = None,
) -> S:
    """Settings of `kind` from a YAML `file` and from `given`, which wins over the file.

    Keys whose value is None in `given` count as not given. within: the setting of a command that
    holds these settings. Raises PrunerZeroError naming the option, or the setting that has none,
    and what it accepts.
    """
    values = {**(_read_yaml(Path(file)) if file else {})}
    for part, where in ((values, f" in {file}"), (given, "")):
        for key, value in part.items():
            field = kind.model_fields.get(key)
            # Pydantic would read it as 1 or 0.
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise PrunerZeroError(f"{key} is {str(value).lower()}{where}: it is no switch")
    values.update({key: value for key, value in given.items() if value is not None})
    try:
        return kind(**values)
    except ValidationError as error:
        raise PrunerZeroError(_first_line(error, kind, within)) from error


def of_removed(name: str) -> str | None:
    """The line that refuses an option of version 0.3; None where `name` was none."""
    instead = REMOVED.get(name.replace("-", "_"))
    if instead is None:
        return None
    tail = f", {instead}" if instead else ""
    return f"'{name}' was an option of version 0.3 and is gone: leave it out{tail}"


class _Loader(yaml.SafeLoader):
    """YAML in which 2:4 is text, not a number in base 60, and no key stands twice."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and re.fullmatch(r"\d+:\d+", value):
            return "tag:yaml.org,2002:str"
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"{twice[0]} stands twice")
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(), _Loader)
    except OSError as error:
        raise PrunerZeroError(f"{file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PrunerZeroError(f"{file} is not valid YAML: {one_line(error)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise PrunerZeroError(f"{file} must hold settings as `name: value` lines")
    return values


def _first_line(error: ValidationError, kind: type[Settings], within: str | None) -> str:
    # An unknown name first: a missing setting may be the one that was misspelt.
    first = min(error.errors(), key=lambda error: error["type"] != "extra_forbidden")
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden" and key in _OPTIONS:
        return f"'{key}' is an option of the command line alone: leave it out of the --config file"
    if first["type"] == "extra_forbidden":
        known = did_you_mean(key.replace("-", "_"), kind.model_fields)
        return of_removed(key) or f"no setting '{key}': {known}"
    if first["type"] == "missing":
        return f"the setting '{key}' is missing: give it, or write it in the --config file"
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    message = message[0].lower() + message[1:]
    if not key:
        return message
    value = f"{_shorten.repr(first['input']):.80}"
    if within is None and key in options_of(kind):
        return f"--{key.replace('_', '-')} is {value}: {message}"
    names = [name for name in (within, *first["loc"]) if isinstance(name, str)]
    return f"`{': {'.join(names)}: {value}{'}' * (len(names) - 1)}`: {message}"
