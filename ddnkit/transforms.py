"""Whether one of torch's function transforms is at work: what may look at values then, and what not."""

from __future__ import annotations

import torch


def under_transform() -> bool:
    """Whether a torch.func transform or forward mode is at work."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or torch.autograd.forward_ad._current_level >= 0
