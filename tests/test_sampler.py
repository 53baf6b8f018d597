"""Cache against no cache, sampler against trainer, a row against its batch mates, the draw against its distribution."""
import pytest
import torch

from logprobs import response_logprobs
from model import GroupCache, KVCache
from sampler import SHARE, Rollout, draw, run_prompts, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19]]
VARIANTS = [dict(), dict(qkv_bias=True), dict(qk_norm=True, tie_embeddings=False), dict(n_kv_head=4)]


@pytest.mark.parametrize("changes", VARIANTS)
def test_cached_is_uncached(tiny, changes):
    model, ids = tiny(**changes), torch.randint(37, (3, 12))
    whole = model(ids)
    cache = KVCache(model.config.n_layer)
    pieces = [model(ids[:, :5], cache)]
    cache = cache.select(torch.arange(3))
    pieces += [model(ids[:, 5:9], cache)] + [model(ids[:, t:t + 1], cache) for t in range(9, 12)]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [1, 1000])
def test_recorded_is_not_recorded(tiny, monkeypatch, share):
    monkeypatch.setitem(SHARE, "cuda", share)
    model = tiny(max_seq_len=256).cuda()
    out = sample(model, PROMPTS, 8, 150, eos_id=[1, 2], seed=1)
    assert out.lengths.min() < 8 and out.lengths.max() > 100     # rows left, and more than one recording was made
    assert (response_logprobs(model, out)[0] - out.old_logprobs).abs().max() < 1e-4


def test_a_shared_cache_is_a_repeated_one():
    """Groups of uneven size, rows that leave, at last all rows of a prompt: the same attention, and each prompt is held once."""
    torch.manual_seed(0)
    prompts = KVCache(1, torch.tensor([0, 2, 1]))
    prompts.layers = [(torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8))]
    shared, repeated = caches = GroupCache(prompts, True), GroupCache(prompts, False)
    for rows in ([0, 0, 0, 1, 1, 2, 2, 2], [0, 2, 3, 5, 7], [0, 1, 3]):
        for cache in caches:
            cache.move(torch.tensor(rows), 2)
        for _ in range(2):
            q, k, v = (torch.randn(len(rows), heads, 1, 8) for heads in (4, 2, 2))
            key = torch.arange(shared.columns)
            attend = ((key <= shared.column) & (key >= shared.start[:, None]))[:, None, None]
            one, other = (cache.attention(0, q, k, v, attend) for cache in caches)
            assert one.shape == (len(rows) * 2, 2, 8) and torch.allclose(one, other, atol=1e-5)
            shared.column += 1
            repeated.column += 1
    assert [len(x) for x in shared.prompts.layers[0]] == [2, 2]                  # of the second prompt no row is left
    assert shared.layers[0][0].shape == (3, 2, 6, 8) and repeated.layers[0][0].shape == (3, 2, 11, 8)


def test_the_future_is_not_seen(tiny):
    model, ids = tiny(), torch.randint(37, (2, 10))
    changed = ids.clone()
    changed[:, 6:] = 3
    assert torch.equal(model(ids)[:, :6], model(changed)[:, :6])


def test_left_padding_changes_nothing(tiny):
    model = tiny()
    ids = torch.zeros(len(PROMPTS), 7, dtype=torch.long)
    start = torch.tensor([7 - len(p) for p in PROMPTS])
    for i, p in enumerate(PROMPTS):
        ids[i, start[i]:] = torch.tensor(p)
    hidden, _ = run_prompts(model, ids, start)
    assert hidden.isfinite().all()
    for i, p in enumerate(PROMPTS):
        alone = model(torch.tensor([p]))[:, -1:]
        assert torch.allclose(hidden[i:i + 1], alone, atol=1e-5)


