"""Prompts: hand-written templates, and learned context vectors in front of the class names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from p4q_edge.models.compute import device_of
from p4q_edge.models.team import ALONE, Team
from p4q_edge.models.text_side import Prefix, TextSide
from p4q_edge.models.text_tower import normalized_mean
from p4q_edge.quant import memory_of
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.wording import number_of

Tokenizer = Callable[[list[str]], Tensor]

RANDOM_CONTEXT_STD = 0.02
TEXT_BATCH_SIZE = 128
KEPT_SHARES = 4
"""Number of shares that a memory limit is divided into; the last one is for what is computed again."""
LEAST_KEPT_BYTES = 1 << 20
"""A lower bound on what a step keeps would gain nothing on any device."""
SHARED_PREFIX_CLASSES = 4
"""With fewer classes than this the shared prefix saves nothing."""
TOKENS_OF_CHUNK = 128
TOKENS_OF_CHUNK_ON_GPU = 512
"""Below these a chunk costs more than its tokens do."""
MOST_CHUNKS = 8
"""As many as chunks are dealt to processes; a memory limit may make more."""


def spoken(class_name: str) -> str:
    """Return a class name as words: "_" and "-", which folders have for spaces, become spaces; the label keeps them."""
    words = " ".join(class_name.replace("_", " ").replace("-", " ").split())
    return words or class_name


def fill(template: str, class_name: str) -> str:
    """Put a class name, as words, into a template; `{}` marks its place.

    Raises:
        UsageError: the template has no `{}`.
    """
    if "{}" not in template:
        raise UsageError(f"template {template!r} has no {{}} for the class name; write e.g. 'a photo of a {{}}.'")
    return template.replace("{}", spoken(class_name))


def class_prompts_of(
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    class_prompts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the hand-written prompts of each class: its own (as in CuPL), or the templates with its name.

    Raises:
        UsageError: a class has no prompt, or a template no place for its name.
    """
    own = class_prompts or {}
    prompts = {name: tuple(own.get(name, ())) or tuple(fill(t, name) for t in templates) for name in class_names}
    bare = next((name for name, of_class in prompts.items() if not of_class), None)
    if bare is not None:
        raise UsageError(f"class {bare!r} has no prompt; set data.templates, e.g. ['a photo of a {{}}.']")
    return prompts


@torch.no_grad()
def template_embeddings(
    encode: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    class_prompts: Mapping[str, Sequence[str]] | None = None,
) -> Tensor:
    """Return class embeddings of hand-written prompts, `(classes, dim)` normalized.

    Each class is the normalized mean of the normalized embeddings of its prompts.

    Args:
        encode: tokens `(texts, context_length)` to features `(texts, dim)`.
        class_prompts: prompts of a class that replace the templates (as in CuPL).

    Raises:
        UsageError: a class has no prompt, or a template no place for its name.

    Source: CLIP, arXiv:2103.00020, section 3.1.4.
    """
    prompts = class_prompts_of(class_names, templates=templates, class_prompts=class_prompts)
    features = encode_texts(encode, tokenizer, [prompt for of_class in prompts.values() for prompt in of_class])
    rows = torch.split(features, [len(of_class) for of_class in prompts.values()])
    return torch.stack([normalized_mean(of_class) for of_class in rows])


