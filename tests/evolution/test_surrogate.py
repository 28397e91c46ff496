"""Losses change the expectation of a candidate and of its relatives."""

import pytest

from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.racing import Surrogate
from pruner_zero.evolution.record import Record
from pruner_zero.metric.grammar import parse


def record(
    number: int,
    closed: float,
    loss: float | None = None,
    parents: tuple[int, ...] = (),
    whole: float | None = None,
) -> Record:
    values = {"reconstruction": closed, "few": loss, "all": whole}
    results = {name: value for name, value in values.items() if value is not None}
    candidate = Candidate(number, parse("W"), "row", parents)
    return Record(candidate, Evaluation(1, closed, results), "W")


def child(*parents: int) -> Candidate:
    return Candidate(99, parse("W"), "row", parents)


def expected(surrogate: Surrogate, candidate: Candidate, closed: float = 10.0) -> float:
    expectation = surrogate.expect(candidate, {"reconstruction": closed})
    assert expectation is not None
    return expectation


def test_without_losses_the_closed_form_is_all_there_is() -> None:
    surrogate = Surrogate([record(0, 7.0)])
    assert surrogate.expect(child(0), {"reconstruction": 6.5}) == 6.5
    assert surrogate.expect(child(), {}) is None


def test_a_loss_stands_for_the_error_it_usually_goes_with() -> None:
    line = [record(place, 1 + 3 * (4 + 0.1 * place), 4 + 0.1 * place) for place in range(10)]
    surrogate = Surrogate(line)
    # The closed form promised 5, but the loss is that of candidates at 14.5.
    expectation = surrogate.expect(child(), {"reconstruction": 5.0, "few": 4.5})
    assert expectation == pytest.approx(14.5)


def test_the_loss_on_all_windows_counts_more_than_the_loss_on_few() -> None:
    line = [
        record(place, 1 + 3 * (4 + 0.1 * place), 4 + 0.1 * place, whole=5 + 0.1 * place)
        for place in range(10)
    ]
    surrogate = Surrogate(line)
    lucky = {"reconstruction": 5.0, "few": 4.2, "all": 5.5}
    assert surrogate.expect(child(), lucky) == pytest.approx(14.5)


def test_a_candidate_that_disappoints_moves_no_other() -> None:
    line = [record(place, 1 + 3 * (4 + 0.1 * place), 4 + 0.1 * place) for place in range(10)]
    surrogate = Surrogate([*line, record(10, 12.0, 40.0)])
    expectation = surrogate.expect(child(), {"reconstruction": 5.0, "few": 4.5})
    assert expectation == pytest.approx(14.5, abs=0.1)


def test_losses_count_even_where_the_closed_form_sees_no_difference() -> None:
    blind = [record(place, 8.0, 5 + 0.1 * (place % 5)) for place in range(20)]
    surrogate = Surrogate(blind)
    better, worse = (
        surrogate.expect(child(), {"reconstruction": 8.0, "few": loss}) for loss in (4.9, 5.6)
    )
    assert better is not None
    assert worse is not None
    assert better < 7.9
    assert worse > 8.1


def test_children_inherit_a_part_of_the_correction_of_their_parents() -> None:
    # The closed form and the loss agree but on the first, whose loss promises an error lower by 1.
    line = [record(place, 1 + 2 * (4 + 0.1 * place), 4 + 0.1 * place) for place in range(1, 20)]
    better, usual = record(0, 11.0, 4.5), record(20, 9.0)
    same = Record(better.candidate, Evaluation(1, 8.0, same_as=0), "W")
    surrogate = Surrogate([better, *line, usual, same])
    stranger = expected(surrogate, child())
    assert expected(surrogate, child(20)) == stranger
    child_value, twin_value = expected(surrogate, child(0)), expected(surrogate, child(21))
    assert child_value == twin_value == pytest.approx(stranger - 0.7, abs=0.2)
    assert expected(surrogate, child(0, 20)) == pytest.approx((child_value + stranger) / 2)


def test_grandchildren_inherit_less() -> None:
    line = [record(place, 1 + 2 * (4 + 0.1 * place), 4 + 0.1 * place) for place in range(1, 20)]
    records = [record(0, 11.0, 4.5), *line, record(20, 11.0, parents=(0,))]
    surrogate = Surrogate(records)
    stranger = expected(surrogate, child())
    learned = [stranger - expected(surrogate, child(parent)) for parent in (0, 20)]
    assert learned[1] == pytest.approx(0.7 * learned[0])


def test_a_lineage_of_any_length_is_followed() -> None:
    records = [record(number, 8.0, parents=(number - 1,) * bool(number)) for number in range(5000)]
    assert expected(Surrogate(records), child(4999)) == 10