@pytest.fixture(params=[1, 1000], ids=["shared", "repeated"])
def share(request, monkeypatch):
    """The cache of the prompts is held once for a group, or repeated for its rows."""
    monkeypatch.setitem(SHARE, "cpu", request.param)


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_sampler_and_trainer_agree(tiny, changes, temperature):
    """Mixed prompt lengths, rows that finish early and leave: recorded log-probs = those of the training pass = those
    of one plain forward pass over prompt and response alone, shifted by hand."""
    model = tiny(**changes)
    out = sample(model, PROMPTS, 8, 40, temperature, eos_id=[1, 2, 3], seed=1)
    assert out.lengths.min() < 8 and out.lengths.max() > 16      # some rows left, some stayed long after
    trained, entropy = response_logprobs(model, out)
    assert (trained - out.old_logprobs).abs().max() < 1e-4
    for i in (0, 9, 31):
        prompt, n = PROMPTS[i // 8], int(out.lengths[i])
        ids = torch.tensor([prompt + out.response_ids[i, :n].tolist()])
        logp = (model.logits(model(ids)) / temperature).log_softmax(-1)[0, len(prompt) - 1:-1]       # (n, V)
        want = logp.gather(1, out.response_ids[i, :n, None])[:, 0]
        assert torch.allclose(trained[i, :n], want, atol=1e-4)
        assert torch.allclose(entropy[i, :n], -(logp.exp() * logp).sum(-1), atol=1e-4)
        assert trained[i, n:].eq(0).all()


@pytest.mark.usefixtures("share")
def test_a_row_does_not_depend_on_its_batch_mates(tiny):
    model = tiny()
    together = sample(model, PROMPTS, 4, 30, eos_id=1, seed=5)
    longer = sample(model, PROMPTS + [[20] * 12, [21, 22]], 4, 30, eos_id=1, seed=5)         # more rows, more padding
    T = together.response_ids.shape[1]
    assert torch.equal(together.response_mask, longer.response_mask[:16, :T])
    assert torch.equal(together.response_ids, longer.response_ids[:16, :T])
    alone = sample(model, PROMPTS[2:3], 2, 30, eos_id=1, seed=5)                             # two of one group
    for i, n in enumerate(alone.lengths.tolist()):
        assert torch.equal(alone.response_ids[i, :n], together.response_ids[8 + i, :n]) and n == together.lengths[8 + i]
    never = sample(model, PROMPTS, 4, 30, eos_id=None, seed=5)                               # nobody ever leaves
    for i, n in enumerate(together.lengths.tolist()):
        assert torch.equal(never.response_ids[i, :n], together.response_ids[i, :n])


def test_group_members_differ_and_seeds_matter(tiny):
    a, b = (sample(tiny(), PROMPTS, 8, 12, seed=s) for s in (0, 1))
    assert len({tuple(r) for r in a.response_ids[:8].tolist()}) > 4
    assert not torch.equal(a.response_ids, b.response_ids)
    assert torch.equal(a.response_ids, sample(tiny(), PROMPTS, 8, 12, seed=0).response_ids)
    assert len(set(a.response_ids[:8, 0].tolist())) > 1          # the first token too is drawn for each


@pytest.mark.parametrize("eos", [0, 1, [1, 4]])                  # 0 is also what padding is made of
def test_mask_holds_the_first_eos_and_nothing_after(tiny, eos):
    out = sample(tiny(), PROMPTS, 8, 40, eos_id=eos, seed=2)
    ends = [eos] if isinstance(eos, int) else eos
    assert any(out.lengths < out.response_ids.shape[1])
    for ids, mask in zip(out.response_ids.tolist(), out.response_mask.tolist()):
        n = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        assert mask == [i < n for i in range(len(ids))]
    assert out.old_logprobs[~out.response_mask].eq(0).all() and out.old_logprobs[out.response_mask].ne(0).any()


def test_the_eos_is_trained_and_the_padding_is_not(tiny):
    """Pad id = EOS id = 0. The gradient of the EOS log-prob reaches the weights; changing padding changes nothing."""
    model = tiny()
    out = sample(model, PROMPTS, 8, 40, eos_id=0, seed=2)
    i = int(out.lengths.argmin())
    logp, _ = response_logprobs(model, out)
    assert logp[i, out.lengths[i] - 1] != 0
    logp[i, out.lengths[i] - 1].backward()
    assert model.head.grad.norm() > 0
    out.response_ids[~out.response_mask] = 9
    assert torch.equal(response_logprobs(model, out)[0], logp)


def test_draw_has_the_distribution_it_records():
    logits = torch.tensor([[1.0, -1e30, 0.5, -2.0, 3.0]])
    for temperature in (0.7, 1.0):
        p = (logits[0] / temperature).softmax(-1)
        u = torch.arange(100_000) / 100_000                      # every quantile once: counts are exact to rounding
        token, logp = draw(logits.expand(100_000, -1), u, temperature)
        assert torch.allclose(torch.bincount(token, minlength=5) / 100_000, p, atol=2e-5)
        assert torch.allclose(logp.exp(), p[token], atol=1e-6)
    assert draw(torch.tensor([[-1e30, 0.0]]), torch.zeros(1), 1.0)[0].item() == 1      # u = 0, first token impossible
    assert draw(torch.zeros(1, 5), torch.tensor([1 - 2 ** -24]), 1.0)[0].item() == 4


def test_a_draw_in_pieces_is_the_draw(monkeypatch):
    torch.manual_seed(0)
    logits, u = torch.randn(50, 37), torch.rand(50)
    whole = draw(logits, u, 0.8)
    monkeypatch.setattr("sampler.CACHED", 37 * 8)                # 8 rows a piece, and a last one of 2
    assert all(torch.equal(a, b) for a, b in zip(whole, draw(logits, u, 0.8)))


def test_greedy(tiny):
    model = tiny()
    out = sample(model, PROMPTS, 1, 6, temperature=0.0)
    ids = torch.tensor([PROMPTS[1]])
    for t in range(6):
        best = model.logits(model(ids)[:, -1]).argmax(-1)
        assert best.item() == out.response_ids[1, t]
        ids = torch.cat((ids, best[:, None]), 1)


def test_what_does_not_fit_is_refused(tiny):
    with pytest.raises(ValueError, match="prompt of 60 tokens . 10 new ones > the model's context of 64"):
        sample(tiny(), [[3] * 60], 1, 10)
    with pytest.raises(ValueError, match="empty prompt"):
        sample(tiny(), [[3], []], 1, 10)
    with pytest.raises(ValueError, match="65 columns"):
        tiny()(torch.zeros(1, 65, dtype=torch.long))


def test_rows_and_micro_batches(tiny):
    out = sample(tiny(), PROMPTS, 4, 30, eos_id=[1, 2], seed=4)
    pieces = list(out.micro_batches(60))
    assert sorted(torch.cat(pieces).tolist()) == list(range(16)) and len(pieces) > 2
    for piece in pieces:
        part = out.rows(piece)
        assert len(piece) == 1 or len(piece) * (part.response_ids.shape[1] + out.prompt_ids.shape[1]) <= 60
        assert part.response_mask.sum() == out.response_mask[piece].sum()
    keep = [i % 3 == 0 for i in range(16)]
    assert sorted(torch.cat(list(out.micro_batches(60, keep))).tolist()) == list(range(0, 16, 3))


def test_pack(tiny):
    pairs = Rollout.pack([[4, 5], [6]], [[7, 8, 9], [10]])
    assert pairs.prompt_ids.tolist() == [[4, 5], [0, 6]] and pairs.prompt_start.tolist() == [0, 1]
    assert pairs.response_mask.tolist() == [[True] * 3, [True, False, False]] and pairs.response_ids[1, 0] == 10


def test_a_prompt_that_stands_twice_is_one_larger_group(tiny):
    """Not the same responses twice: its groups are the parts of one group of twice the size."""
    model = tiny()
    rows = sample(model, [[1, 2], [3], [1, 2]], 4, 6, seed=1).response_ids
    assert torch.equal(torch.cat([rows[:4], rows[8:]]), sample(model, [[1, 2]], 8, 6, seed=1).response_ids)
    assert not torch.equal(rows[:4], rows[8:])
