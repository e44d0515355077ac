"""What prompts need of a text tower, whichever library it is from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What the tokens that all texts begin with leave behind for the tokens after them.

    Attributes:
        length: number of those tokens, P.
        blocks: keys and values of each block, each `(heads, P, head_size)`.
    """

    length: int
    blocks: tuple[tuple[Tensor, Tensor], ...]


class TextSide(nn.Module, ABC):
    """A frozen text tower that takes token embeddings `(texts, L, width)`, learned vectors among them."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether tokens behind the end of a text cannot influence it because no token sees a later one."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Of the token embeddings."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Longest text in tokens."""

    @property
    def cuts_at_end(self) -> bool:
        """Whether nothing behind the end of a text can influence it, so that texts may be cut there."""
        return self.causal

    @property
    def shares_prefix(self) -> bool:
        """Whether `read_prefix` and `continue_prefix` fit this tower."""
        return False

    @abstractmethod
    def end_index(self, tokens: Tensor) -> Tensor:
        """Position where each text ends, `(texts,)` int64, for tokens `(texts, L)`."""

    @abstractmethod
    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Return features `(texts, dim)`, not normalized, of texts as token embeddings `(texts, L, width)`.

        Args:
            end: `(texts,)` int64, what `end_index` says of their tokens.
        """

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Word embeddings `(texts, L, width)` of tokens `(texts, L)`."""

    def encode(self, tokens: Tensor) -> Tensor:
        """Return features `(texts, dim)` of tokens `(texts, context_length)`, cut at the longest text where exact."""
        end = self.end_index(tokens)
        length = int(end.max()) + 1 if self.cuts_at_end else tokens.shape[1]
        embeddings = self.embed(tokens[:, :length])
        features: Tensor = self(embeddings, end.to(embeddings.device))
        return features

    def read_prefix(self, embeddings: Tensor) -> Prefix:
        """Run the tokens `(P, width)` that all texts begin with, once; only where `shares_prefix`."""
        raise NotImplementedError(f"{type(self).__name__} has no shared prefix")

    def continue_prefix(self, prefix: Prefix, runs: Sequence[Tensor]) -> Tensor:
        """Return features `(all texts, dim)` of texts behind a prefix; only where `shares_prefix`.

        Args:
            runs: what follows the prefix, texts of one length together, each `(texts, S, width)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no shared prefix")
