"""The same results faster: large vocabularies, long prompts, GPUs. The plain twins are outside.

These three functions choose, and import what is chosen.
"""

from functools import partial

from model import KVCache

SHARE_FROM = {"cpu": 32, "cuda": 512}  # prompt columns from which sharing is faster


def tiled_logprobs(hidden, weight, targets, temperature, keep):
    """logprobs and entropy (M,) of a large vocabulary, or (weight None) of given logits."""
    from fast.tiles import TiledLogprobs

    return TiledLogprobs.apply(hidden, weight, targets, temperature, keep)


def shares_prompts(columns, group_size, device_type):
    """Whether the cache of prompts of so many columns is held once for a group."""
    return group_size > 1 and columns >= SHARE_FROM[device_type]


def decoding_cache(prompts, group_size):
    """The cache of prompts, as the model made it -> a cache to sample group_size responses on."""
    if isinstance(prompts, KVCache):
        device = prompts.layers[0][0].device
        if shares_prompts(prompts.columns, group_size, device.type):
            from fast.shared_prompts import SharedPromptCache

            return SharedPromptCache(prompts)
    return prompts.decoding()


def decoder(model, cache):
    """One token (M, 1) -> hidden (M, 1, C), with the cache: as a CUDA graph where there is CUDA."""
    if model.head.is_cuda:
        from fast.cuda_graph import CudaGraphDecoder

        return CudaGraphDecoder(model, cache)
    return partial(model, cache=cache)
