"""The runs behind the figures: their settings are valid, and arms differ in their method alone."""

import pytest
import yaml

from grpo_jax.configure import dump, kind_class, load, tree_of
from grpo_jax.reproduce.experiments import ARMS, BEST, FIGURES, ITERATIONS, RULES, SCALES, STEM, jobs_of, stem_job
from grpo_jax.reproduce.schedule import Job


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Every run of every scale as it would be resolved, by name."""
    found = {}
    for name, scale in SCALES.items():
        out = tmp_path_factory.mktemp(name)
        for job in jobs_of_one_seed(scale, out):
            found[name, job.name] = resolved(job, out)
    return found


def jobs_of_one_seed(scale, out) -> list[Job]:
    jobs = {job.name: job for figure in FIGURES for job in jobs_of(figure, scale, out)}
    return [job for job in jobs.values() if job.name == STEM or job.name.endswith("seed1")]


def resolved(job, out):
    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    for other in (out / STEM, *(out / "figure5" / name / "seed1" for name in ARMS)):
        (other / "hf").mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(dump(job.settings))
    return load([str(job.base), str(folder / "settings.yaml"), "--output_dir", str(folder)]).config


def test_no_arm_has_the_seed_of_what_all_start_from():
    """With it, an arm would meet again the problems that the policy and the reward model have learnt from."""
    for scale in SCALES.values():
        assert stem_job(scale).settings["seed"] not in scale.seeds


def test_all_settings_are_valid(configs):
    assert len(configs) == 2 * (1 + len(ARMS) + 2 + 2)


def algorithm(arm, scale):
    """The arm's algorithm as it is to be: its kind's defaults, the file's if it is of this kind, and the arm's own."""
    given = yaml.safe_load(scale.base.read_text())["rl"]["algorithm"]
    own = {key: value for key, value in given.items() if arm.kind == given["kind"] and key != "kind"}
    return tree_of(kind_class("algorithms", arm.kind)(**own | dict(arm.settings)))


def test_rejection_sampling_has_no_penalty_and_grpo_that_of_the_file():
    """As in the paper, whose RFT and online RFT have no KL term."""
    for scale in SCALES.values():
        penalty = yaml.safe_load(scale.base.read_text())["rl"]["algorithm"]["beta"]
        betas = {name: algorithm(arm, scale)["beta"] for name, arm in ARMS.items()}
        assert penalty > 0 and betas == {name: 0.0 if "rft" in name else penalty for name in ARMS}


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_method_and_reward_alone(configs, scale):
    rest, of_file = [], yaml.safe_load(SCALES[scale].base.read_text())
    for name, arm in ARMS.items():
        tree = tree_of(configs[scale, f"figure5/{name}/seed1"])
        assert tree["rl"].pop("algorithm") == algorithm(arm, SCALES[scale])
        (given,) = tree["rl"].pop("rewards")
        assert given["kind"] == RULES.get(arm.reward, {"kind": "learned"})["kind"]
        assert given.get("supervision") == (None if arm.reward in RULES else arm.reward)
        assert tree["rl"]["optimizer"]["learning_rate"] == of_file["rl"]["optimizer"]["learning_rate"]
        del tree["output_dir"]
        rest.append(tree)
    assert all(tree == rest[0] for tree in rest)


@pytest.mark.parametrize("scale", SCALES)
def test_budgets_of_figure_6_are_equal(configs, scale):
    steps = {
        name: (rl := configs[scale, f"figure6/{name}/seed1"].rl).iterations * rl.max_steps
        for name in ("iterative", "once")
    }
    assert steps["iterative"] == steps["once"] == ITERATIONS * SCALES[scale].iteration_steps
    every = configs[scale, "figure6/once/seed1"].rl.eval_steps
    assert every and SCALES[scale].iteration_steps % every == 0


@pytest.mark.parametrize("scale", SCALES)
def test_held_out_problems_are_held_out(configs, scale):
    for (of, name), config in configs.items():
        if of == scale and config.evaluation:
            assert config.evaluation.source.split == "test", name
        if of == scale and config.rl:
            assert config.rl.source.split == "train" and config.evaluation.num_samples >= 8
            assert config.rl.source.steps == config.evaluation.source.steps > 2


def test_figure_7_takes_the_policies_of_figure_5(tmp_path):
    scale = SCALES["tiny"]
    of5 = {job.name: job for job in jobs_of("figure5", scale, tmp_path)}
    of7 = jobs_of("figure7", scale, tmp_path)
    shared = [job for job in of7 if job.name in of5]
    assert {job.name for job in shared} == {STEM, *(f"figure5/{BEST}/seed{seed}" for seed in scale.seeds)}
    assert all(job == of5[job.name] for job in shared)
    assert yaml.safe_load(dump(of7[-1].settings))["rl"] is None
