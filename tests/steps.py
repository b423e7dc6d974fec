"""Training steps, for tests of what is trained."""

import torch


def losses_of_steps(head, backbone, optimizer, x, labels, steps=20):
    """The cross-entropy before each of ``steps`` steps on one batch; no device is waited for."""
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(head(backbone(x), labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses
