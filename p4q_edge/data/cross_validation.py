"""Parts of the labelled images that take turns in being left out."""

import torch
from torch import Tensor

FOLDS = 4


def folds(labels: Tensor, *, seed: int) -> list[Tensor]:
    """`FOLDS` disjoint sets of indices that share out each class evenly."""
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty_like(labels)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        fold_of[members[order]] = torch.arange(len(members)) % FOLDS
    return [(fold_of == fold).nonzero().flatten() for fold in range(FOLDS)]
