"""One of two processes that load a model with experts, two devices each, and write it again."""

import json
import re
import sys
from pathlib import Path

import jax

from grpo_jax.config import MeshConfig
from grpo_jax.models.hf import load_params, read_config, save_params
from grpo_jax.models.weights import WeightFiles
from grpo_jax.sharding import make_mesh


def main(process: int, port: str, folder: str) -> dict:
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    experts, read = set(), WeightFiles.read

    def noted(self, name, slices):
        experts.update(map(int, re.findall(r"experts\.(\d+)", name)))
        return read(self, name, slices)

    WeightFiles.read = noted
    config = read_config(folder)
    params = load_params(folder, config, make_mesh(MeshConfig(fsdp=4)))
    again = Path(folder).parent / "again"
    save_params(params, config, None, again, max_shard_bytes=6000)
    assert again.is_dir(), "it is there for every process"
    try:
        save_params(params, config, None, again)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {"experts": sorted(experts), "refused": refused}


if __name__ == "__main__":
    print("\n" + json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