def encode_texts(encode: Callable[[Tensor], Tensor], tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Return features `(texts, dim)` of texts as they are, some at a time; too long ones lose their end."""
    batches = torch.split(tokenizer(list(texts)), TEXT_BATCH_SIZE)
    return torch.cat([encode(batch) for batch in tracked(batches, "encode prompts")])


def cut_texts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the indices of texts that are longer than the text tower reads.

    With room for one token more, a text that fits is the same and padding, and one that was cut goes on.
    """
    short = tokenizer(list(texts))
    longer = tokenizer(list(texts), context_length=short.shape[1] + 1)
    return [int(index) for index in torch.nonzero((longer[:, :-1] != short).any(1))[:, 0]]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Classes whose prompts run through the text tower together.

    Attributes:
        runs: classes with prompts of one length: their indices `(classes,)` int64 and that length.
        recompute: forget the activations, and compute them again for the gradient.
    """

    runs: tuple[tuple[Tensor, int], ...]
    recompute: bool = False

    @property
    def classes(self) -> Tensor:
        """Indices of the classes in the order of the runs, `(classes,)` int64."""
        return torch.cat([classes for classes, _ in self.runs])


@dataclass(frozen=True)
class _Outside:
    """Holds the tower so that it is not a submodule: its frozen weights are not part of what is learned."""

    tower: TextSide


class PromptLearner(nn.Module):
    """`[SOS][v_1 .. v_M][class name][.][EOT]` with M learned context vectors shared by all classes.

    Attributes:
        context: `(M, width)`, the only parameter.
        first: the context before its first step.
        suffixes: embeddings of the class names, their stop and EOT, cut at the longest, `(classes, S, width)`.
        end: pooled position within the whole prompt, `(classes,)`.
        lengths: tokens of each prompt that the tower reads, `(classes,)` int64: up to its end where that is exact.
        share_prefix: run the start token and the context once for all classes.
        team: processes that run a share of the chunks each; see `divide`.
        chunks: which classes run together. They are the same for every number of processes, so that sums are taken in
            one order.
        budget_bytes: bound on the activations that a step keeps; 0 before there is one.

    Source: CoOp, arXiv:2109.01134, eq. (2); P4Q, arXiv:2409.17634, section 3.2.
    """

    start: Tensor
    first: Tensor
    suffixes: Tensor
    end: Tensor

    def __init__(
        self,
        tower: TextSide,
        tokenizer: Any,
        class_names: Sequence[str],
        *,
        context: Tensor,
    ) -> None:
        super().__init__()
        self._outside = _Outside(tower=tower)
        self.context = nn.Parameter(context.clone())
        self.register_buffer("first", context.detach().clone(), persistent=False)
        num_start = 1 if _has_start_token(tokenizer) else 0
        tokens = tokenizer([f"{spoken(name)}." for name in class_names])  # (classes, context_length)
        moved = _with_room(tokens, num_start, len(context), class_names, tower)
        end = tower.end_index(moved)
        length = int(end.max()) + 1 if tower.cuts_at_end else moved.shape[1]
        embedded = tower.embed(moved[:, :length])
        self.register_buffer("start", embedded[0, :num_start])
        self.register_buffer("suffixes", embedded[:, num_start + len(context) :])
        end = end.to(embedded.device)
        self.register_buffer("end", end)
        self.share_prefix = tower.shares_prefix and len(class_names) >= SHARED_PREFIX_CLASSES
        self.lengths = end + 1 if tower.cuts_at_end else torch.full_like(end, length)
        self.budget_bytes = 0
        self.team = ALONE
        self._make_chunks(self._least_chunks)

    @property
    def tower(self) -> TextSide:
        """The text tower that the prompts run through."""
        return self._outside.tower

    def forward(self) -> Tensor:
        """Return class embeddings `(classes, dim)`, normalized, with a gradient to the context."""
        tower = self.tower
        prefix = torch.cat([self.start, self.context])  # (P, width)
        shared = tower.read_prefix(prefix) if self.share_prefix else None
        own = [*zip(self.chunks, self._for_each_chunk(prefix, shared), strict=True)][self.team.dealt]
        features = []
        for chunk, (before, known) in own:
            if chunk.recompute and torch.is_grad_enabled():
                features.append(
                    checkpoint(self._features, chunk, before, known, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                features.append(self._features(chunk, before, known))
        order = torch.cat([chunk.classes for chunk, _ in own])
        return F.normalize(self.team.join_rows(torch.cat(features), order, len(self.lengths)), dim=-1)

    def _for_each_chunk(self, prefix: Tensor, shared: Prefix | None) -> list[tuple[Tensor, Prefix | None]]:
        """Return what all chunks begin with, for each of them; its gradients are summed in the order of the chunks.

        Whichever process runs a chunk, all have the gradient that one process alone would have, bit by bit.
        """
        if len(self.chunks) == 1:
            return [(prefix, shared)]
        parts = [prefix] if shared is None else [part for block in shared.blocks for part in block]
        flat = torch.cat([part.reshape(-1) for part in parts])
        copies = self.team.join_gradients(flat.expand(len(self.chunks), -1)).unbind()
        sizes = [part.numel() for part in parts]
        found: list[tuple[Tensor, Prefix | None]] = []
        for copy in copies:
            own = [piece.view_as(part) for piece, part in zip(torch.split(copy, sizes), parts, strict=True)]
            if shared is None:
                found.append((own[0], None))
            else:
                found.append((prefix, replace(shared, blocks=tuple(zip(own[::2], own[1::2], strict=True)))))
        return found

    def _features(self, chunk: Chunk, prefix: Tensor, shared: Prefix | None) -> Tensor:
        """Return features of one chunk's classes `(classes, dim)`, in the order of its runs."""
        tower = self.tower
        suffixes = [self.suffixes[classes, : length - len(prefix)] for classes, length in chunk.runs]
        if shared is not None:
            return tower.continue_prefix(shared, suffixes)
        whole = [torch.cat([prefix.expand(len(suffix), -1, -1), suffix], dim=1) for suffix in suffixes]
        ends = [self.end[classes] for classes, _ in chunk.runs]
        return torch.cat([tower(texts, end) for texts, end in zip(whole, ends, strict=True)])

    def divide(self, team: Team) -> None:
        """Run a share of the chunks in each process, and all of them in each where there are too few.

        Each forward pass is then one of the whole team, and every process gets the embeddings of all classes. A
        gradient of all of them gives every process the whole gradient of the context.
        """
        self.team = team if team.size <= len(self.chunks) else ALONE
        self._mark()

    @property
    def _least_chunks(self) -> int:
        tokens = int((self.lengths - self._shared_tokens).sum())
        least = TOKENS_OF_CHUNK_ON_GPU if self.end.device.type == "cuda" else TOKENS_OF_CHUNK
        return min(max(tokens // least, 1), MOST_CHUNKS, len(self.lengths))

    def _make_chunks(self, number: int, kept: int | None = None) -> None:
        """Divide the classes into so many chunks of about as many tokens; a process keeps the activations of `kept`."""
        order = self.lengths.argsort(stable=True)
        parts = [order[first::number].sort().values for first in range(number)]
        self.chunks: tuple[Chunk, ...] = tuple(Chunk(runs=_equal_lengths(self.lengths[p], p)) for p in parts)
        self._kept = number if kept is None else kept
        self._mark()

    def _mark(self) -> None:
        """Let each process compute twice what it does not keep of the chunks that it is dealt."""
        self.chunks = tuple(
            replace(chunk, recompute=number // self.team.size >= self._kept) for number, chunk in enumerate(self.chunks)
        )

    @torch.no_grad()
    def at_first(self) -> Tensor:
        """Return class embeddings `(classes, dim)`, normalized, of the context before its first step."""
        learned = self.context.clone()
        self.context.copy_(self.first)
        embedding: Tensor = self()
        self.context.copy_(learned)
        return embedding

    def limit_memory(self, budget_bytes: int) -> None:
        """Bound the activations that a step keeps in one process; chunks beyond the bound are computed twice.

        The gradient stays exact. What a token needs is measured on this tower, in its present phase.
        """
        of_token = self._kept_bytes_per_token(int(self.lengths.argmax()))
        whole = int((self.lengths - self._shared_tokens).sum() * of_token)
        self.budget_bytes = min(budget_bytes, whole)
        if whole <= budget_bytes:
            self._make_chunks(self._least_chunks)
            return
        needed = min(-(-whole * KEPT_SHARES // budget_bytes), len(self.lengths))
        number = max(needed, self._least_chunks)
        # The last share of the bound is for what is computed again.
        self._make_chunks(number, number * budget_bytes * (KEPT_SHARES - 1) // (whole * KEPT_SHARES))

    def keep_less(self) -> bool:
        """Halve the bound on activations, as memory ran out; False where it is at its least already."""
        if self.budget_bytes <= LEAST_KEPT_BYTES:
            return False
        self.limit_memory(self.budget_bytes // 2)
        return True

    @property
    def _shared_tokens(self) -> int:
        return len(self.start) + len(self.context) if self.share_prefix else 0

    def _kept_bytes_per_token(self, longest: int) -> float:
        tower = self.tower
        length = int(self.lengths[longest])
        prefix = torch.cat([self.start, self.context])
        shared = tower.read_prefix(prefix) if self.share_prefix else None
        alone, twice = (
            Chunk(runs=((torch.full((texts,), longest, device=self.end.device), length),)) for texts in (1, 2)
        )
        # The difference of two texts and one: what is kept once for all, such as weights, is not part of it.
        one = kept_bytes(lambda: self._features(alone, prefix, shared))
        two = kept_bytes(lambda: self._features(twice, prefix, shared))
        return (two - one) / (length - self._shared_tokens)

    def prompts(self) -> Tensor:
        """Whole prompts as embeddings, `(classes, L, width)`."""
        prefix = torch.cat([self.start, self.context])
        return torch.cat([prefix.expand(len(self.suffixes), -1, -1), self.suffixes], dim=1)


def initial_context(
    tower: TextSide, tokenizer: Any, *, words: str, num_tokens: int, generator: torch.Generator
) -> Tensor:
    """Context to start from, `(M, width)`: the embeddings of `words`, or random vectors when `words` is empty.

    Raises:
        UsageError: the words have another number of tokens than `num_tokens` asks for.
    """
    if not words:
        drawn = torch.randn(num_tokens, tower.width, generator=generator) * RANDOM_CONTEXT_STD
        return drawn.to(device_of(tower))
    num_start = 1 if _has_start_token(tokenizer) else 0
    tokens, empty = tokenizer([words]), tokenizer([""])
    padding = empty[0, -1]
    num_words = int((tokens != padding).sum() - (empty != padding).sum())
    ids = tokens[:, num_start : num_start + num_words]
    if num_tokens not in (0, ids.shape[1]):
        raise UsageError(
            f"context_init {words!r} has {number_of(ids.shape[1], 'token')}, num_context_tokens is {num_tokens}; "
            "make them equal, or leave context_init empty for a random start"
        )
    return tower.embed(ids)[0].detach()


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Return bytes that a computation keeps for its gradient."""
    kept: dict[int, int] = {}

    def count(saved: Tensor) -> Tensor:
        kept[memory_of(saved)] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        result = run()
    del result  # until here it holds what was counted, so that no address is counted for two tensors
    return sum(kept.values())


def _equal_lengths(lengths: Tensor, classes: Tensor) -> tuple[tuple[Tensor, int], ...]:
    """Return classes grouped by the length of their prompts, short ones first."""
    return tuple((classes[lengths == length], int(length)) for length in torch.unique(lengths))


def _has_start_token(tokenizer: Any) -> bool:
    first = tokenizer(["a", "b"])[:, 0]
    return bool(first[0] == first[1])


def _with_room(tokens: Tensor, num_start: int, num_context: int, class_names: Sequence[str], tower: TextSide) -> Tensor:
    """Shift everything after the start token by `num_context` places; what falls off must be padding."""
    limit = tokens.shape[1]
    # The names' first tokens hold the places: they are neither padding nor an end, which a tower may look for.
    room = tokens[:, num_start : num_start + 1].expand(-1, num_context)
    moved = torch.cat([tokens[:, :num_start], room, tokens[:, num_start:]], 1)
    lost = moved[:, limit:]
    padding = tokens[:, -1:]
    beyond = tower.end_index(tokens) + num_context >= limit
    overflow = (lost != padding).any(1) | (beyond if tower.cuts_at_end else torch.zeros_like(beyond))
    if bool(overflow.any()):
        name = class_names[int(overflow.int().argmax())]
        raise UsageError(
            f"class name {name!r} with {number_of(num_context, 'context token')} needs more than {limit} tokens; "
            "shorten the name or lower learn.num_context_tokens"
        )
    return moved[:, :limit]
