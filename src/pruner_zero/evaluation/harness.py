"""lm-eval as this program calls it: without its bars, its log lines, and the hub's retries."""

import copy
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.hub import hub_reachable
from pruner_zero.models import LanguageModel
from pruner_zero.progress import Progress

# Readers of `datasets` that take files; every other name is looked for on the hub.
_READERS = ("arrow", "csv", "json", "parquet", "text")
_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def import_lm_eval() -> Any:
    """The lm-eval package. Raises PrunerZeroError naming the extra where it is missing."""
    try:
        import lm_eval
        import lm_eval.api.task
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise PrunerZeroError(
            "tasks need lm-eval: pip install 'pruner-zero[eval]', or measure perplexity on a text"
        ) from error
    return lm_eval


def load_tasks(
    names: Sequence[str], folder: Path | None, progress: Progress
) -> dict[str, dict[str, Any]]:
    """lm-eval's `tasks` and `groups` of these `names`, with their data.

    folder: task files (`.yaml`) that come before lm-eval's own. Raises PrunerZeroError for a
    name that is in neither, and for data that cannot be had.
    """
    import datasets
    from huggingface_hub import constants

    manager = _manager(names, folder)
    with ExitStack() as stack:
        local = all(_is_local(manager.task_index[name].cfg) for name in names)
        if not local and not hub_reachable():
            # What is in the cache still serves; the rest fails at once instead of retrying.
            stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", True))
            stack.enter_context(_replaced(datasets.config, "HF_HUB_OFFLINE", True))
        tasks = []
        for name in progress.track(names, "task data", len(names)):
            tasks += _load(manager, name)
    loaded: dict[str, dict[str, Any]] = manager.load(tasks)
    return loaded


def harness_model(language_model: LanguageModel, batch_size: int, progress: Progress) -> Any:
    """`language_model` as lm-eval takes it: used in place, log-probabilities in fp32.

    The first NaN among its answers raises PrunerZeroError.
    """
    model = import_lm_eval().models.huggingface.HFLM(
        pretrained=language_model.model,
        tokenizer=_quiet_copy(language_model.tokenizer),
        softmax_dtype="float32",
        batch_size=batch_size,
    )
    for kind in _REQUESTS:
        setattr(model, kind, partial(_answered, getattr(model, kind), model, progress))
    return model


@contextmanager
def quiet(progress: Progress) -> Iterator[None]:
    """lm-eval without bars and log lines; what it says of shortened contexts is a remark."""
    import datasets

    logger = logging.getLogger("lm_eval")
    handler = _Shortened(progress)
    level, propagate = logger.level, logger.propagate
    bars = not datasets.are_progress_bars_disabled()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    datasets.disable_progress_bars()
    try:
        with _replaced(import_lm_eval().api.task, "tqdm", lambda items, **_: items):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of the whole process seeded, for tasks that draw from them; then put back."""
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class _Answers:
    """What lm-eval tells of every answer as it comes: counted, and checked to be a number."""

    def __init__(self, steps: Iterator[int]) -> None:
        self.steps = steps

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        del kind, request
        value = answer[0] if isinstance(answer, tuple) else answer
        if isinstance(value, float) and math.isnan(value):
            raise PrunerZeroError(
                "the model's log-probabilities are not numbers: its weights are damaged or its "
                "dtype is too narrow, try --dtype float32"
            )
        next(self.steps, None)


class _Shortened(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress
        self.told = False

    def emit(self, record: logging.LogRecord) -> None:
        if "runcat" in record.getMessage() and not self.told:
            self.told = True
            self.progress.note(f"lm-eval: {' '.join(record.getMessage().split())}")


def _quiet_copy(tokenizer: Any) -> Any:
    """lm-eval gives its tokenizer a padding token, and shortens what is too long itself."""
    tokenizer = copy.deepcopy(tokenizer)
    told = getattr(tokenizer, "deprecation_warnings", {})
    told["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _answered(
    run: Callable[..., list[Any]], model: Any, progress: Progress, requests: Sequence[Any]
) -> list[Any]:
    steps = progress.track(range(len(requests)), "requests", len(requests))
    model.set_cache_hook(_Answers(steps))
    try:
        return run(requests, disable_tqdm=True)
    finally:
        # Equal requests are answered once and so counted once: let the bar come to its end.
        deque(steps, maxlen=0)


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    manager_of = import_lm_eval().tasks.TaskManager
    if folder is not None:
        if not folder.is_dir():
            raise PrunerZeroError(f"there is no folder {folder}: give one that holds task files")
        own = manager_of(include_path=str(folder), include_defaults=False)
        # Reading lm-eval's own thousands of files takes seconds; these tasks do not need it.
        if set(names) <= set(own.all_subtasks):
            return own
    manager = manager_of(include_path=str(folder) if folder else None)
    for name in names:
        if name not in manager.task_index:
            where = f"{folder} or lm-eval" if folder else "lm-eval"
            raise PrunerZeroError(f"no task '{name}' in {where}: {_near(name, manager.all_tasks)}")
    return manager


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3)
    if not near:
        return "`lm-eval ls tasks` lists them, --task-folder adds yours"
    return f"did you mean {' or '.join(repr(one) for one in near)}?"


def _is_local(cfg: dict[str, Any] | None) -> bool:
    """Whether a task's data are files on this machine; not known of groups and classes."""
    source = (cfg or {}).get("dataset_path")
    return isinstance(source, str) and (source in _READERS or Path(source).exists())


def _load(manager: Any, name: str) -> list[Any]:
    instead = "give a folder of tasks whose data are local files (--task-folder)"
    try:
        loaded = manager.load([name])
    except ConnectionError as error:
        raise PrunerZeroError(
            f"task {name} needs its data from the Hugging Face hub, which cannot be reached: "
            f"{instead}"
        ) from error
    except Exception as error:
        # `datasets` and the task's own code pass on whatever goes wrong in them.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PrunerZeroError(
            f"task {name} could not be loaded ({reason:.300}): mend it, or {instead}"
        ) from error
    for task in loaded["tasks"].values():
        _check(name, task)
    return [loaded["groups"][name]] if name in loaded["groups"] else [*loaded["tasks"].values()]


def _check(name: str, task: Any) -> None:
    """Refuse tasks that need what is not done here: running generated code, or pictures."""
    if getattr(task, "UNSAFE_CODE", False):
        raise PrunerZeroError(f"task {name} runs code that the model writes: leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise PrunerZeroError(f"task {name} needs more than text: leave it out")
