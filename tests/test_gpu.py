"""The paths of a GPU, on one that is simulated: what it computes is what the CPU computes."""

from dataclasses import fields

import pytest
import torch
from conftest import read_csv
from simulated_gpu import gpu, install, plain

import evaluate
import train
from logprobs import reference_logprobs, response_logprobs, token_logprobs
from model import product
from sampler import sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]


@pytest.fixture
def cuda(monkeypatch):
    """Under `with cuda:` there is a GPU."""
    install(monkeypatch.setattr)
    for config in (train.Config, evaluate.Config):
        device = next(f for f in fields(config) if f.name == "device")
        choices = {**device.metadata, "choices": ("cpu", "cuda")}
        monkeypatch.setattr(device, "metadata", choices)
    return gpu


# --- The simulation ---------------------------------------------------------------------------


def test_both_kinds_do_not_mix(cuda):
    with cuda:
        x = torch.ones(3, device="cuda")
        assert (x.device.type, x.is_cuda, x.cpu().device.type) == ("cuda", True, "cpu")
        assert (x * torch.tensor(2.0)).sum() == 6
        with pytest.raises(RuntimeError, match="add: GPU tensors, and on the CPU"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="cat"):
            torch.cat((x, torch.ones(1)))
        moved = x.to("cpu")
        moved.zero_()
        assert x.sum() == 3


def test_a_recorded_graph_does_nothing_until_it_is_replayed(cuda):
    with cuda:
        x = torch.ones(3, device="cuda")
        count = torch.zeros(1, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            count += 1
            y = x[1:] * 2 + count
        assert count == 0 and y.isnan().all()
        x.fill_(5)
        for turn in (1, 2):
            graph.replay()
            assert count == turn and y.tolist() == [10 + turn] * 2


@pytest.mark.parametrize("name", ["item", "nonzero", "cpu", "tolist"])
def test_nothing_waits_while_a_graph_is_recorded(cuda, name):
    with cuda:
        x = torch.ones(1, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(graph):
            getattr(x, name)()


# --- What runs on it --------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 4, "qkv_bias": True, "qk_norm": True}])
def test_the_sampler(tiny, cuda, changes):
    """Ragged prompts, rows that leave, three graphs: the same tokens, and a wait a block."""
    model = tiny(max_seq_len=256, **changes)
    expected = sample(model, PROMPTS, 4, 150, eos_id=[5], seed=3)
    assert expected.lengths.min() < 60 and expected.lengths.max() == 150
    cuda.replays = 0
    with cuda:
        model.to("cuda")
        waits = []
        for length in (100, 150):
            cuda.waits.clear()
            out = sample(model, PROMPTS, 4, length, eos_id=[5], seed=3)
            waits.append(cuda.waits.copy())
        assert waits[1] - waits[0] == {"nonzero": 1}  # at token 128
        trained, _ = response_logprobs(model, out)
    assert cuda.replays == 100 - 2 + 150 - 3  # the first token of a block runs as it is
    assert torch.equal(plain(out.response_ids), expected.response_ids)
    assert torch.allclose(plain(out.old_logprobs), expected.old_logprobs, atol=1e-5)
    assert torch.allclose(plain(trained), expected.old_logprobs, atol=1e-4)


def test_a_large_vocabulary(cuda, monkeypatch):
    """Its tiles, forward and backward, where Triton is not installed."""
    monkeypatch.setattr("fast.tiles.triton_module", lambda device, dtype: None)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 16), torch.randn(9000, 16), torch.arange(20)

    def run(function, *inputs):
        logprobs, entropy = function(*inputs, targets.to(inputs[0].device))
        gradients = torch.autograd.grad(logprobs.sum() + entropy.sum(), inputs)
        return [plain(x.detach()) for x in (logprobs, entropy, *gradients)]

    expected = run(reference_logprobs, hidden.requires_grad_(), weight.requires_grad_())
    with cuda:
        there = [x.detach().to("cuda").requires_grad_() for x in (hidden, weight)]
        results = run(token_logprobs, *there)
    for result, right in zip(results, expected, strict=True):
        assert torch.allclose(result, right, atol=1e-4)


def test_products_of_bf16_are_fp32(cuda):
    with cuda:
        a = torch.randn(2, 3, device="cuda", dtype=torch.bfloat16)
        stacks = a[None].repeat(4, 1, 1)
        assert product(a, a.mT).dtype == product(stacks, stacks.mT).dtype == torch.float32


SMALL = """--prompts_per_step 2 --group_size 4 --max_new_tokens 20 --tokens_per_microbatch 200
    --eval_sets 1 --eval_problems 2 --eval_k 2 --eval_max_new_tokens 20 --eval_every 1"""
RUNS = [
    "--lag 1 --max_new_tokens 66",
    "--algo ppo",
    "--algo opd --teacher data/base",
    "--recompute --dynamic_sampling 2",
]


def numbers(path):
    """[{column: its number}] of a CSV, without the clock's and those of text."""
    rows = []
    for row in read_csv(path):
        names = [name for name in row if "second" not in name and name != "set"]
        rows.append({name: float(row[name]) for name in names})
    return rows


@pytest.mark.parametrize("flags", RUNS)
def test_training(cuda, tmp_path, flags):
    """A run and its evaluation give what they give on the CPU; then one more step of it."""
    argv = f"{SMALL} {flags} --steps 1 --out".split()
    train.main([*argv, str(tmp_path / "cpu")])
    with cuda:
        train.main([*argv, str(tmp_path / "gpu"), "--device", "cuda"])
        train.main(["--out", str(tmp_path / "gpu"), "--resume", "--steps", "2"])
    for file in ("metrics.csv", "eval.csv"):
        expected, rows = numbers(tmp_path / "cpu" / file), numbers(tmp_path / "gpu" / file)
        assert 0 < len(expected) < len(rows)
        for right, row in zip(expected, rows, strict=False):
            assert row == pytest.approx(right, rel=1e-3, abs=1e-4, nan_ok=True)


def test_training_in_bf16(cuda, tmp_path):
    """The first pass over a rollout finds nearly the log-probs that the sampler recorded."""
    argv = f"{SMALL} --dtype bfloat16 --device cuda --steps 1 --minibatches 1 --out".split()
    with cuda:
        train.main([*argv, str(tmp_path)])
    assert 0 < numbers(tmp_path / "metrics.csv")[0]["mean_abs_log_ratio"] < 0.03
