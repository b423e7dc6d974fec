"""Whether one of torch's function transforms is at work: what may look at values then, and what not."""

from __future__ import annotations

import torch


def under_transform() -> bool:
    """Whether a torch.func transform or forward mode is at work."""
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or torch.autograd.forward_ad._current_level >= 0


def plain_surroundings() -> bool:
    """Whether nothing is at work that the eager way heeds and a program does not."""
    return (
        not under_transform()
        and torch._C._len_torch_function_stack() == 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() == "highest"
        # Checkpointing counts the tensors that a call keeps.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )
