"""The chunked path against the three-line definition, in value and gradient, and the definition against float64."""
import pytest
import torch

import logprobs
from logprobs import log_softmax_gather, reference_logprobs, response_logprobs, token_logprobs
from sampler import Rollout


def inputs(M=11, C=7, V=23, dtype=torch.float64):
    torch.manual_seed(0)
    return (torch.randn(M, C, dtype=dtype, requires_grad=True), torch.randn(V, C, dtype=dtype, requires_grad=True),
            torch.randint(V, (M,)))


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 4, 11])                  # ragged last chunk, one row a chunk, all in one
def test_chunked_is_the_definition(monkeypatch, temperature, rows):
    monkeypatch.setattr(logprobs, "CHUNK", rows * 23)
    got, want = [], []
    for function, out in ((token_logprobs, got), (reference_logprobs, want)):
        hidden, weight, targets = inputs()
        logp, entropy = function(hidden, weight, targets, temperature)
        (logp * torch.arange(11)).sum().add(entropy.square().sum()).backward()
        out += [logp, entropy, hidden.grad, weight.grad]
    for a, b in zip(got, want):
        assert torch.allclose(a, b, atol=1e-12)


def test_chunks_never_hold_all_logits(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 23)
    seen = []
    monkeypatch.setattr(logprobs, "reference_logprobs", lambda h, *a: seen.append(len(h)) or reference_logprobs(h, *a))
    logp, _ = token_logprobs(*inputs())
    logp.sum().backward()
    assert max(seen) == 4 and sum(seen) == 2 * 11                # each row once forward, once again backward


def test_a_frozen_head_gets_no_gradient(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK", 4 * 23)
    hidden, weight, targets = inputs()
    weight.requires_grad_(False)
    token_logprobs(hidden, weight, targets)[0].sum().backward()
    assert weight.grad is None and hidden.grad.norm() > 0


def test_gather_by_hand_and_gradcheck():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([2, 0])
    logp = log_softmax_gather(logits, targets)
    assert logp.tolist() == pytest.approx([2 - 2.407605964444380, -1.0986122886681098])
    assert torch.autograd.gradcheck(lambda x: log_softmax_gather(x, targets), logits)
    assert log_softmax_gather(logits.bfloat16(), targets).dtype == torch.float32


def test_impossible_tokens_leave_entropy_finite():
    logits, targets = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0])
    assert log_softmax_gather(logits, targets).isfinite().all()
    logp, entropy = reference_logprobs(torch.ones(1, 1), torch.tensor([[0.0], [0.0], [-torch.inf]]), targets)
    assert entropy.item() == pytest.approx(0.6931472)


def test_the_shift_by_one(tiny):
    """A prompt of one token and a response of three, written out."""
    model = tiny()
    pair = Rollout.pack([[5]], [[7, 9, 1]])
    got, _ = response_logprobs(model, pair)
    logp = model.logits(model(torch.tensor([[5, 7, 9]]))).log_softmax(-1)[0]
    assert torch.allclose(got[0], torch.stack((logp[0, 7], logp[1, 9], logp[2, 1])), atol=1e-5)


def test_gradients_flow_through_the_shared_prompt(tiny):
    """Prompts run once for a group: the same gradient as running every row by itself."""
    model = tiny().double()
    prompts, responses = [[5, 6, 7], [8, 9]], [[3, 4], [3], [2, 2, 2], [5, 6]]
    def gradient(run):
        model.zero_grad()
        run()
        return torch.cat([p.grad.flatten() for p in model.parameters()])
    shared = gradient(lambda: response_logprobs(model, Rollout.pack(prompts, responses, group_size=2))[0].sum().backward())
    def alone():
        for i, r in enumerate(responses):
            ids = torch.tensor([prompts[i // 2] + r])
            logp = model.logits(model(ids)).log_softmax(-1)[0, -len(r) - 1:-1]
            logp.gather(1, torch.tensor(r)[:, None]).sum().backward()
    assert (shared - gradient(alone)).abs().max() < 1e-10
