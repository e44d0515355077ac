"""Other heads on the same frozen features: what a few labelled images give without prompts or an adapter.

Each takes features ``(images, dim)`` and labels, chooses its strengths by cross-validation on these images alone, and
returns a function from features to logits.

Sources: linear probe, CLIP, arXiv:2103.00020, section 3; Tip-Adapter-F, arXiv:2207.09519, eq. (5) to (8); LP++,
arXiv:2404.02285, with the constants of its authors' release.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from p4q_edge.data import folds

Head = Callable[[Tensor], Tensor]
"""Features ``(N, dim)`` to logits ``(N, classes)``."""

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the pull of a probe's weights to where they start."""
PROBE_ITERATIONS = 60
SHARPNESS = (1.0, 2.0, 5.5, 10.0)
CACHE_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Of a cache's votes, in units of the logit scale."""
CACHE_RATE = 1e-3
CACHE_BATCH = 256
LP_STEPS = 300
LP_MOMENTUM = 0.9
LP_TEXT_EVERY = 10
"""Steps of prototypes for each of the multipliers."""
LP_TEXT_START = 250.0
"""Of a multiplier, times the mean cosine of labelled images to their own class's text."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a head is learned from.

    Attributes:
        features: ``(images, dim)``.
        labels: ``(images,)`` int64.
        text: hand-written class embeddings, ``(classes, dim)`` normalized.
        scale: of the logits.
        seed: of folds and batches.
    """

    features: Tensor
    labels: Tensor
    text: Tensor
    scale: float
    seed: int

    @property
    def embedding(self) -> Tensor:
        """Of the images, ``(images, dim)`` normalized."""
        return F.normalize(self.features, dim=-1)


def linear_probe(data: Labelled, *, around_text: bool = False) -> Head:
    """Logistic regression on embeddings, to its end.

    Args:
        data: the labelled images.
        around_text: start at the text, and pull there in place of nought.
    """
    embedding, labels, scale = data.embedding, data.labels, data.scale
    start = data.text if around_text else torch.zeros_like(data.text)

    def fit(rows: Tensor, strength: float) -> Tensor:
        return _regression(embedding[rows], labels[rows], start, scale=scale, strength=strength)

    def right(strength: float) -> int:
        count = 0
        for held_out, others in _splits(labels, data.seed):
            logits = embedding[held_out] @ fit(others, strength).T
            count += int((logits.argmax(-1) == labels[held_out]).sum())
        return count

    weight = fit(torch.arange(len(labels), device=labels.device), max(STRENGTHS, key=right))
    return lambda rows: scale * F.normalize(rows, dim=-1) @ weight.T


def _regression(embedding: Tensor, labels: Tensor, start: Tensor, *, scale: float, strength: float) -> Tensor:
    moved = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.LBFGS([moved], max_iter=PROBE_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(scale * embedding @ (start + moved).T, labels)
        loss = loss + strength * scale * moved.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (start + moved).detach()


def tip_adapter(data: Labelled, *, steps: int) -> Head:
    """Tip-Adapter-F: the labelled embeddings are keys that vote, and are learned from there for `steps` steps.

    Sharpness and share of the votes are those that serve the cache before its learning best.
    """
    embedding, labels, text, scale = data.embedding, data.labels, data.text, data.scale
    votes = F.one_hot(labels, len(text)).float()

    def logits(rows: Tensor, keys: Tensor, values: Tensor, choice: tuple[float, float]) -> Tensor:
        sharpness, share = choice
        return scale * (rows @ text.T + share * torch.exp(sharpness * (rows @ keys.T - 1)) @ values)

    def right(choice: tuple[float, float]) -> int:
        count = 0
        for held_out, others in _splits(labels, data.seed):
            answers = logits(embedding[held_out], embedding[others], votes[others], choice).argmax(-1)
            count += int((answers == labels[held_out]).sum())
        return count

    best = max([(sharp, share) for sharp in SHARPNESS for share in CACHE_SHARES], key=right)
    keys = embedding.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([keys], lr=CACHE_RATE, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(data.seed)
    for _ in range(steps):
        chosen = torch.randperm(len(labels), generator=generator)[:CACHE_BATCH].to(labels.device)
        loss = F.cross_entropy(logits(embedding[chosen], keys, votes, best), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    learned = keys.detach()
    return lambda rows: logits(F.normalize(rows, dim=-1), learned, votes, best)


def lp_plus_plus(data: Labelled) -> Head:
    """LP++: a linear probe of weights `prototype + multiplier * text` for each class.

    Both are descended on all images at once, at rates that the curvature of the loss bounds. How many of `LP_STEPS`
    steps are taken is chosen by cross-validation, where the authors ask a validation set.
    """
    embedding, labels, text = data.embedding, data.labels, data.text
    right = torch.zeros(LP_STEPS, dtype=torch.long)
    for held_out, others in _splits(labels, data.seed):
        for step, weight in enumerate(_lp_weights(embedding[others], labels[others], text)):
            right[step] += (embedding[held_out] @ weight.T).argmax(-1).eq(labels[held_out]).sum().cpu()
    best = int(right.argmax())
    weight = next(itertools.islice(_lp_weights(embedding, labels, text), best, None))
    return lambda rows: F.normalize(rows, dim=-1) @ weight.T


def _lp_weights(embedding: Tensor, labels: Tensor, text: Tensor) -> Iterator[Tensor]:
    """Yield the weights ``(classes, dim)`` after each step."""
    of_class = F.one_hot(labels, len(text)).float()
    prototypes = (of_class.T @ embedding) / of_class.sum(0).clamp(min=1)[:, None]
    cosines = embedding @ text.T
    multipliers = LP_TEXT_START * cosines.gather(1, labels[:, None]).mean().expand(len(text)).clone()
    rate = 4 * len(labels) / torch.linalg.matrix_norm(embedding, ord=2).square()
    text_rate = len(labels) / (4 * cosines.square().sum(0).max())
    speed = torch.zeros_like(prototypes)
    for step in range(LP_STEPS):
        logits = embedding @ prototypes.T + multipliers * cosines
        wrong = (logits.softmax(-1) - of_class) / len(labels)
        speed = LP_MOMENTUM * speed + wrong.T @ embedding
        prototypes = prototypes - rate * speed
        if (step + 1) % LP_TEXT_EVERY == 0:
            multipliers = multipliers - text_rate * (wrong * cosines).sum(0)
        yield prototypes + multipliers[:, None] * text


def _splits(labels: Tensor, seed: int) -> Sequence[tuple[Tensor, Tensor]]:
    everything = torch.arange(len(labels))
    parts = [part for part in folds(labels.cpu(), seed=seed) if len(part)]
    return [(part.to(labels.device), everything[~torch.isin(everything, part)].to(labels.device)) for part in parts]
