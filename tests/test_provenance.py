"""Where results come from, and what they cost."""

import json
import time

import numpy as np
import torch
import transformers

import pruner_zero
from pruner_zero.provenance import measured, peak_rss_bytes, provenance


def test_provenance_names_what_can_change_a_number() -> None:
    found = provenance()
    assert found["pruner_zero"] == pruner_zero.__version__
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["numpy"] == np.__version__
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_provenance_is_the_same_every_time() -> None:
    assert provenance() == provenance()


def test_measured_counts_the_seconds_even_of_work_that_fails() -> None:
    try:
        with measured() as cost:
            time.sleep(0.05)
            raise ValueError
    except ValueError:
        pass
    assert 0.05 <= cost.seconds < 5
    assert cost.peak_rss_bytes > 0


def test_the_peak_of_earlier_work_does_not_count_again() -> None:
    with measured() as large:
        block = np.ones(40_000_000)
    del block
    with measured() as small:
        pass
    assert large.peak_rss_bytes - small.peak_rss_bytes > 200_000_000
    assert peak_rss_bytes() < large.peak_rss_bytes
