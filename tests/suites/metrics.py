"""The requirements of named metrics: they parse, cite their source, and rank weights."""

import torch

from pruner_zero.metric.expression import TERMINALS
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import NAMED, Metric, NamedMetric


class NamedMetricSuite:
    """Holds for any named metric. A subclass gives `metric`."""

    metric: NamedMetric

    def test_it_is_found_by_its_name(self) -> None:
        assert NAMED[self.metric.name] is self.metric
        metric = Metric.of(self.metric.name)
        assert metric.name == self.metric.name
        assert metric.expression == parse(self.metric.text)

    def test_it_says_what_it_ranks_by_and_who_says_so(self) -> None:
        for text in (self.metric.description, self.metric.citation):
            assert text.strip()
            assert "\n" not in text

    def test_it_ranks_the_weights_of_a_matrix(self) -> None:
        generator = torch.Generator().manual_seed(0)
        signed = torch.randn(6, 5, generator=generator)
        terminals = {
            name: 0.1 + torch.rand(statistic.shape.sizes((6, 5)), generator=generator)
            for name, statistic in TERMINALS.items()
        }
        scores = Metric.of(self.metric.name).score({**terminals, "S": signed, "W": signed.abs()})
        assert scores.shape == (6, 5)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
