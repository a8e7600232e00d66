"""The section `evaluation`: a source with a reward, benchmarks, or both; anything else is refused with the remedy."""

import pytest
import yaml

from grpo_jax.configure import ConfigError, load

SOURCE = {"source": {"kind": "arithmetic"}, "reward": {"kind": "accuracy"}}


def loaded(folder, evaluation):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), "evaluation": evaluation}))
    return load([str(path), "--print_config"]).config.evaluation


def test_source_benchmarks_or_both(tmp_path):
    benchmarks = [{"kind": "gsm8k", "data": "here", "style": "zero_shot"}, {"kind": "cmath"}]
    found = loaded(tmp_path, {"benchmarks": benchmarks})
    assert [(b.kind, b.data, b.style) for b in found.benchmarks] == [
        ("gsm8k", "here", "zero_shot"),
        ("cmath", "hub", "as_run"),
    ]
    assert found.source is None and found.reward is None
    assert loaded(tmp_path, SOURCE).benchmarks is None
    assert loaded(tmp_path, SOURCE | {"benchmarks": benchmarks}).source.kind == "arithmetic"


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({}, "evaluation.source is missing"),
        ({"reward": {"kind": "accuracy"}, "benchmarks": [{"kind": "gsm8k"}]}, "evaluation.source is missing"),
        ({"source": {"kind": "arithmetic"}}, "evaluation.reward is missing"),
        ({"benchmarks": [{"kind": "gsm8k"}, {"kind": "gsm8k"}]}, "names gsm8k twice"),
        ({"benchmarks": [{"kind": "gms8k"}]}, "no 'gms8k' in grpo_jax/evaluation/benchmarks; there are aime, "),
        ({"benchmarks": [{"kind": "gsm8k", "style": "fewshot"}]}, "evaluation.benchmarks.0.style"),
    ],
)
def test_refused(evaluation, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, evaluation)
