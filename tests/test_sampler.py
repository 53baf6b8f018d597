"""Cache against no cache, sampler against trainer, a row against its batch mates, the draw against
its distribution."""

import pytest
import torch

from logprobs import response_logprobs
from sampler import Rollout, block, draw, pad_left, run_prompts, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19]]
MODELS = [
    dict(),
    dict(qkv_bias=True),
    dict(qk_norm=True, tie_embeddings=False),
    dict(n_kv_head=4),
]


# --- The caches -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS)
def test_cached_is_uncached(tiny, changes):
    """In pieces of any length, and a token at a time in the cache that is written in place."""
    model = tiny(**changes)
    ids = torch.randint(37, (3, 12))
    whole = model(ids)
    cache = model.new_cache()
    pieces = [model(ids[:, :5], cache)]
    cache = cache.select(torch.arange(3))
    pieces.append(model(ids[:, 5:9], cache))
    decoding = cache.decoding()
    decoding.compact(torch.arange(3), room=3)
    for t in range(9, 12):
        pieces.append(model(ids[:, t : t + 1], cache))
        decoded = model(ids[:, t : t + 1], decoding)
        assert torch.allclose(decoded, pieces[-1], atol=1e-4)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_gives_what_the_trainer_computes(tiny):
    model = tiny(max_seq_len=256).cuda()
    out = sample(model, PROMPTS, 8, 150, eos_id=[1, 2], seed=1)
    assert out.lengths.min() < 8  # rows left
    assert out.lengths.max() > block(0, model.head.device) + 2  # a second graph was made
    assert (response_logprobs(model, out)[0] - out.old_logprobs).abs().max() < 1e-4


def test_the_future_is_not_seen(tiny):
    model = tiny()
    ids = torch.randint(37, (2, 10))
    changed = ids.clone()
    changed[:, 6:] = 3
    assert torch.equal(model(ids)[:, :6], model(changed)[:, :6])


def test_left_padding_changes_nothing(tiny):
    model = tiny()
    ids, start = pad_left(PROMPTS, "cpu")
    assert start.tolist() == [4, 0, 6, 3] and ids[0].tolist() == [0, 0, 0, 0, 5, 6, 7]
    hidden, _ = run_prompts(model, ids, start)
    assert hidden.isfinite().all()
    for i, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([prompt]))[:, -1:]
        assert torch.allclose(hidden[i : i + 1], alone, atol=1e-5)


