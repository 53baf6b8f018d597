"""A cache for sampling that holds each prompt once for its group (arXiv 2403.08845).

M rows, B prompts, J key/value heads, h = H / J query heads of one, D head width
"""

import torch

from model import DecodingCache, product


class SharedPromptCache(DecodingCache):
    """Keys and values of a prompt are read once for all of its rows, whose queries are one product.

    The rows hold only their own columns, those after the prompt."""

    def __init__(self, prompts):
        super().__init__(prompts)
        self.prompts = prompts  # the KVCache of B prompts
        self.shared = prompts.columns
        self.layers = [(k[:, :, self.shared :], v[:, :, self.shared :]) for k, v in prompts.layers]
        B, self.n_kv_head = prompts.layers[0][0].shape[:2]
        self.prompt = torch.arange(B, device=self.column.device)  # (M,) the prompt of each row

    def compact(self, rows, room):
        super().compact(rows, room)
        left, self.prompt = self.prompt[rows].unique(return_inverse=True)
        self.prompts = self.prompts.select(left)  # without those that have no row
        counts = self.prompt.bincount()
        most = int(counts.max())
        first = counts.cumsum(0) - counts
        row = torch.arange(len(self.prompt), device=left.device)
        member = row - first[self.prompt]  # (M,) which of its prompt's rows
        row_at = row.new_zeros(len(left) * most)  # where a prompt has fewer rows: row 0
        row_at[self.prompt * most + member] = row
        head = torch.arange(self.n_kv_head, device=left.device)
        # (B, J, most) -> row * J + head, and back: (M, J) -> place in that table
        self.members = (row_at.view(-1, 1, most) * self.n_kv_head + head[:, None]).flatten()
        place = (self.prompt[:, None] * self.n_kv_head + head) * most + member[:, None]
        self.places = place.flatten()

    def attention(self, layer, past, q, k, v, mask):
        M, J, _, D = k.shape
        own_k, own_v = self.write(past, k, v, self.new_column - self.shared)
        prompt_k, prompt_v = self.prompts.layers[layer]
        q_rows = (q * D**-0.5).reshape(M * J, -1, D)  # (M * J, h, D)
        scores = torch.cat((self.by_prompt(q_rows, prompt_k.mT), product(q_rows, own_k.mT)), -1)
        scores = torch.where(mask, scores.view(M, J, -1, self.columns), -torch.inf)
        p = scores.softmax(-1).flatten(0, 1).to(v.dtype)  # (M * J, h, K)
        own = product(p[..., self.shared :], own_v)
        y = own + self.by_prompt(p[..., : self.shared], prompt_v)
        return y.reshape(M, 1, -1).to(q.dtype)

    def by_prompt(self, x, y):
        """x (M * J, h, n) times its prompt's y (B, J, n, m) -> (M * J, h, m)."""
        h, n = x.shape[1:]
        y = y.flatten(0, 1)  # (B * J, n, m)
        x = x.index_select(0, self.members).view(len(y), -1, n)  # (B * J, most * h, n)
        z = product(x, y)
        return z.view(-1, h, z.shape[2]).index_select(0, self.places)
