"""Write networks.json: kernels of dense networks from an independent implementation, in float64.

Runs in an environment of its own (Python 3.11), never in the test session:

    pip install neural-tangents==0.6.5 jax==0.4.25 jaxlib==0.4.25 "numpy<2" "scipy<1.13"
    python tests/limit/peer/generate.py
"""

import datetime
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import jax
import neural_tangents as nt
import numpy as np
from neural_tangents import stax

LAYERS = "Dense(64, W_std={w}, b_std={b}), {phi}, "
READOUT = "Dense(1, W_std={w}, b_std={b})"
BLOCK = "FanOut(2), parallel(serial({phi}, Dense(64, W_std={w}, b_std={b})), Identity()), FanInSum(), "


def mlp(phi: str, depth: int, w: float, b: float | None) -> str:
    """`depth` hidden layers and a readout, all with one weight and one bias variance."""
    return "serial(" + LAYERS.format(w=w, b=b, phi=phi) * depth + READOUT.format(w=w, b=b) + ")"


NETWORKS = {
    "relu, depth 1": mlp("Relu()", 1, 1.4, 0.1),
    "relu, depth 3, no bias": mlp("Relu()", 3, 1.5, None),
    "relu, depth 8": mlp("Relu()", 8, 1.4, 0.1),
    "leaky relu, depth 3": mlp("LeakyRelu(0.1)", 3, 1.3, 0.2),
    "abrelu, depth 3": mlp("ABRelu(-0.3, 1.2)", 3, 1.1, 0.3),
    "abs, depth 1": mlp("Abs()", 1, 1.0, 0.1),
    "erf, depth 3": mlp("Erf()", 3, 1.3, 0.2),
    "erf, depth 8, no bias": mlp("Erf(0.9, 1.2)", 8, 1.3, None),
    "sigmoid-like erf, depth 3": mlp("Sigmoid_like()", 3, 1.5, 0.2),
    "gelu, depth 1": mlp("Gelu()", 1, 1.4, 0.1),
    "gelu, depth 3, no bias": mlp("Gelu()", 3, 1.5, None),
    "sin, depth 2": mlp("Sin(1.1, 0.8, 0.4)", 2, 1.2, 0.1),
    "cos, depth 1": mlp("Cos(1.0, 0.7)", 1, 1.2, 0.1),
    "rbf, depth 1, no bias": mlp("Rbf(0.6)", 1, 1.0, None),
    "rbf, depth 2": mlp("Rbf(0.6)", 2, 0.8, 0.1),
    "exp, depth 1": mlp("Exp(0.8, 0.5)", 1, 0.9, 0.1),
    "gaussian, depth 2": mlp("Gaussian(1.0, -0.5)", 2, 1.2, 0.1),
    "monomial, depth 1": mlp("Monomial(3)", 1, 0.9, 0.2),
    "polynomial, depth 2": mlp("Polynomial([0.2, 0.5, -0.3, 0.1])", 2, 0.8, 0.2),
    "rectified square, depth 1": mlp("RectifiedMonomial(2)", 1, 0.9, 0.2),
    "residual relu, 3 blocks": (
        "serial(Dense(64, W_std=1.2, b_std=0.1), "
        + BLOCK.format(phi="Relu()", w=1.1, b=0.2) * 3
        + "Dense(1, W_std=1.0, b_std=0.1))"
    ),
    "residual gelu after layer norm, 3 blocks": (
        "serial(Dense(64, W_std=1.2, b_std=0.1), "
        + BLOCK.format(phi="serial(LayerNorm(eps=1e-5), Gelu())", w=1.1, b=0.2) * 3
        + "LayerNorm(eps=1e-5), Dense(1, W_std=1.0, b_std=0.1))"
    ),
    "erf after layer norm, depth 3, no bias": mlp("LayerNorm(eps=1e-3), Erf()", 3, 1.3, None),
    "concatenation of a relu and an erf branch": (
        "serial(FanOut(2), parallel("
        "serial(Dense(64, W_std=1.4, b_std=0.1), Relu(), Dense(64, W_std=1.4, b_std=0.1), Relu()), "
        "serial(Dense(64, W_std=1.1, b_std=0.3), Erf())), "
        "FanInConcat(-1), Dense(64, W_std=1.3, b_std=0.1), Relu(), Dense(1, W_std=1.0, b_std=0.1))"
    ),
}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """x1 [6, 5], x2 [4, 5]: a zero row, a row in both, a near-parallel and a near-antiparallel row, a repeated row."""
    rng = np.random.default_rng(20)
    x1, x2 = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    x1[2] = 0.0
    x1[4] = x1[1]
    x2[1] = x1[3]
    x2[2] = 1.5 * x1[0] + 1e-4 * rng.normal(size=5)
    x2[3] = -x1[5] + 1e-4 * rng.normal(size=5)
    return x1, x2


def numbers(matrix: np.ndarray) -> list[list[float | None]]:
    """Nested lists; None where the library gives NaN."""
    return [[None if np.isnan(x) else float(x) for x in row] for row in matrix]


def document_text(document: dict) -> str:
    """JSON with one matrix row a line."""
    text = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda row: "[" + " ".join(row[1].split()) + "]", text) + "\n"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    x1, x2 = inputs()
    records = {}
    for name, spec in NETWORKS.items():
        kernel = eval(spec, vars(stax).copy())[2](x1, x2, ("nngp", "ntk"))
        assert kernel.nngp.dtype == kernel.ntk.dtype == np.float64
        records[name] = {"spec": spec, "nngp": numbers(kernel.nngp), "ntk": numbers(kernel.ntk)}
    document = {
        "provenance": {
            "library": "neural-tangents",
            "version": nt.__version__,
            "jax": version("jax"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
            "evaluated": "eval(spec, vars(neural_tangents.stax))[2](x1, x2, ('nngp', 'ntk')), float64",
        },
        "x1": x1.tolist(),
        "x2": x2.tolist(),
        "networks": records,
    }
    Path(__file__).with_name("networks.json").write_text(document_text(document))


if __name__ == "__main__":
    main()
