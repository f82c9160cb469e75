"""One row of `empirical.py` in PyTorch, in a process and an environment of its own: `empirical_torch.py NETWORK`.

The NTK as PyTorch's own tutorial on it computes it with `torch.func`: Jacobians of all examples by `vmap(jacrev)`,
contracted parameter by parameter, in blocks of examples where whole Jacobians would not fit. Answers one line of JSON.
"""

import json
import math
import resource
import statistics
import sys
import time
from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch.func import jacrev, vmap

JACOBIAN_BYTES = 4 * 2**30
"""The most that the Jacobians of one block of examples may take."""


def draw(*shape):
    return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))


def mlp():
    shapes = ((1024, 784), (1024, 1024), (1024, 1024), (10, 1024))
    parameters = {
        f"{kind}{i}": v for i, s in enumerate(shapes) for kind, v in (("w", draw(*s)), ("b", torch.zeros(s[0])))
    }

    def call(p, x):
        for i in range(3):
            x = functional.relu(p[f"w{i}"] @ x + p[f"b{i}"])
        return p["w3"] @ x + p["b3"]

    return call, parameters, (256, 784)


def cnn():
    parameters = {f"w{i}": draw(64, 64 if i else 3, 3, 3) for i in range(4)} | {"head": draw(10, 64)}

    def call(p, x):
        for i in range(4):
            x = functional.relu(functional.conv2d(x[None], p[f"w{i}"], padding=1)[0])
        return p["head"] @ x.mean((1, 2))

    return call, parameters, (32, 3, 16, 16)


def resnet():
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    parameters = {"stem": draw(64, 3, 3, 3), "head": draw(10, 512)}
    for i, (a, b) in enumerate(pairwise(widths)):
        parameters |= {f"{i}first": draw(b, a, 3, 3), f"{i}second": draw(b, b, 3, 3)}
        parameters |= {f"{i}{k}": v for k in "ac" for v in (torch.ones(b, 1, 1),)}
        parameters |= {f"{i}{k}": v for k in "bd" for v in (torch.zeros(b, 1, 1),)}
        if a != b:
            parameters[f"{i}skip"] = draw(b, a, 1, 1)

    def conv(w, x, stride=1):
        return functional.conv2d(x[None], w, stride=stride, padding=w.shape[-1] // 2)[0]

    def call(p, x):
        x = functional.relu(conv(p["stem"], x))
        for i in range(len(widths) - 1):
            stride = 2 if f"{i}skip" in p else 1
            y = functional.relu(p[f"{i}a"] * conv(p[f"{i}first"], x, stride) + p[f"{i}b"])
            y = p[f"{i}c"] * conv(p[f"{i}second"], y) + p[f"{i}d"]
            x = functional.relu(y + (conv(p[f"{i}skip"], x, stride) if stride == 2 else x))
        return p["head"] @ x.mean((1, 2))

    return call, parameters, (8, 3, 32, 32)


def transformer():
    parameters = {"positions": torch.randn(64, 256), "head": draw(10, 256)}
    for i in range(6):
        parameters |= {f"{i}qkv": draw(768, 256), f"{i}out": draw(256, 256), f"{i}scales": torch.ones(2, 256)}
        parameters |= {f"{i}up": draw(1024, 256), f"{i}down": draw(256, 1024)}

    def norm(scale, x):
        x = x - x.mean(-1, keepdim=True)
        return scale * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def call(p, x):
        x = x + p["positions"]
        for i in range(6):
            heads = (norm(p[f"{i}scales"][0], x) @ p[f"{i}qkv"].T).reshape(64, 3, 8, 32).permute(1, 2, 0, 3)
            q, k, v = heads[0], heads[1], heads[2]
            weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(32), -1)
            x = x + (weights @ v).transpose(0, 1).reshape(64, 256) @ p[f"{i}out"].T
            x = x + functional.gelu(norm(p[f"{i}scales"][1], x) @ p[f"{i}up"].T, approximate="tanh") @ p[f"{i}down"].T
        return p["head"] @ x.mean(0)

    return call, parameters, (8, 64, 256)


NETWORKS = {"MLP 3×1024": mlp, "CNN 4×64": cnn, "ResNet-18": resnet, "transformer 6×256": transformer}


def ntk(call, parameters, x, block):
    """Θ averaged over outputs, [n, n], from Jacobians of `block` examples at a time."""
    size = len(x)
    result = torch.empty(size, size)
    cuts = [(i, min(i + block, size)) for i in range(0, size, block)]

    def jacobians(part):
        return vmap(jacrev(call), (None, 0))(parameters, part)

    for i, (a, b) in enumerate(cuts):
        left = jacobians(x[a:b])
        for c, d in cuts[i:]:
            right = left if c == a else jacobians(x[c:d])
            tile = sum(torch.einsum("nop,mop->nm", left[k].flatten(2), right[k].flatten(2)) for k in left)
            result[a:b, c:d], result[c:d, a:b] = tile, tile.T
    return (result / call(parameters, x[0]).numel()).cpu()


def main():
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    name, patience = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    call, parameters, shape = NETWORKS[name]()
    x = torch.randn(shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = 4 * sum(p.numel() for p in parameters.values()) * call(parameters, x[0]).numel()
    block = max(1, min(len(x), JACOBIAN_BYTES // row))
    with torch.no_grad():
        begin = time.perf_counter()
        ntk(call, parameters, x, block)
        clock, processor = [time.perf_counter() - begin], []
        while len(processor) < 5 and (not processor or sum(clock) < patience):
            begin, cpu = time.perf_counter(), time.process_time()
            ntk(call, parameters, x, block)
            clock.append(time.perf_counter() - begin)
            processor.append(time.process_time() - cpu)
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps({"run s": statistics.median(clock[1:]), "cpu s": statistics.median(processor), "peak": peak}))


if __name__ == "__main__":
    main()
