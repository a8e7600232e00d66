"""Loads a model directory in a process of its own and prints what memory that took beyond the arrays.

Memory is the anonymous part of what is resident (not the mapped file, which the kernel may drop), sampled all the time.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import jax

from grpo_jax.config import MeshConfig
from grpo_jax.models import loading
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.sharding import make_mesh


def resident(kind: str) -> int:
    """Bytes of memory of this kind: Anon, or File."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"Rss{kind}:"))


class Peak(threading.Thread):
    """The most memory while the block runs, above what there was before."""

    def __init__(self):
        super().__init__(daemon=True)
        self.kinds, self.over = ("Anon", "File"), threading.Event()

    def __enter__(self):
        gc.collect()
        self.before = {kind: resident(kind) for kind in self.kinds}
        self.most = dict(self.before)
        self.start()
        return self

    def run(self):
        while not self.over.wait(0.001):
            self.most = {kind: max(self.most[kind], resident(kind)) for kind in self.kinds}

    def __exit__(self, *_):
        self.over.set()
        self.join()
        self.growth = {kind: self.most[kind] - self.before[kind] for kind in self.kinds}


def main(folder: str, dtype: str, piece: int) -> dict:
    """Load for the first time, which compiles, and again."""
    mesh = make_mesh(MeshConfig())
    config = read_config(folder)
    loading.PIECE = piece
    growth, seconds = [], []
    for _ in range(2):
        with Peak() as peak:
            start = time.perf_counter()
            params = jax.block_until_ready(load_params(folder, config, mesh, dtype=dtype))
            seconds.append(time.perf_counter() - start)
        growth.append(peak.growth)
        leaves = jax.tree.leaves(params)
        arrays = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
        types = sorted({str(leaf.dtype) for leaf in leaves})
        del params, leaves
    return {"growth": growth, "arrays": arrays, "seconds": seconds, "devices": jax.device_count(), "types": types}


if __name__ == "__main__":
    print("\n" + json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
