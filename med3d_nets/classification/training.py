"""What the training of a classifier needs beside MONAI: targets, weights of classes, a balanced order, mixup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite import distributed as idist
from monai.data import Dataset, DistributedSampler
from monai.engines import default_prepare_batch
from monai.transforms import MapTransform
from torch import Tensor, nn
from torch.nn import functional as F

from med3d_nets.classification.settings import ClassifierSettings
from med3d_nets.distributed import shuffled
from med3d_nets.errors import Med3dError

__all__ = ["BalancedSampler", "PrepareTargets", "RestoreNumberd", "make_loss", "make_sampler", "target_scale"]

Items = Sequence[Mapping[str, Any]]


def target_scale(task: str, cases: Items) -> dict[str, float] | None:
    """Mean and standard deviation of the numbers to predict, or None for classes.

    Args:
        task: one of :data:`~med3d_nets.classification.settings.TASKS`.
        cases: the training cases.

    Raises:
        Med3dError: if all cases have the same number.
    """
    if task == "classification":
        return None
    values = np.array([case["label"] for case in cases], np.float64)
    if values.min() == values.max():
        raise Med3dError(
            f"found {values[0]:g} as the number of all {len(values)} training cases; expected some that vary"
        )
    return {"mean": float(values.mean()), "std": float(values.std())}


def make_loss(
    settings: ClassifierSettings, cases: Items, class_weights: str | Sequence[float] = "none", smoothing: float = 0.0
) -> nn.Module:
    """Cross-entropy of classes, or the smooth L1 loss of numbers.

    Args:
        settings: of the network.
        cases: the training cases.
        class_weights: "none"; "balanced": in inverse proportion to the classes' cases, 1 on average over the cases; or
            a weight for each class.
        smoothing: share of each target that is spread over all classes (label smoothing).

    Raises:
        Med3dError: if an option is out of range, or given for a regression.
    """
    if isinstance(smoothing, bool) or not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise Med3dError(f"label_smoothing is {smoothing!r}, expected a share from 0 to below 1")
    if settings.task == "classification":
        return nn.CrossEntropyLoss(_class_weights(class_weights, settings, cases), label_smoothing=smoothing)
    if class_weights != "none" or smoothing:
        raise Med3dError(
            f"class_weights is {class_weights!r} and label_smoothing {smoothing!r}; a regression has no classes"
        )
    return nn.SmoothL1Loss()


def _class_weights(given: str | Sequence[float], settings: ClassifierSettings, cases: Items) -> Tensor | None:
    if given == "none":
        return None
    if given == "balanced":
        counts = np.bincount([case["label"] for case in cases], minlength=settings.n_outputs)
        return torch.tensor(len(cases) / (settings.n_outputs * counts), dtype=torch.float32)
    right = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == settings.n_outputs
    weights = list(given) if right else []
    if not any(weights) or not all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in weights):
        expected = f"none, balanced or {settings.n_outputs} weights for {', '.join(settings.class_names)}"
        raise Med3dError(f"class_weights is {given!r}, expected {expected}")
    return torch.tensor(weights, dtype=torch.float32)


class BalancedSampler(DistributedSampler):
    """Draws the classes equally often, with replacement, by the seed and the epoch, and deals among the processes.

    MONAI's ``DistributedWeightedRandomSampler`` knows no epochs, so that a resumed training would draw others.

    Args:
        dataset: its length is that of an epoch.
        labels: class of each case.
        seed: of the run.
    """

    def __init__(self, dataset: Dataset, labels: Sequence[int], seed: int) -> None:
        super().__init__(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)
        counts = np.bincount(labels)
        self.weights = torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)

    def __iter__(self) -> Iterator[int]:
        """Indices of this process's cases."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.multinomial(self.weights, self.total_size, replacement=True, generator=generator)
        return iter(drawn[self.rank :: self.num_replicas].tolist())


def make_sampler(
    dataset: Dataset, cases: Items, seed: int, sampler: str = "shuffle", task: str = ""
) -> DistributedSampler:
    """The order of an epoch: every case once (``"shuffle"``), or classes equally often (``"balanced"``).

    Raises:
        Med3dError: if ``sampler`` is neither; or for a balanced regression.
    """
    if sampler not in ("shuffle", "balanced") or (sampler == "balanced" and task == "regression"):
        raise Med3dError(f"sampler is {sampler!r}, expected shuffle{'' if task == 'regression' else ' or balanced'}")
    return (
        shuffled(dataset, seed) if sampler == "shuffle" else BalancedSampler(dataset, [c["label"] for c in cases], seed)
    )


class PrepareTargets:
    """Makes a trainer's batch: images, and one-hot classes or scaled numbers, mixed in pairs where asked (mixup).

    Mixup (Zhang et al., arXiv:1710.09412) trains on weighted means of two images and of their targets. MONAI's
    ``MixUp`` wants batches of one size, and its random state is not the trainer's, which is seeded at each epoch.

    Args:
        settings: of the network.
        mixup: both parameters of the beta distribution that the weights are drawn from; 0: none.

    Raises:
        Med3dError: if ``mixup`` is no such number.
    """

    def __init__(self, settings: ClassifierSettings, mixup: float = 0.0) -> None:
        if isinstance(mixup, bool) or not isinstance(mixup, (int, float)) or not 0 <= mixup < math.inf:
            raise Med3dError(f"mixup is {mixup!r}, expected a number, 0 or more")
        self.settings = settings
        self.mixup = float(mixup)

    def __call__(self, batchdata: dict[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        """Images ``(batch, channel, depth, height, width)`` and targets ``(batch, n_outputs)``."""
        images, labels = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        assert isinstance(labels, Tensor)
        if self.settings.task == "classification":
            targets = F.one_hot(labels.long(), self.settings.n_outputs).float()
        else:
            known = self.settings.target or {}
            targets = ((labels.double() - known["mean"]) / known["std"]).float()[:, None]
        if not self.mixup:
            return images, targets
        weight = float(np.random.beta(self.mixup, self.mixup))
        other = torch.randperm(len(images))
        return images.lerp(images[other], 1 - weight), targets.lerp(targets[other], 1 - weight)


class RestoreNumberd(MapTransform):
    """Bring a regression's predictions back to the unit of the targets.

    Args:
        keys: predictions, ``(1,)``.
        target: ``mean`` and ``std``; None leaves logits as they are.
    """

    def __init__(self, keys: Any, target: Mapping[str, float] | None) -> None:
        super().__init__(keys)
        self.target = target

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Scale the predictions of one case."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            if self.target is not None:
                scaled = restored[key].float()  # half precision has three digits
                restored[key] = scaled * self.target["std"] + self.target["mean"]
        return restored
