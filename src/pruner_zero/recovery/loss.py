"""The distillation loss of a recovery, and the check of its teacher."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel


def distillation_loss(
    model: nn.Module, teacher: nn.Module, windows: Tensor, share: float
) -> Tensor:
    """`share` · KL(teacher ‖ model) + (1 − `share`) · next-token loss of `windows` (n, tokens).

    A scalar in nats per token, logits in fp32, over the positions that have a next token.
    """
    windows = windows.to(next(model.parameters()).device)
    logits = model(windows, use_cache=False).logits[:, :-1].float().flatten(0, 1)
    with torch.no_grad():
        seen = windows.to(next(teacher.parameters()).device)
        target = teacher(seen, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        target = target.flatten(0, 1).to(logits.device)
    predicted = logits.log_softmax(-1)
    divergence = functional.kl_div(predicted, target, log_target=True, reduction="sum")
    text_loss = functional.nll_loss(predicted, windows[:, 1:].flatten())
    return share * divergence / len(predicted) + (1 - share) * text_loss


def check_teacher(teacher: LanguageModel, student: LanguageModel) -> None:
    """Raise PrunerZeroError unless both models have the same vocabulary."""
    sizes = {m.model.get_output_embeddings().weight.shape[0] for m in (teacher, student)}
    if len(sizes) > 1 or teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise PrunerZeroError(
            f"--teacher {teacher.name} has other tokens than {student.name}: "
            "give the dense model that was pruned"
        )
