"""Small fakes that the tests share. No downloads, no GPU."""
import os
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

os.environ["OMP_NUM_THREADS"] = "1"       # of the programs that tests start
torch.set_num_threads(1)                  # the tests share the cores: pytest -n auto

from model import GPT, GPTConfig  # noqa: E402


@pytest.fixture
def tiny():
    """tiny(**changes) -> a random model, 2 layers, grouped-query attention; weights large enough to have opinions."""
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(**dict(vocab_size=37, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48,
                                     max_seq_len=64) | changes))
        for p in model.parameters():
            if p.dim() == 2:
                p.data.mul_(8)
        return model
    return make
