"""Searches in which one kind of work that candidates share is switched off."""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from pruner_zero.choices import Group
from pruner_zero.evolution.algorithm import make_algorithm
from pruner_zero.evolution.archive import JOURNAL, Archive, Record
from pruner_zero.evolution.ask_tell import Proposal
from pruner_zero.evolution.evaluator import RUNGS, Evaluator, Outcome, Rung, Task
from pruner_zero.evolution.masked_model import MaskedModel
from pruner_zero.evolution.row_sample import SampledMatrix
from pruner_zero.evolution.run import Status, run_batches
from pruner_zero.evolution.settings import SearchSettings
from pruner_zero.execution import UNLIMITED, Executor, SerialExecutor, TimeLimit
from pruner_zero.files import read_lines
from pruner_zero.metric import Expression
from pruner_zero.metric.canonical import canonical
from pruner_zero.models import find_matrices
from pruner_zero.sparsity.layer_error import output_sensitivity, row_errors

TIMED = ("seconds", "elapsed", "sha256")

SHARED = {
    "canonical forms": "a proposal with the canonical form of an earlier one is not asked; off: it"
    " runs on the probe rows, and only where its mask there is a new one on the rungs that the"
    " earlier one reached",
    "fingerprints": "a candidate with the mask of an earlier one on the probe rows goes no"
    " further; off: it is judged on the rungs the earlier one reached",
    "sample": "norms and sensitivities of the sampled rows are computed once for all candidates;"
    " off: for each",
    "stacks": "sampled matrices of one shape are scored, masked and judged at once; off: one after"
    " the other",
    "model": "one copy of the model is masked in place and restored; off: each loss has a copy of"
    " its own",
}


@dataclass(frozen=True)
class Searched:
    """The result of a search.

    rejection: seconds of each check whether a proposal is new. again: how often each rung judged
    candidates that sharing would have spared.
    """

    seconds: float
    journal: list[dict[str, Any]]
    rejection: list[float]
    again: Counter[str]

    @property
    def archive(self) -> list[dict[str, Any]]:
        """The journal without the fields that depend on time."""
        return [{k: v for k, v in line.items() if k not in TIMED} for line in self.journal]

    @property
    def candidates(self) -> int:
        """The number of candidates."""
        return sum(line["kind"] == "candidate" for line in self.journal)


class Copying(MaskedModel):
    """Masks a new copy of the model for every candidate."""

    @contextmanager
    def masked(
        self, expression: Expression, scope: Group, limit: TimeLimit = UNLIMITED
    ) -> Iterator[nn.Module]:
        """As `MaskedModel.masked`."""
        model = deepcopy(self.model)
        matrices = {matrix.name: matrix for matrix in find_matrices(model)}
        masks = self.masks(expression, scope, limit)
        for matrix, mask in zip(self.matrices, masks, strict=True):
            matrices[matrix.name].weight.data.masked_fill_(~mask, 0)
        yield model


class Clocked(Evaluator):
    """Measures processor time."""

    def run(self, task: Task, limit: TimeLimit = UNLIMITED) -> Outcome:
        """As `Evaluator.run`."""
        start = time.process_time()
        outcome = super().run(task, limit)
        return replace(outcome, seconds=round(time.process_time() - start, 4))


