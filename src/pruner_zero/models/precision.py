"""What a processor is fast at."""

from typing import Any

import torch


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively, about twice as fast as float32."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
