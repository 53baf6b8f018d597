"""A GPU without one: its tensors lie in the CPU's memory and say that they are on "cuda:0".

    python tests/simulated_gpu.py train.py --device cuda --steps 1

As on a GPU, an operation on tensors of both kinds raises (a CPU tensor without dimensions and an
index may come from the CPU). `gpu.waits` counts where the host waits for the GPU. While a CUDA
graph is recorded a wait raises, and nothing happens: what is written is put back, what is made is
NaN until the graph is replayed. Not simulated: time, memory, Triton, and the rules within a
backward pass, which is the CPU's.
"""

import os
import runpy
import sys
from collections import Counter

import torch
import torch.utils.checkpoint
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
TRANSFERS = {"to", "copy_", "tensor"}  # from one memory to the other
WAITS = {"item", "tolist", "numpy", "nonzero", "unique", "equal", "masked_select", "argwhere"}
WAITS |= {"__bool__", "__int__", "__float__", "__index__", "__contains__", "__format__"}


class GPUTensor(torch.Tensor):
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl  # `SimulatedGPU` sees every call

    def __deepcopy__(self, memo):
        copy = wrap(plain(self.detach()).clone()).requires_grad_(self.requires_grad)
        copy._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol):
        return plain(self.detach()).__reduce_ex__(protocol)


def wrap(x):
    return x if isinstance(x, GPUTensor) else x.as_subclass(GPUTensor)


def plain(x):
    return x.as_subclass(torch.Tensor) if isinstance(x, GPUTensor) else x


def tensors(tree):
    return [x for x in tree_leaves(tree) if torch.is_tensor(x)]


def address(x):
    return x.untyped_storage().data_ptr()


def whole_memory(x):
    """A tensor of all the numbers in the memory of x."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())


def is_mask(index):
    indices = index if isinstance(index, tuple) else (index,)
    return any(i.dtype == torch.bool and i.dim() for i in indices if torch.is_tensor(i))


def wide_product(a, b, out_dtype):
    """mm or bmm of bf16, which do not take out_dtype on a CPU."""
    return a.to(out_dtype) @ b.to(out_dtype)


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self):
        self.calls = []  # (function, its arguments, autocast, the tensors that it gave)
        self.before = {}  # address: memory that was there before, and a copy of it

    def remember(self, arguments):
        for x in arguments:
            if address(x) not in self.before:
                memory = whole_memory(plain(x.detach()))
                self.before[address(x)] = memory, memory.clone()

    def undo(self):
        for x in tensors([made for *_, made in self.calls]):
            whole_memory(plain(x)).fill_(torch.nan if x.is_floating_point() else -1)
        for memory, copy in self.before.values():
            memory.copy_(copy)

    def replay(self):
        gpu.replays += 1
        with torch._C.DisableTorchFunction():
            for function, args, kwargs, autocast, made in self.calls:
                arguments = {address(x) for x in tensors((args, kwargs))}
                with torch.autocast("cpu", enabled=autocast):
                    out = function(*args, **kwargs)
                for x, again in zip(made, tensors(out), strict=True):
                    if address(x) not in arguments:  # neither a view nor written in place
                        x.copy_(again)


class Recording:
    """torch.cuda.graph"""

    def __init__(self, graph):
        self.graph = graph

    def __enter__(self):
        gpu.graph = self.graph

    def __exit__(self, *error):
        gpu.graph = None
        self.graph.undo()


class SimulatedGPU(TorchFunctionMode):
    """Sees every call of torch while it is active."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()  # {what: how often}
        self.replays = 0
        self.graph = None  # that is being recorded
        self.in_backward = False

    def wait(self, what):
        self.waits[what] += 1
        if self.graph is not None:
            raise RuntimeError(f"{what}: not permitted while a graph is recorded")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        args, kwargs = list(args), dict(kwargs or {})
        there = [x for x in tensors((args, kwargs)) if isinstance(x, GPUTensor)]
        here = [x for x in tensors((args, kwargs)) if not isinstance(x, GPUTensor) and x.dim()]
        if name == "_has_compatible_shallow_copy_type":  # asked by Module.to
            return len(there) != 1
        if name in ("cpu", "cuda"):
            name, function, args = "to", torch.Tensor.to, [args[0], name]
        device = kwargs.pop("device", None)
        if name == "to" and isinstance(args[1:] and args[1], str | torch.device):
            device, args[1] = args[1], "cpu"
        on_gpu = bool(there)  # is the result
        if device is not None:
            on_gpu = torch.device(device).type == "cuda"
        elif name == "copy_":
            on_gpu = isinstance(args[0], GPUTensor)
        self.check(name, args, there, here, on_gpu)
        if self.graph is not None:
            self.graph.remember(there)
        if "out_dtype" in kwargs:
            function = wide_product
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **kwargs)
        if name == "to" and on_gpu != bool(there) and address(out) == address(args[0]):
            out = out.clone()
        if on_gpu:
            out = tree_map(lambda x: wrap(x) if torch.is_tensor(x) else x, out)
        if self.graph is not None and tensors(out):
            autocast = torch.is_autocast_enabled("cpu")
            self.graph.calls.append((function, args, kwargs, autocast, tensors(out)))
        return out

    def check(self, name, args, there, here, on_gpu):
        is_index = name in ("__getitem__", "__setitem__") and isinstance(args[0], GPUTensor)
        if is_index and (here or is_mask(args[1])):
            self.wait("index that is a mask or on the CPU")
        elif name in TRANSFERS:
            if on_gpu != (bool(there) and not here):
                self.wait("transfer")
        elif there and here and not self.in_backward:
            raise RuntimeError(f"{name}: GPU tensors, and on the CPU {[x.shape for x in here]}")
        elif there and name in WAITS:
            self.wait(name)


gpu = SimulatedGPU()


def install(patch=setattr):
    """Puts it in the place of torch.cuda. patch: setattr, or a monkeypatch's."""
    parse_to, run_backward = torch._C._nn._parse_to, torch.autograd._engine_run_backward

    def on_cpu(function):
        return lambda device, *args, **kwargs: function("cpu", *args, **kwargs)

    def parse_arguments_of_to(*args, **kwargs):
        if args and isinstance(args[0], GPUTensor):
            args = (CUDA, args[0].dtype)
        return parse_to(*args, **kwargs)

    def backward(*args, **kwargs):
        gpu.in_backward = True
        try:
            with gpu:
                return run_backward(*args, **kwargs)
        finally:
            gpu.in_backward = False

    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        patch(torch, name, on_cpu(getattr(torch, name)))
    patch(torch._C._nn, "_parse_to", parse_arguments_of_to)
    patch(torch.autograd, "_engine_run_backward", backward)
    # activation checkpointing would see that what it computes again is plain
    no_check = {"default": lambda x: None}
    patch(torch.utils.checkpoint, "_allowed_determinism_checks_to_fns", no_check)
    patch(torch.cuda, "is_available", lambda: True)
    patch(torch.cuda, "is_current_stream_capturing", lambda: False)  # asked by optimizers
    patch(torch.cuda, "mem_get_info", lambda: (1 << 34, 1 << 34))
    patch(torch.cuda, "CUDAGraph", Graph)
    patch(torch.cuda, "graph", Recording)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    sys.modules["simulated_gpu"] = sys.modules["__main__"]
    install()
    with gpu:
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"graphs replayed: {gpu.replays}, waits: {dict(gpu.waits)}")
