"""Compiles one RL step of the 0.5B configuration for a v5e-8: footprints and programs go to files in a folder."""

import json
import sys
import time
from pathlib import Path

from grpo_jax.configure import find, load
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling
from grpo_jax.stages.ahead import compile_rl, topology_mesh

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "gsm8k_qwen2.5_0.5b.yaml"
QWEN = {  # config.json of Qwen2.5-0.5B-Instruct
    "vocab_size": 151936,
    "hidden_size": 896,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_size": 4864,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "qkv_bias": True,
    "max_positions": 32768,
}
END_OF_TURN, END_OF_TEXT = 151645, 151643


def main(folder: str, tensor: str) -> None:
    config = load([str(CONFIG), "--mesh.tensor", tensor]).config
    m, rl = config.model, config.rl
    model = Decoder(DecoderConfig(**QWEN, dtype=m.dtype, remat=m.remat, scan_layers=m.scan_layers))
    s = rl.sampling
    sampling = Sampling(
        distribution=Distribution(s.temperature, s.top_k, s.top_p, s.min_p),
        num_generations=rl.num_generations,
        max_completion_length=s.max_completion_length,
        eos_ids=(END_OF_TURN, END_OF_TEXT),
        pad_id=END_OF_TEXT,
    )
    algorithm = find("algorithms", rl.algorithm.kind).build(rl.algorithm)
    mesh = topology_mesh(config.mesh, "v5e:2x4")
    start = time.perf_counter()
    step = compile_rl(model, rl, sampling, algorithm, mesh, max_prompt_length=config.prompt.max_prompt_length)
    for name, program in step.programs.items():
        Path(folder, f"{name}.hlo").write_text(program.compiled.as_text())
    takes = {name: footprint._asdict() | {"peak": footprint.peak} for name, footprint in step.footprints.items()}
    result = {
        "mesh": dict(mesh.shape),
        "rows": rl.prompts_per_step * rl.num_generations,
        "time": s.max_completion_length,
        "seconds": time.perf_counter() - start,
        "takes": takes,
    }
    Path(folder, "step.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
