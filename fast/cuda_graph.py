"""One token of the sampler as a CUDA graph."""

import torch


class CudaGraphDecoder:
    """`model(token, cache)`, recorded once and replayed while the cache has room.

    The host needs longer to launch the small kernels of one token than a GPU to run them."""

    def __init__(self, model, cache):
        self.model = model
        self.cache = cache
        self.token = None
        self.graph = None

    def __call__(self, token):
        """token (M, 1) -> hidden (M, 1, C), which the next call overwrites."""
        if self.token is None:  # the first runs as it is: what it sets up must not be recorded
            self.token = token.clone()
            return self.model(token, self.cache)
        self.token.copy_(token)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.hidden = self.model(self.token, self.cache)
        self.graph.replay()
        return self.hidden