# --- The sampler ------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", MODELS)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_sampler_and_trainer_agree(tiny, changes, temperature):
    """Prompts of any lengths, rows that finish early and leave: recorded log-probs = those of the
    training pass = those of a plain forward pass over one prompt and response, shifted by hand."""
    model = tiny(**changes)
    out = sample(model, PROMPTS, 8, 40, temperature, eos_id=[1, 2, 3], seed=1)
    assert out.lengths.min() < 8 and out.lengths.max() > 16  # some left, some stayed long after
    trained, entropy = response_logprobs(model, out)
    assert (trained - out.old_logprobs).abs().max() < 1e-4
    for i in (0, 9, 31):
        prompt = PROMPTS[i // 8]
        n = int(out.lengths[i])
        response = out.response_ids[i, :n]
        logits = model.logits(model(torch.tensor([prompt + response.tolist()])))
        logp = (logits / temperature).log_softmax(-1)[0, len(prompt) - 1 : -1]  # (n, V)
        expected = logp.gather(1, response[:, None])[:, 0]
        assert torch.allclose(trained[i, :n], expected, atol=1e-4)
        assert torch.allclose(entropy[i, :n], -(logp.exp() * logp).sum(-1), atol=1e-4)
        assert trained[i, n:].eq(0).all()


def test_a_row_does_not_depend_on_its_batch_mates(tiny):
    model = tiny()
    together = sample(model, PROMPTS, 4, 30, eos_id=1, seed=5)
    lengths = together.lengths.tolist()

    def is_response(ids, i):
        """Do the ids begin with response i?"""
        return torch.equal(ids[: lengths[i]], together.response_ids[i, : lengths[i]])

    more = [*PROMPTS, [20] * 12, [21, 22]]  # more rows, more padding
    longer = sample(model, more, 4, 30, eos_id=1, seed=5)
    assert longer.lengths[:16].tolist() == lengths
    assert all(is_response(longer.response_ids[i], i) for i in range(16))
    alone = sample(model, PROMPTS[2:3], 2, 30, eos_id=1, seed=5)  # two of one group
    assert alone.lengths.tolist() == lengths[8:10]
    assert all(is_response(alone.response_ids[i], 8 + i) for i in range(2))
    never = sample(model, PROMPTS, 4, 30, eos_id=None, seed=5)  # nobody ever leaves
    assert all(is_response(never.response_ids[i], i) for i in range(16))


def test_group_members_differ_and_seeds_matter(tiny):
    one = sample(tiny(), PROMPTS, 8, 12, seed=0).response_ids
    other = sample(tiny(), PROMPTS, 8, 12, seed=1).response_ids
    assert len({tuple(ids) for ids in one[:8].tolist()}) > 4
    assert len(set(one[:8, 0].tolist())) > 1  # the first token too is drawn for each
    assert not torch.equal(one, other)
    assert torch.equal(one, sample(tiny(), PROMPTS, 8, 12, seed=0).response_ids)


def test_a_prompt_that_stands_twice_is_one_larger_group(tiny):
    """Not the same responses twice: its groups are the parts of one group of twice the size."""
    model = tiny()
    ids = sample(model, [[1, 2], [3], [1, 2]], 4, 6, seed=1).response_ids
    group_of_8 = sample(model, [[1, 2]], 8, 6, seed=1).response_ids
    assert torch.equal(torch.cat([ids[:4], ids[8:]]), group_of_8)
    assert not torch.equal(ids[:4], ids[8:])


@pytest.mark.parametrize("eos", [0, 1, [1, 4]])  # 0 is also what padding is made of
def test_mask_holds_the_first_eos_and_nothing_after(tiny, eos):
    out = sample(tiny(), PROMPTS, 8, 40, eos_id=eos, seed=2)
    T = out.response_ids.shape[1]
    eos_ids = [eos] if isinstance(eos, int) else eos
    assert any(out.lengths < T)
    for ids, mask in zip(out.response_ids.tolist(), out.response_mask.tolist(), strict=True):
        ends = [t for t in range(T) if ids[t] in eos_ids]
        n = ends[0] + 1 if ends else T
        assert mask == [True] * n + [False] * (T - n)
    assert out.old_logprobs[~out.response_mask].eq(0).all()
    assert out.old_logprobs[out.response_mask].ne(0).any()


def test_the_eos_is_trained_and_the_padding_is_not(tiny):
    """Pad id = EOS id = 0. The gradient of the EOS log-prob reaches the weights; changing padding
    changes nothing."""
    model = tiny()
    out = sample(model, PROMPTS, 8, 40, eos_id=0, seed=2)
    i = int(out.lengths.argmin())
    logp, _ = response_logprobs(model, out)
    of_eos = logp[i, out.lengths[i] - 1]
    assert of_eos != 0
    of_eos.backward()
    assert model.head.grad.norm() > 0
    out.response_ids[~out.response_mask] = 9
    assert torch.equal(response_logprobs(model, out)[0], logp)


def test_greedy(tiny):
    model = tiny()
    out = sample(model, PROMPTS, 1, 6, temperature=0.0)
    ids = torch.tensor([PROMPTS[1]])
    for t in range(6):
        best = model.logits(model(ids)[:, -1]).argmax(-1)
        assert best.item() == out.response_ids[1, t]
        ids = torch.cat((ids, best[:, None]), 1)


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(ValueError, match="prompt of 60 tokens . 10 new ones > .* context of 64"):
        sample(tiny(), [[3] * 60], 1, 10)
    with pytest.raises(ValueError, match="empty prompt"):
        sample(tiny(), [[3], []], 1, 10)
    with pytest.raises(ValueError, match="65 columns"):
        tiny()(torch.zeros(1, 65, dtype=torch.long))


# --- The draw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draw_has_the_distribution_it_records(temperature):
    logits = torch.tensor([1.0, -1e30, 0.5, -2.0, 3.0])
    p = (logits / temperature).softmax(-1)
    n = 100_000
    u = torch.arange(n) / n  # every quantile once: counts are exact to rounding
    token, logp = draw(logits.expand(n, -1), u, temperature)
    assert torch.allclose(torch.bincount(token, minlength=5) / n, p, atol=2e-5)
    assert torch.allclose(logp.exp(), p[token], atol=1e-6)


def test_the_ends_of_a_draw():
    token, _ = draw(torch.tensor([[-1e30, 0.0]]), torch.zeros(1), 1.0)
    assert token.item() == 1  # u = 0 and the first token impossible
    token, _ = draw(torch.zeros(1, 5), torch.tensor([1 - 2**-24]), 1.0)
    assert token.item() == 4


def test_a_draw_in_pieces_is_that_of_each_row(monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(50, 37)
    u = torch.rand(50)
    monkeypatch.setattr("sampler.CPU_CACHE", 37 * 8)  # 8 rows a piece, and a last one of 2
    tokens, logprobs = draw(logits, u, 0.8)
    for i in range(50):
        token, logprob = draw(logits[i : i + 1], u[i : i + 1], 0.8)
        assert token == tokens[i] and logprob == logprobs[i]


# --- The rollout ------------------------------------------------------------------------------


def test_a_rollout_from_lists():
    rollout = Rollout.from_lists([[4, 5], [6]], [[7, 8, 9], [10]])
    assert rollout.prompt_ids.tolist() == [[4, 5], [0, 6]]
    assert rollout.prompt_start.tolist() == [0, 1]
    assert rollout.response_mask.tolist() == [[True] * 3, [True, False, False]]
    assert rollout.response_ids.tolist() == [[7, 8, 9], [10, 0, 0]]
    groups = Rollout.from_lists([[4, 5], [6]], [[7], [8], [9], [10]], group_size=2)
    assert groups.group.tolist() == [0, 0, 1, 1]
    assert groups.prompt_ids.tolist() == [[4, 5], [4, 5], [0, 6], [0, 6]]


def test_rows_and_micro_batches(tiny):
    out = sample(tiny(), PROMPTS, 4, 30, eos_id=[1, 2], seed=4)
    pieces = out.micro_batches(60)
    assert sorted(torch.cat(pieces).tolist()) == list(range(16)) and len(pieces) > 2
    for rows in pieces:
        part = out.select(rows)
        columns = out.prompt_ids.shape[1] + part.response_ids.shape[1]
        assert len(rows) == 1 or len(rows) * columns <= 60
        for place, i in enumerate(rows.tolist()):
            start, n = int(part.prompt_start[place]), int(out.lengths[i])
            assert part.prompt_ids[place, start:].tolist() == PROMPTS[i // 4]
            assert part.response_mask[place].sum() == n
            assert torch.equal(part.response_ids[place, :n], out.response_ids[i, :n])
            assert torch.equal(part.old_logprobs[place, :n], out.old_logprobs[i, :n])
    keep = torch.arange(16) % 3 == 0
    kept = torch.cat(out.micro_batches(60, keep))
    assert sorted(kept.tolist()) == [0, 3, 6, 9, 12, 15]
