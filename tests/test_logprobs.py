"""The tiled path against its definition, in value and gradient; the definition against float64."""

import math
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import fast
import logprobs
from fast import tiles
from logprobs import log_softmax_gather, reference_logprobs, response_logprobs, token_logprobs
from sampler import Rollout, sample

# these tests, on the Triton kernels: see test_the_triton_kernels_pass_the_same_tests
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCE = [(torch.float32, 1e-4), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)]


@pytest.fixture
def cut(monkeypatch):
    """cut(rows, vocabulary): no table is too small to be cut into tiles, and these are theirs."""

    def set_tiles(rows, vocabulary):
        monkeypatch.setattr(logprobs, "SMALL_TABLE", 0)
        monkeypatch.setitem(tiles.TILE, "cpu", (rows, vocabulary))

    return set_tiles


def inputs(M=11, C=7, V=23, dtype=torch.float64, scale=1.0):
    """hidden (M, C), weight (V, C), targets (M,)"""
    generator = torch.Generator().manual_seed(0)
    hidden = scale * torch.randn(M, C, generator=generator, dtype=torch.float64)
    weight = scale * torch.randn(V, C, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (M,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def run(function, hidden, weight, targets, *more):
    """-> log-probs, entropy, gradients of hidden and weight under an uneven sum of both."""
    hidden = hidden.detach().requires_grad_()
    weight = weight.detach().requires_grad_()
    logp, entropy = function(hidden, weight, targets, *more)
    slope = torch.linspace(-1, 1, len(targets), dtype=logp.dtype, device=logp.device)
    (logp * slope + entropy * slope.flip(0)).sum().backward()
    return logp.detach(), entropy.detach(), hidden.grad, weight.grad


def run_float64(hidden, weight, targets, temperature=1.0):
    """The definition in float64."""
    return run(reference_logprobs, hidden.double(), weight.double(), targets, temperature)


def errors(results, wanted):
    """Largest difference of log-probs and of entropy; of gradients relative to their size."""
    differences = [a.double() - b for a, b in zip(results, wanted, strict=True)]
    worst = [difference.abs().max().item() for difference in differences[:2]]
    for difference, want in zip(differences[2:], wanted[2:], strict=True):
        worst.append((difference.norm() / want.norm()).item())
    return worst


# --- Tiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("keep", [0, 500, 1 << 30])  # every tile computed again, some, none
@pytest.mark.parametrize("rows, vocabulary", [(1, 23), (3, 5), (4, 8), (11, 23), (16, 64)])
def test_tiles_are_the_definition(cut, temperature, keep, rows, vocabulary):
    cut(rows, vocabulary)
    results = run(token_logprobs, *inputs(), temperature, keep)
    assert max(errors(results, run_float64(*inputs(), temperature))) < 1e-12


@pytest.mark.parametrize("dtype, tolerance", TOLERANCE)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("V, scale", [(512, 1.0), (6007, 1.0), (6007, 2.0)])
def test_precision_against_float64(cut, dtype, tolerance, temperature, V, scale):
    """On the same inputs. Log-probs and entropy to 5e-5 nats in every dtype, gradients to its
    rounding. V is odd, logits reach 40."""
    cut(512, 2048)
    arguments = inputs(24, 16, V, dtype, scale)
    results = run(token_logprobs, *arguments, temperature)
    assert results[0].dtype == torch.float32
    assert results[2].dtype == results[3].dtype == dtype
    if INTERPRETED and dtype == torch.bfloat16:
        tolerance *= 2  # the interpreter truncates where a GPU rounds
    logp, entropy, d_hidden, d_weight = errors(results, run_float64(*arguments, temperature))
    assert max(logp, entropy) < 5e-5 and max(d_hidden, d_weight) < tolerance


@pytest.mark.parametrize("p", [0.6, 0.98, 0.9998])
def test_confident_tokens_keep_their_gradient(cut, p):
    """1 - p in bfloat16: joined in fp32, before rounding, it is right to a percent at 0.9998."""
    cut(512, 2048)
    hidden, weight, targets = inputs(24, 40, 6007, torch.bfloat16, 0.5)
    # a column for each row makes its target as likely as p
    hidden[:, 16:] = 0
    weight[:, 16:] = 0
    others = (hidden.double() @ weight.double().T).logsumexp(1)
    weight[targets, torch.arange(16, 40)] = 1
    hidden[:, 16:] = torch.diag(others + torch.tensor(p / (1 - p)).log()).to(hidden)
    want_logp, _, want, _ = run_float64(hidden, weight, targets)
    assert want_logp.exp().median().item() == pytest.approx(p, rel=0.1)
    _, _, d_hidden, _ = run(token_logprobs, hidden, weight, targets)
    error = ((d_hidden.double() - want).norm(dim=1) / want.norm(dim=1)).median()
    assert error < (0.02 if INTERPRETED else 0.01)


@pytest.mark.parametrize("keep, times", [(0, 2), (1 << 20, 1)])
def test_tiles_never_hold_all_logits(cut, monkeypatch, keep, times):
    """3 x 3 tiles, made once; and once more in the backward pass if none is kept."""
    cut(4, 10)
    shapes = []
    product = tiles.product

    def recorded(a, b):
        shapes.append((len(a), b.shape[1]))
        return product(a, b)

    monkeypatch.setattr(tiles, "product", recorded)
    hidden, weight, targets = inputs()
    token_logprobs(hidden.requires_grad_(), weight, targets, 1.0, keep)[0].sum().backward()
    logits = [shape for shape in shapes if shape[1] != hidden.shape[1]]
    assert len(logits) == 9 * times
    assert all(rows <= 4 and columns <= 10 for rows, columns in logits)


def test_a_frozen_head_gets_no_gradient(cut):
    """And the states get the same as over a head that is trained."""
    cut(4, 8)
    hidden, weight, targets = inputs()
    gradients = []
    for trained in (True, False):
        hidden = hidden.detach().requires_grad_()
        head = weight.detach().requires_grad_(trained)
        token_logprobs(hidden, head, targets)[0].sum().backward()
        assert (head.grad is not None) == trained
        gradients.append(hidden.grad)
    assert torch.equal(*gradients) and gradients[0].norm() > 0


@pytest.mark.parametrize("small_table", [0, 1 << 24])
def test_autocast_rounds_what_is_multiplied_and_no_sum(monkeypatch, small_table):
    """And that only for a large vocabulary. The same on a CPU as on a GPU."""
    monkeypatch.setattr(logprobs, "SMALL_TABLE", small_table)

    def under_autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return token_logprobs(*arguments)

    hidden, weight, targets = inputs(dtype=torch.float32)
    results = run(under_autocast, hidden, weight, targets)
    assert [x.dtype for x in results] == [torch.float32] * 4
    of_values, of_gradients = 1e-5, 1e-5
    if small_table == 0:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
        of_values, of_gradients = 5e-5, 6e-3
    logp, entropy, d_hidden, d_weight = errors(results, run_float64(hidden, weight, targets))
    assert max(logp, entropy) < of_values and max(d_hidden, d_weight) < of_gradients


def test_a_second_backward_is_right_and_a_double_one_refused(cut):
    cut(4, 8)
    hidden, weight, targets = inputs()
    logp, _ = token_logprobs(hidden.requires_grad_(), weight, targets)
    (first,) = torch.autograd.grad(logp.sum(), hidden, retain_graph=True)  # uses up kept tiles
    (second,) = torch.autograd.grad(logp.sum(), hidden, retain_graph=True)
    assert torch.equal(first, second)
    (slope,) = torch.autograd.grad(logp.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("wrong", [-1, 23, 1 << 40])
def test_an_id_outside_the_vocabulary_is_nan_not_a_number(cut, wrong):
    cut(4, 8)
    hidden, weight, targets = inputs()
    targets[3] = wrong
    logp, _ = token_logprobs(hidden, weight, targets)
    assert logp[3].isnan() and logp.isnan().sum() == 1


def test_a_first_tile_of_minus_infinity(cut):
    """It may hold nothing possible."""
    cut(1, 2)
    weight = torch.tensor([[-torch.inf], [-torch.inf], [0.0], [1.0]])
    logp, _ = token_logprobs(torch.ones(4, 1), weight, torch.arange(4))
    assert logp.tolist() == pytest.approx([-torch.inf, -torch.inf, -1.3132617, -0.3132617])


# --- Given logits -----------------------------------------------------------------------------


def test_gather_by_hand_and_gradcheck():
    rows = [[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]]
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([2, 0])
    logp = log_softmax_gather(logits, targets)
    assert logp.tolist() == pytest.approx([2 - 2.407605964444380, -1.0986122886681098])
    assert torch.autograd.gradcheck(lambda x: log_softmax_gather(x, targets), logits)
    assert log_softmax_gather(logits.bfloat16(), targets).dtype == torch.float32


def test_rows_of_minus_infinity():
    """Logits of -inf have no gradient."""
    logits = torch.randn(4, 5000)
    logits[0, 3] = -torch.inf
    logits[1, :4999] = -torch.inf
    logits[2, 1:] = -torch.inf
    targets = torch.tensor([7, 4999, 0, 4000])

    def definition(logits, targets):
        return logits.log_softmax(1).gather(1, targets[:, None])[:, 0]

    results = []
    for function in (log_softmax_gather, definition):
        leaf = logits.clone().requires_grad_()
        logp = function(leaf, targets)
        (logp * torch.arange(1, 5)).sum().backward()
        results.append((logp, leaf.grad))
    (logp, gradient), (want_logp, want_gradient) = results
    assert torch.allclose(logp, want_logp, atol=1e-5)
    assert torch.allclose(gradient, want_gradient, atol=1e-6)


def test_impossible_tokens_leave_entropy_finite():
    logits, targets = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0])
    assert log_softmax_gather(logits, targets).isfinite().all()
    _, entropy = reference_logprobs(torch.ones(1, 1), logits.T, targets)
    assert entropy.item() == pytest.approx(0.6931472)


def test_the_callers_logits_are_left_alone():
    logits, targets = torch.randn(5, 33, requires_grad=True), torch.arange(5)
    before = logits.detach().clone()
    log_softmax_gather(logits, targets).sum().backward()
    assert torch.equal(logits, before)
    changed = logits * 1.0
    logp = log_softmax_gather(changed, targets)
    changed.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        logp.sum().backward()


# --- Of a rollout -----------------------------------------------------------------------------


def test_the_shift_by_one(tiny):
    """A prompt of one token and a response of three, written out."""
    model = tiny()
    logprobs, _ = response_logprobs(model, Rollout.from_lists([[5]], [[7, 9, 1]]))
    logp = model.logits(model(torch.tensor([[5, 7, 9]])))[0].log_softmax(-1)
    by_hand = torch.stack((logp[0, 7], logp[1, 9], logp[2, 1]))
    assert torch.allclose(logprobs[0], by_hand, atol=1e-5)


def gradient_of(function, model):
    """The gradient of the sum of a list of tensors."""
    loss = sum(x.sum() for x in function())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_gradients_flow_through_the_shared_prompt(tiny):
    """Prompts run once for a group: the same gradient as running every row by itself."""
    model = tiny().double()
    prompts = [[5, 6, 7], [8, 9]]
    responses = [[3, 4], [3], [2, 2, 2], [5, 6]]

    def together():
        rollout = Rollout.from_lists(prompts, responses, group_size=2)
        return response_logprobs(model, rollout)[:1]

    def alone():
        logprobs = []
        for i, response in enumerate(responses):
            ids = torch.tensor([prompts[i // 2] + response])
            logp = model.logits(model(ids))[0].log_softmax(-1)
            before = len(prompts[i // 2]) - 1  # the last token of the prompt
            logprobs += [logp[before + t, token] for t, token in enumerate(response)]
        return logprobs

    want = gradient_of(alone, model)
    assert want.norm() > 1 and (gradient_of(together, model) - want).abs().max() < 1e-10


@pytest.mark.parametrize("prompt", [[5, 6, 7], [5]])
def test_activation_checkpointing_changes_no_gradient(tiny, prompt):
    """Prompts run once and feed the responses through the cache.

    The gradient goes through what is run again."""
    model = tiny()
    rollout = sample(model, [prompt, [8, 9, 10, 11]], 4, 9, eos_id=1, seed=3)
    gradients, saved = [], []

    def save(x):
        saved[-1] += x.nbytes
        return x

    for recompute in (False, True):
        model.recompute = recompute
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
            gradients.append(gradient_of(lambda: response_logprobs(model, rollout), model))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5) and gradients[0].norm() > 1
    assert saved[1] < 0.5 * saved[0]


# --- Triton -----------------------------------------------------------------------------------

OF_TILES = "tiles_are or precision or confident or outside or minus or second or hand or overflow"


@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_the_triton_kernels_pass_the_same_tests():
    pytest.importorskip("triton")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", OF_TILES]
    inner = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output = inner.stdout + inner.stderr
    assert inner.returncode == 0 and " passed" in output and "skipped" not in output, output


def test_kernels_that_do_not_compile_are_done_without(monkeypatch):
    """No C compiler, say: found out before the first log-prob, and said once."""

    class Broken:
        def update_stats(self, *tensors):
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(fast, "triton_kernels", Broken(), raising=False)
    tiles.triton_module.cache_clear()
    with pytest.warns(UserWarning, match="without Triton: Failed to find C compiler"):
        ours = log_softmax_gather(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    assert ours.item() == pytest.approx(-math.log(1 + math.exp(-1)))
    assert tiles.triton_module("cpu", torch.float32) is None  # without a second warning
    tiles.triton_module.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="runs inside the test above")
def test_row_offsets_do_not_overflow_32_bits():
    """Three rows 2^31 - 4096 entries apart, in memory that is never touched elsewhere."""
    stride, K = 2**31 - 4096, 33
    z = torch.empty(2 * stride + K, dtype=torch.bfloat16).as_strided((3, K), (stride, 1))
    z.copy_(torch.randn(3, K))
    assert tiles.triton_module("cpu", z.dtype)
    stats = torch.zeros(4, 3)
    stats[0] = -1e30
    tiles.update_stats(z, torch.tensor([1, 2, 3]), stats)
    maximum, total, target, _ = stats
    assert torch.allclose(maximum + total.log(), z.float().logsumexp(1), atol=1e-5)
    assert target.tolist() == [z[i, i + 1].item() for i in range(3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype, tolerance", TOLERANCE)
def test_on_a_gpu(dtype, tolerance):
    arguments = [x.cuda() for x in inputs(5000, 64, 12345, dtype)]
    results = run(token_logprobs, *arguments)
    logp, entropy, d_hidden, d_weight = errors(results, run_float64(*arguments))
    assert max(logp, entropy) < 5e-5 and max(d_hidden, d_weight) < tolerance