class Remembering(SerialExecutor[Task, Outcome]):
    """Keeps the fingerprints of all masks on the probe rows."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__(evaluator)
        self.fingerprints: set[str] = set()

    def map(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """As `SerialExecutor.map`."""
        for outcome in super().map(tasks):
            if outcome.fingerprint is not None:
                self.fingerprints.add(outcome.fingerprint)
            yield outcome


class Resampling(Clocked):
    """Computes norms and sensitivities of the sample for every candidate, without using them."""

    def reconstruction(
        self, expression: Expression, scope: Group, limit: TimeLimit = UNLIMITED
    ) -> float:
        """As `Evaluator.reconstruction`."""
        for matrix in self.sample:
            row_errors(matrix.weight, matrix.gram.float())
            output_sensitivity(matrix.terminals["G"], matrix.gram)
        return super().reconstruction(expression, scope, limit)


def search(
    settings: SearchSettings, evaluator: Evaluator, folder: Path, off: Iterable[str] = ()
) -> Searched:
    """Run a search in one process, without the shared work named in `off`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if "model" in off:
        evaluator = replace(evaluator, masked=Copying(**fields_of(evaluator.masked)))
    if "sample" in off:
        evaluator = Resampling(**fields_of(evaluator))
    if "stacks" in off:
        evaluator = replace(evaluator, sample=[*chain(*map(unstacked, evaluator.sample))])
    algorithm = make_algorithm(
        settings.algorithm, settings.search_space, settings.seed, settings.algorithm_settings
    )
    executor = Remembering(evaluator)
    avoided: list[Proposal] = []
    rejection: list[float] = []
    again: Counter[str] = Counter()
    judged = 0

    def is_new(proposal: Proposal) -> bool:
        start = time.process_time()
        new = type(algorithm).is_new(algorithm, proposal)
        rejection.append(time.process_time() - start)
        if not new:
            avoided.append(proposal)
        return new

    def observe(status: Status) -> None:
        nonlocal judged
        if "canonical forms" in off:
            fingerprints = frozenset(() if "fingerprints" in off else executor.fingerprints)
            again.update(_judge_avoided(avoided, status.records, executor, fingerprints))
        if "fingerprints" in off:
            again.update(_judge_twins(status.records[judged:], status.records, executor))
        avoided.clear()
        judged = len(status.records)

    archive = Archive(folder, settings.identity())
    with patch.object(algorithm, "is_new", is_new):
        start = time.process_time()
        run_batches(algorithm, archive, executor, settings, folder, observe)
        seconds = time.process_time() - start
    return Searched(seconds, read_lines(folder / JOURNAL), rejection, again)


def _judge_avoided(
    avoided: Sequence[Proposal],
    records: Sequence[Record],
    executor: Executor[Task, Outcome],
    fingerprints: frozenset[str],
) -> Iterator[Rung]:
    """Judge the avoided proposals, after the probe only those with a new fingerprint."""
    first = {(record.canonical, record.candidate.scope): record for record in reversed(records)}
    for proposal in avoided:
        form = str(canonical(proposal.expression, proposal.scope))
        twin = first.get((form, proposal.scope))
        task = Task(0, "probe", str(proposal.expression), proposal.scope)
        for outcome in executor.map([task]):
            yield outcome.rung
            if outcome.reason is None and outcome.fingerprint not in fingerprints:
                yield from _judge(proposal, twin, records, executor)


def _judge_twins(
    new: Sequence[Record], records: Sequence[Record], executor: Executor[Task, Outcome]
) -> Iterator[Rung]:
    for record in new:
        twin = record.evaluation.same_as
        if twin is not None:
            yield from _judge(record.candidate, records[twin], records, executor)


def _judge(
    candidate: Any,
    twin: Record | None,
    records: Sequence[Record],
    executor: Executor[Task, Outcome],
) -> Iterator[Rung]:
    """Judge a candidate on the rungs after the probe that its twin reached; drops the results."""
    while twin is not None and twin.evaluation.same_as is not None:
        twin = records[twin.evaluation.same_as]
    reached = twin.evaluation.results if twin else {}
    text, scope = str(candidate.expression), candidate.scope
    tasks = [Task(0, rung, text, scope) for rung in RUNGS if rung in reached]
    yield from (outcome.rung for outcome in executor.map(tasks))


def unstacked(matrix: SampledMatrix) -> Iterator[SampledMatrix]:
    """The matrices of a stack, one by one."""
    if matrix.weight.dim() == 2:
        yield matrix
        return
    for place in range(len(matrix.weight)):
        yield replace(
            matrix,
            name=f"{matrix.name} {place}",
            weight=matrix.weight[place],
            terminals={name: values[place] for name, values in matrix.terminals.items()},
            gram=matrix.gram[place],
            norms=matrix.norms[place],
            sensitivity=None if matrix.sensitivity is None else matrix.sensitivity[place],
        )


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance, as arguments of another dataclass."""
    return {field.name: getattr(value, field.name) for field in fields(value)}
