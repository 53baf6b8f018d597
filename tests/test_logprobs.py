"""The tiled path against the three-line definition, in value and gradient, and the definition against float64."""
import os
import subprocess
import sys

import pytest
import torch

import logprobs
from logprobs import log_softmax_gather, reference_logprobs, response_logprobs, token_logprobs
from sampler import Rollout


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"       # these tests, on the Triton kernels: see the last one


@pytest.fixture
def tiles(monkeypatch):
    """tiles(rows, columns): no problem is too small to be cut, and this is how."""
    def cut(rows, columns):
        monkeypatch.setattr(logprobs, "PLAIN", 0)
        monkeypatch.setitem(logprobs.TILE, "cpu", (rows, columns))
    return cut


def inputs(M=11, C=7, V=23, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    return draw(M, C), draw(V, C), torch.randint(V, (M,), generator=g)


def run(function, hidden, weight, targets, *more):
    """-> log-probs, entropy, and the gradients of hidden and weight under an uneven sum of both."""
    hidden, weight = (x.detach().clone().requires_grad_(x.requires_grad) for x in (hidden, weight))
    logp, entropy = function(hidden, weight, targets, *more)
    slope = torch.linspace(-1, 1, len(targets), dtype=logp.dtype)
    (logp * slope + entropy * slope.flip(0)).sum().backward()
    return logp.detach(), entropy.detach(), hidden.grad, weight.grad


def error(got, want):
    """Largest difference of log-probs and entropy; of gradients relative to their size."""
    worst = [(a.double() - b).abs().max().item() for a, b in zip(got[:2], want[:2])]
    return worst + [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got[2:], want[2:])]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("keep", [0, 500, 1 << 30])              # every tile computed again, some, none
@pytest.mark.parametrize("rows, columns", [(1, 23), (3, 5), (4, 8), (11, 23), (16, 64)])
def test_tiles_are_the_definition(tiles, temperature, keep, rows, columns):
    tiles(rows, columns)
    got = run(token_logprobs, *inputs(), temperature, keep)
    assert max(error(got, run(reference_logprobs, *inputs(), temperature))) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("V, scale", [(512, 1.0), (6007, 1.0), (6007, 2.0)])
def test_precision_against_float64(tiles, dtype, tolerance, temperature, V, scale):
    """On the same inputs: log-probs and entropy to 5e-5 nats in every dtype, gradients to its rounding. V is odd, logits
    reach 40."""
    tiles(512, 2048)
    hidden, weight, targets = inputs(24, 16, V, dtype, scale)
    got = run(token_logprobs, hidden, weight, targets, temperature)
    want = run(reference_logprobs, hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets, temperature)
    logp, entropy, d_hidden, d_weight = error(got, want)
    assert got[0].dtype == torch.float32 and got[2].dtype == got[3].dtype == dtype
    if INTERPRETED and dtype == torch.bfloat16:
        tolerance *= 2                                           # the interpreter truncates where a GPU rounds
    assert logp < 5e-5 and entropy < 5e-5 and d_hidden < tolerance and d_weight < tolerance


@pytest.mark.parametrize("p", [0.6, 0.98, 0.9998])
def test_confident_tokens_keep_their_gradient(tiles, p):
    """1 - p in bfloat16: joined in fp32 before rounding, a token at 0.9998 is still right to a percent, not to 100%."""
    tiles(512, 2048)
    hidden, weight, targets = inputs(24, 40, 6007, torch.bfloat16, 0.5)
    with torch.no_grad():                                        # a column for each row makes its target as likely as p
        hidden[:, 16:], weight[:, 16:] = 0, 0
        others = (hidden.double() @ weight.double().T).logsumexp(1)
        weight[targets, torch.arange(16, 40)] = 1
        hidden[:, 16:] = torch.diag(others + torch.tensor(p / (1 - p)).log()).to(hidden)
    got = run(token_logprobs, hidden, weight, targets)
    want = run(reference_logprobs, *(x.detach().double().requires_grad_() for x in (hidden, weight)), targets)
    assert want[0].exp().median().item() == pytest.approx(p, rel=0.1)
    per_token = ((got[2].double() - want[2]).norm(dim=1) / want[2].norm(dim=1)).median()
    assert per_token < (0.02 if INTERPRETED else 0.01)


def test_tiles_never_hold_all_logits(tiles, monkeypatch):
    tiles(4, 10)
    sizes, product = [], logprobs.product
    monkeypatch.setattr(logprobs, "product", lambda a, b: sizes.append((len(a), b.shape[1])) or product(a, b))
    token_logprobs(*inputs(), 1.0, 0)[0].sum().backward()
    logits = [s for s in sizes if s[1] != 7]
    assert max(logits) <= (4, 10) and len(logits) == 2 * 9        # 3 x 3 tiles, once forward, once again backward
    sizes.clear()
    token_logprobs(*inputs(), 1.0, 1 << 20)[0].sum().backward()
    assert len([s for s in sizes if s[1] != 7]) == 9             # kept


