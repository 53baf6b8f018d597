"""The same results faster: large vocabularies, GPUs. The plain twins are outside.

These two functions choose, and import what is chosen.
"""

from functools import partial


def tiled_logprobs(hidden, weight, targets, temperature, keep):
    """logprobs and entropy (M,) of a large vocabulary, or (weight None) of given logits."""
    from fast.tiles import TiledLogprobs

    return TiledLogprobs.apply(hidden, weight, targets, temperature, keep)


def decoder(model, cache):
    """One token (M, 1) -> hidden (M, 1, C), with the cache: as a CUDA graph where there is CUDA."""
    if model.head.is_cuda:
        from fast.cuda_graph import CudaGraphDecoder

        return CudaGraphDecoder(model, cache)
    return partial(model, cache=cache)
