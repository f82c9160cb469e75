"""What JAX itself gets wrong or does not promise, and what is done about it.

jaxlib 0.10.2 drops terms of large sums in programs for the CPU (jax issue 39103) and 0.11.0 crashes on some (39257);
0.10.1 and 0.11.1 do neither. The package's metadata exclude both releases; this warns where they are installed all the
same.

jaxlib up to 0.10.1 (0.11.1 no longer) stores sums wrongly on CPUs with AVX-512 where arrays in float64 are put side by
side along an axis that four entries precede and five follow: `concatenate([a + b, b + c], 2)` of [n, 4, 1, 5]. There is
no later release for Python 3.11; contractions put arrays side by side along the first axis instead.
"""

import os
import warnings
from importlib.metadata import version
from typing import Any

FAULTY = ("0.10.2", "0.11.0")
OPTION = "xla_cpu_experimental_ynn_fusion_type"
"""The compiler option behind the fault; naming it in XLA_FLAGS says that the user has dealt with it."""


def warn_of_faulty_release() -> None:
    """Warns once if results on the CPU cannot be relied on."""
    installed = version("jaxlib")
    if installed in FAULTY and OPTION not in os.environ.get("XLA_FLAGS", ""):
        warnings.warn(
            f"jaxlib {installed} computes wrong sums or crashes on the CPU (jax issues 39103, 39257): install another "
            f"release, or set XLA_FLAGS=--{OPTION}= before starting Python",
            stacklevel=3,
        )


def scan_counts(parameters: dict[str, Any]) -> tuple[int, int]:
    """Of a `scan` equation's operands, how many are constants and how many are carried; the rest is scanned over.

    JAX up to 0.10 has the numbers among the equation's parameters, 0.11 and later a tree of the operands.
    """
    if "num_consts" in parameters:
        return parameters["num_consts"], parameters["num_carry"]
    constants, carried, _ = parameters["ft_in"].unpack()
    return len(constants), len(carried)