def test_a_frozen_head_gets_no_gradient(tiles):
    tiles(4, 8)
    hidden, weight, targets = inputs()
    weight.requires_grad_(False)
    token_logprobs(hidden, weight, targets)[0].sum().backward()
    assert weight.grad is None and hidden.grad.norm() > 0


def test_autocast_changes_nothing_on_a_cpu(tiles):
    tiles(4, 8)
    args = inputs(dtype=torch.float32)
    want = run(token_logprobs, *args)
    for plain in (0, 1 << 24):
        logprobs.PLAIN = plain
        def under_autocast(*args):
            with torch.autocast("cpu", torch.bfloat16):
                return token_logprobs(*args)
        assert max(error(run(under_autocast, *args), want)) < 1e-5


def test_a_second_backward_is_right_and_a_double_one_refused(tiles):
    tiles(4, 8)
    hidden, weight, targets = inputs()
    logp, _ = token_logprobs(hidden, weight, targets)
    first, = torch.autograd.grad(logp.sum(), hidden, retain_graph=True)          # uses up the kept tiles
    second, = torch.autograd.grad(logp.sum(), hidden, retain_graph=True)
    assert torch.equal(first, second)
    slope, = torch.autograd.grad(logp.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_the_callers_logits_are_left_alone():
    logits, targets = torch.randn(5, 33, requires_grad=True), torch.arange(5)
    before = logits.detach().clone()
    log_softmax_gather(logits, targets).sum().backward()
    assert torch.equal(logits, before)
    copy = logits.detach().clone().requires_grad_()
    changed = copy * 1.0
    logp = log_softmax_gather(changed, targets)
    changed.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        logp.sum().backward()


@pytest.mark.parametrize("wrong", [-1, 23, 1 << 40])
def test_an_id_outside_the_vocabulary_is_nan_not_a_number(tiles, wrong):
    tiles(4, 8)
    hidden, weight, targets = inputs()
    targets[3] = wrong
    logp, _ = token_logprobs(hidden, weight, targets)
    assert logp[3].isnan() and logp.isnan().sum() == 1


def test_rows_of_minus_infinity():
    """The first tile of a row may hold nothing possible; logits of -inf have no gradient."""
    logits = torch.randn(4, 5000)
    logits[0, 3], logits[1, :4999], logits[2, 1:] = -torch.inf, -torch.inf, -torch.inf
    got, want = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    targets = torch.tensor([7, 4999, 0, 4000])
    a, b = log_softmax_gather(got, targets), want.log_softmax(1).gather(1, targets[:, None])[:, 0]
    (a * torch.arange(1, 5)).sum().backward()
    (b * torch.arange(1, 5)).sum().backward()
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(got.grad, want.grad, atol=1e-6)


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


# --- Triton -----------------------------------------------------------------------------------------------------------

@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_the_triton_kernels_pass_the_same_tests():
    pytest.importorskip("triton")
    inner = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k",
                            "precision or confident or tiles_are or outside or minus or second or hand or overflow"],
                           env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert inner.returncode == 0 and " passed" in inner.stdout and "skipped" not in inner.stdout, inner.stdout + inner.stderr


@pytest.mark.skipif(not INTERPRETED, reason="runs inside the test above")
def test_row_offsets_do_not_overflow_32_bits():
    """Three rows that lie 2^31 - 4096 entries apart in memory that is never touched elsewhere."""
    far, K = 2 ** 31 - 4096, 33
    z = torch.empty(2 * far + K, dtype=torch.bfloat16).as_strided((3, K), (far, 1))
    z.copy_(torch.randn(3, K))
    assert logprobs.fused(z)
    state = torch.zeros(4, 3)
    state[0] = -1e30
    logprobs.stats(z, torch.tensor([1, 2, 3]), state)
    assert torch.allclose(state[0] + state[1].log(), z.float().logsumexp(1), atol=1e-5)
    assert state[2].tolist() == [z[i, i + 1].item() for i in range(3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_on_a_gpu(dtype, tolerance):
    hidden, weight, targets = (x.detach().cuda() for x in inputs(5000, 64, 12345, dtype))
    got = run(token_logprobs, hidden.requires_grad_(), weight.requires_grad_(), targets)
    want = run(reference_logprobs, hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), targets)
    logp, entropy, d_hidden, d_weight = error(got, want)
    assert logp < 5e-5 and entropy < 5e-5 and d_hidden < tolerance and d_weight < tolerance
