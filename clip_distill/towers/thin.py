"""A token table as a product of two: V rows of R numbers, and R directions of the tower's width.

ALBERT's factorised embedding (Lan et al., 2020, arXiv:1909.11942). CLIP's 49,408 tokens of width 128 are 6.3M numbers;
with R = 32 they are 1.6M, and a student keeps every token of its teacher.
Shapes: V tokens, R rank, w width, L tokens of a text.
"""

from __future__ import annotations

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

SCALE = 0.02  # of open_clip's random rows


class ThinEmbedding(nn.Module):
    """Looks up R numbers of each token, and multiplies them by one matrix for all.

    Args:
        tokens: V.
        rank: R.
        width: w.
    """

    def __init__(self, tokens: int, rank: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(tokens, rank)
        self.directions = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.rows.weight, std=SCALE * (width / rank) ** 0.5)
        nn.init.orthogonal_(self.directions.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens […] → […, w]."""
        embeddings: Tensor = self.directions(self.rows(tokens))
        return embeddings

    @torch.no_grad()
    def whole(self) -> Tensor:
        """[V, w] the table that this is."""
        return self.rows.weight @ self.directions.weight.T

    @torch.no_grad()
    def take(self, table: Tensor) -> None:
        """Become the nearest to a table [V, w]: its R greatest singular vectors, the directions of unit length."""
        table = table.float()
        values, vectors = torch.linalg.eigh(table.T @ table)
        kept = vectors[:, values.argsort(descending=True)[: self.rows.embedding_dim]]  # [w, R]
        self.directions.weight.copy_(kept)
        self.rows.weight.copy_(table @ kept)


def make_thin(tower: TextTransformer, rank: int) -> TextTransformer:
    """Give one of open_clip's text towers a thin table, with random numbers; the rest stays."""
    table: nn.Embedding = tower.token_embedding
    tower.token_embedding = ThinEmbedding(table.num_embeddings, rank, table.embedding_dim)
    return tower


def make_whole(tower: TextTransformer) -> TextTransformer:
    """The reverse, which computes the same."""
    table: ThinEmbedding = tower.token_embedding
    tower.token_embedding = nn.Embedding.from_pretrained(table.whole(), freeze=False)
    return tower
