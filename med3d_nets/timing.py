"""Training iterations, run and timed as the trainer makes them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from med3d_nets.allocation import keep_freed_memory
from med3d_nets.precision import MixedPrecisionInferer

__all__ = ["time_iterations"]


def time_iterations(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    label: Tensor,
    repeats: int,
    amp: bool = False,
) -> list[float]:
    """Seconds of each of some training iterations on one batch, with freed memory kept as in training.

    Args:
        network: in training mode, on the device of ``image``.
        optimiser: of its parameters.
        loss_function: of the network's answer and ``label``.
        image: ``(batch, channel, depth, height, width)``.
        label: on the same device.
        repeats: iterations.
        amp: in mixed precision, on a GPU with its scaled gradients.
    """
    keep_freed_memory()
    device = image.device
    on_gpu = device.type == "cuda"
    inferer = MixedPrecisionInferer(amp)
    scaler = torch.amp.GradScaler("cuda", enabled=amp and on_gpu)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast("cuda", enabled=amp and on_gpu):
            prediction = inferer(image, network)  # which the trainer keeps, so it has a name
            loss = loss_function(prediction, label)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds
