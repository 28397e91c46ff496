"""The loss of a recovery: that of the text, or the divergence from the dense model."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import LanguageModel


def distillation_loss(model: nn.Module, teacher: nn.Module, window: Tensor, share: float) -> Tensor:
    """`share` · KL(teacher ‖ model) + (1 − `share`) · next-token loss of `window` (1, tokens).

    A scalar, nats a token, logits in fp32, both over the positions that have a next token.
    """
    window = window.to(next(model.parameters()).device)
    logits = model(window, use_cache=False).logits[0, :-1].float()
    with torch.no_grad():
        seen = window.to(next(teacher.parameters()).device)
        target = teacher(seen, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        target = target.to(logits.device)
    own = logits.log_softmax(-1)
    divergence = functional.kl_div(own, target, log_target=True, reduction="sum") / len(own)
    return share * divergence + (1 - share) * functional.nll_loss(own, window[0, 1:])


def check_teacher(teacher: LanguageModel, student: LanguageModel) -> None:
    """Raise PrunerZeroError where the two do not speak of the same tokens."""
    sizes = {one.model.get_output_embeddings().weight.shape[0] for one in (teacher, student)}
    if len(sizes) > 1 or teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise PrunerZeroError(
            f"--teacher {teacher.name} has other tokens than {student.name}: "
            "give the dense model that was pruned"
        )
