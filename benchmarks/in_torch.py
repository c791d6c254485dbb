"""PyTorch alone: the autoencoder's training loop as one writes it by hand."""

from __future__ import annotations

import problems
import torch
from timing import clock
from torch import nn
from torch.nn import functional as F


def loop(images: torch.Tensor, steps: int, lr: float = 1e-3) -> float:
    """Seconds of training 784-400-20-400-784, softplus, Bernoulli pixels, KL(q‖prior) in closed form, shuffled mini-batches."""
    torch.manual_seed(0)
    pixels, hidden, latent = problems.LAYERS
    encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, pixels))
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    losses, done = [], 0
    began = clock()
    while done < steps:
        for rows in torch.randperm(len(images)).split(problems.BATCH)[: steps - done]:
            x = images[rows]
            loc, log_variance = encoder(x).chunk(2, -1)
            z = loc + (log_variance / 2).exp() * torch.randn_like(loc)
            misfit = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
            kl = (loc**2 + log_variance.exp() - 1 - log_variance).sum() / 2
            loss = (misfit + kl) * (len(images) / len(x))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            done += 1
    return clock() - began
