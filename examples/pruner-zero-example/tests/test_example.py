"""What this package adds is found by its name, and does what it states."""

import torch
from pruner_zero_example import COUNTING, SOFTSIGN

from pruner_zero import Metric
from pruner_zero.text.corpus import load_corpus


def test_the_operator_has_the_facts_that_it_states() -> None:
    x = torch.linspace(-5, 5, 101)
    y = SOFTSIGN.apply(x)
    torch.testing.assert_close(SOFTSIGN.apply(-x), -y)  # parity="odd"
    assert (y.diff() > 0).all()  # increasing="always"
    assert (y[x >= 0] >= 0).all()  # sign="keeps"


def test_the_metric_scores_weights_by_the_operator() -> None:
    terminals = {"W": torch.tensor([[1.0, 3.0]]), "X": torch.tensor([[2.0, 1.0]])}
    scores = Metric.of("softsign-wanda").score(terminals)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.75]]))


def test_the_text_has_other_documents_for_each_role() -> None:
    calibration, held_out = (set(COUNTING.documents(role)) for role in ("calibration", "test"))
    assert not calibration & held_out
    assert load_corpus("counting/test").text == COUNTING.separator.join(COUNTING.documents("test"))
