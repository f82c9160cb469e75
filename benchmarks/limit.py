"""Time and memory of infinite-width kernels by XLA beside the plain matrix product and, if asked, another library.

python benchmarks/limit.py [--peer PYTHON] [--data FOLDER] [--json FILE]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from networks import CASES, KINDS, ROWS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LIMIT_S = 180.0
LABELS = {"nngp": "K", "ntk": "Θ", "both": "K, Θ"}
COLUMNS = (
    *("network", "N", "precision", "kernel", "derive s", "compile s", "run s", "cpu s", "ns/entry", "÷ XXᵀ", "MiB"),
    *("peer run s", "peer cpu s", "peer ÷ ours", "differs", "load"),
)


def measured(python: str, script: str, row: tuple[str, int, str], data: str | None) -> dict[str, Any] | str:
    """The answer of one process, or the reason why there is none. Each row has a process, and caches, of its own."""
    command = [python, str(HERE / script), *map(str, row), *([data] if data else [])]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"> {LIMIT_S:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def records(
    row: tuple[str, int, str], ours: dict[str, Any] | str, peer: dict[str, Any] | str | None, load: float
) -> list[dict[str, Any]]:
    """One record for each kind of kernel of one row."""
    name, n, dtype = row
    found = []
    for kind in KINDS:
        record: dict[str, Any] = {"network": CASES[name].title, "n": n, "dtype": dtype, "kind": kind, "load": load}
        if isinstance(ours, str):
            found.append(record | {"failed": ours})
            continue
        record |= {"derive_s": ours["derive_s"], "product": ours["product"]} | ours["kinds"][kind]
        if isinstance(peer, str):
            record["peer_failed"] = peer
        elif peer is not None:
            record["peer"] = peer["kinds"][kind]
            record["difference"] = difference(np.array(ours["sample"]), np.array(peer["sample"]))[kind]
        found.append(record)
    return found


def difference(ours: np.ndarray, peer: np.ndarray) -> dict[str, float]:
    """The largest difference between K and between Θ of the first fifty examples, relative to the entry."""
    worst = np.max(np.abs(ours - peer) / np.abs(ours), axis=(1, 2))
    return {"nngp": float(worst[0]), "ntk": float(worst[1]), "both": float(np.max(worst))}


def cells(record: dict[str, Any]) -> list[str]:
    head = [record["network"], str(record["n"]), record["dtype"], LABELS[record["kind"]]]
    load = f"{record['load']:.1f}"
    if "failed" in record:
        return [*head, record["failed"], *[""] * (len(COLUMNS) - 6), load]
    cpu = record["cpu_s"]
    body = [f"{record['derive_s']:.2f}", f"{record['compile_s']:.2f}", f"{record['run_s']:.3f}", f"{cpu:.3f}"]
    body += [f"{cpu / record['n'] ** 2 * 1e9:.0f}", f"{cpu / record['product']['cpu_s']:.1f}"]
    body += [f"{record['memory_bytes'] / 2**20:.0f}"]
    if "peer" not in record:
        return [*head, *body, record.get("peer_failed", ""), "", "", "", load]
    peer = record["peer"]
    ratio, difference = f"{peer['cpu_s'] / cpu:.2f}", f"{record['difference']:.0e}"
    return [*head, *body, f"{peer['run_s']:.3f}", f"{peer['cpu_s']:.3f}", ratio, difference, load]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with neural-tangents")
    parser.add_argument("--data", metavar="FOLDER", help="folder of .npz files with an array X (default: Gaussian)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    options = parser.parse_args()
    console = Console()
    table = Table(*COLUMNS, title=f"Gram matrices [N, N], {os.cpu_count()} cores, JAX {version('jax')}")
    everything = []
    for row in ROWS:
        with console.status(f"{CASES[row[0]].title}, N = {row[1]}, {row[2]}"):
            ours = measured(sys.executable, "measure.py", row, options.data)
            peer = measured(options.peer, "peer.py", row, options.data) if options.peer else None
        for record in records(row, ours, peer, os.getloadavg()[0]):
            everything.append(record)
            table.add_row(*cells(record), end_section=record["kind"] == KINDS[-1])
    console.print(table)
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "jax": version("jax")}
        options.json.write_text(json.dumps({"machine": machine, "rows": everything}, indent=1) + "\n")


if __name__ == "__main__":
    main()
