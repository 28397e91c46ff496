"""Masks are read off the zeros, and what is trained cannot reach them."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_matrices
from pruner_zero.recovery.kept_weights import KeptWeights
from pruner_zero.recovery.recover import check_pruned
from tests.recovery.conftest import pruned_model
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


def test_a_dense_model_is_refused_unless_its_teacher_is_larger() -> None:
    small, large = (
        LanguageModel(tiny_model("llama", blocks=blocks), tiny_tokenizer(), "some/model")
        for blocks in (2, 3)
    )
    find_matrices(small.model)[0].weight[0, :3] = 0
    for teacher in (None, small):
        assert refusal(partial(check_pruned, small, teacher)) == (
            "some/model is not pruned, 0.02% of its prunable weights are zero: give the folder "
            "that prune wrote; if prune removed whole units, give the dense model as --teacher"
        )
    # The same parameters in fewer bytes.
    narrow = replace(small, model=tiny_model("llama").bfloat16())
    assert "is not pruned" in refusal(partial(check_pruned, narrow, small))
    check_pruned(small, large)
    check_pruned(pruned_model()[0], None)


def test_kept_weights_come_and_go_without_touching_the_others() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, -0.0]])
    parameter = nn.Parameter(weight.clone())
    kept = KeptWeights("weight", parameter)
    vector = kept.values
    assert vector.tolist() == [1, 2, -3]
    kept.pull(torch.arange(6.0).view(2, 3))
    kept.pull(torch.ones(2, 3))
    assert vector.grad is not None
    assert vector.grad.tolist() == [1, 3, 5]
    vector.copy_(torch.tensor([7.0, 8.0, 9.0]))
    kept.write()
    assert parameter.tolist() == [[7, 0, 8], [0, 9, 0]]


def test_the_rate_of_some_experts_is_a_share_of_their_own_size() -> None:
    stack = torch.stack([torch.full((2, 3), float(size)) for size in (1, 10, 2)])
    kept = KeptWeights("stack", torch.nn.Parameter(stack), experts=[0, 2])
    assert kept.rate_scale == pytest.approx(math.sqrt((1 + 4) / 2))
    kept.values.fill_(7.0)
    kept.write()
    assert kept.parameter.data.mean((1, 2)).tolist() == [7, 10, 7]
