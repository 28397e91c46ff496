"""The scores of many matrices in bounded memory: scores that do not fit are computed again."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

# Scores of 268 million weights: the scores of a small model are computed once; those of a large
# model, which take more memory than its weights, are computed again when needed.
HELD_BYTES = 1 << 30


class LazyScores(Mapping[str, Tensor]):
    """The scores of the matrices that calibration reached, each computed when it is asked for.

    names: gives the names of all matrices, anew whenever it is called; it may load the weights of
    each before it yields its name. score: the scores of one matrix, the same whenever they are
    asked for; None for a matrix that calibration never reached, and for a name of no matrix. hold:
    how many bytes of scores, from the first matrix on, are held, `HELD_BYTES` where None; of the
    others only the last.
    """

    def __init__(
        self,
        names: Callable[[], Iterable[str]],
        score: Callable[[str], Tensor | None],
        hold: int | None = None,
    ) -> None:
        self._names, self._score = names, score
        self._room = HELD_BYTES if hold is None else hold
        self._held: dict[str, Tensor] = {}
        self._reached: dict[str, bool] = {}
        self._last: tuple[str, Tensor | None] = ("", None)

    def __getitem__(self, name: str) -> Tensor:
        scores = self._computed(name)
        if scores is None:
            raise KeyError(name)
        return scores

    def __contains__(self, name: object) -> bool:
        # A KeyError of the score itself is an error, no answer.
        name = str(name)
        return self._reached[name] if name in self._reached else self._computed(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names() if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _computed(self, name: str) -> Tensor | None:
        if name in self._held:
            return self._held[name]
        if name != self._last[0]:
            # Freed before the next ones are computed.
            self._last = ("", None)
            self._last = name, self._score(name)
            self._reached[name] = self._last[1] is not None
        scores = self._last[1]
        if scores is not None and scores.nbytes <= self._room:
            self._room -= scores.nbytes
            self._held[name] = scores
        return scores
