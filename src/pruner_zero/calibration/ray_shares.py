"""Shares of the calibration windows on actors of a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruner_zero.calibration.shares import Share
from pruner_zero.errors import PrunerZeroError
from pruner_zero.packing import Packed, pack, unpack
from pruner_zero.ray_cluster import RayCluster

T = TypeVar("T")
Step = Callable[[Share], Any]

# Seconds that a new actor has to start before the shares of a dead one go to another.
START_LIMIT = 60.0


@dataclass(frozen=True)
class CalibrationWorkers:
    """How many shares the windows are cut into, and where actors of Ray take them.

    The number of shares decides how sums round, the number of actors that a cluster has room
    for does not. address: as `RayCluster` takes it. resources: of each actor, `num_cpus` (1
    where not given, as many threads), `num_gpus`, and any the cluster names itself.
    """

    count: int
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def ray_shares(
    model: PreTrainedModel, windows: Tensor, workers: CalibrationWorkers
) -> Iterator["RayShares"]:
    """`windows` (n, tokens) in shares, each with an actor that can run `model` on it.

    Raises PrunerZeroError where Ray is not installed, no cluster answers, or it cannot hold
    an actor.
    """
    needed = {"num_cpus": 1.0, **workers.resources}
    count = min(workers.count, len(windows))
    cluster = RayCluster(
        workers.address,
        needed,
        count,
        user="--calibration-workers",
        instead="leave them out",
    )
    shares = None
    try:
        shares = RayShares(cluster, model, windows, count)
        yield shares
    finally:
        if shares is not None:
            shares.close()
        cluster.close()


@dataclass(eq=False)
class _Place:
    """An actor and the shares that it takes."""

    actor: Any
    shares: list[int]


class RayShares:
    """Shares on actors; the model is put into the object store once.

    A share is what the steps since `begin` made of it. So when an actor dies, its shares take
    the same steps again on another, once.
    """

    def __init__(
        self, cluster: RayCluster, model: PreTrainedModel, windows: Tensor, count: int
    ) -> None:
        self.cluster = cluster
        self.ray = cluster.ray
        self.windows = windows
        self.parts: Sequence[Tensor] = windows.tensor_split(count)
        self.longest = max(map(len, self.parts))
        self.steps: list[Step] = []
        self.deaths = [0] * count
        self.answers: dict[int, Any] = {}
        self.actor = cluster.remote(_Actor)
        actors = min(count, cluster.actors_that_fit())
        self.model = self.ray.put(pack(model))
        groups = torch.arange(count).tensor_split(actors)
        self.places = [_Place(self._new_actor(), group.tolist()) for group in groups]

    def begin(self) -> None:
        """Shares that have not run at all."""
        self.steps.clear()
        for place in self.places:
            self._begin(place.actor, place.shares)

    def map(self, step: Callable[[Share], T]) -> Iterator[T]:
        """Take every share a step further, at once; what comes of it, in their order.

        Raises PrunerZeroError where the actor of a share dies twice.
        """
        self.steps.append(step)
        for place in self.places:
            for share in place.shares:
                self.answers[share] = place.actor.take.remote(share, step)
        for share in range(len(self.parts)):
            yield self._answer(share)

    def close(self) -> None:
        """Stop the actors at once."""
        while self.places:
            self.ray.kill(self.places.pop().actor)
        self.answers.clear()
        self.model = None

    def _answer(self, share: int) -> Any:
        while True:
            try:
                packed: Packed = self.ray.get(self.answers[share])
            except self.cluster.died as error:
                self._replace(next(one for one in self.places if share in one.shares), error)
                continue
            except self.ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PrunerZeroError):
                    raise error.cause from None
                raise
            del self.answers[share]
            return unpack(packed)

    def _replace(self, place: _Place, error: BaseException) -> None:
        """Let another actor take the steps of a dead one's shares."""
        for share in place.shares:
            self.deaths[share] += 1
        if max(self.deaths[share] for share in place.shares) == 2:
            raise PrunerZeroError(
                "a calibration worker died twice at the same windows: give each more memory, or "
                "choose fewer --calibration-workers or shorter --seqlen "
                f"({' '.join(str(error).split()):.200})"
            ) from error
        self.ray.kill(place.actor)
        self.places.remove(place)
        heir = self._heir()
        self._begin(heir.actor, place.shares)
        heir.shares += place.shares
        for share in place.shares:
            answers = [heir.actor.take.remote(share, step) for step in self.steps]
            if share in self.answers:
                self.answers[share] = answers[-1]

    def _heir(self) -> _Place:
        """A new actor where one starts in time, else, a machine being lost, another that lives."""
        new = _Place(self._new_actor(), [])
        started, _ = self.ray.wait([new.actor.ready.remote()], timeout=START_LIMIT)
        if self.places and not started:
            self.ray.kill(new.actor)
            return min(self.places, key=lambda one: len(one.shares))
        self.places.append(new)
        return new

    def _begin(self, actor: Any, shares: Sequence[int]) -> None:
        for share in shares:
            actor.begin.remote(share, self.parts[share])

    def _new_actor(self) -> Any:
        threads = max(1, int(self.cluster.needed["num_cpus"]))
        return self.actor.remote(self.model, threads)


class _Actor:
    """Lives in a process of Ray's, with the model and some shares of the windows."""

    def __init__(self, packed: Packed, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model: PreTrainedModel = unpack(packed)
        self.shares: dict[int, Share] = {}

    def ready(self) -> None:
        """Done once the actor has started."""

    def begin(self, share: int, windows: Tensor) -> None:
        self.shares[share] = Share(self.model, windows)

    def take(self, share: int, step: Step) -> Packed:
        return pack(step(self.shares[share]))
