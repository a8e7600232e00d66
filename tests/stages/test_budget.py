"""What is left open (0) is chosen from memory or cache, said, and kept."""

import dataclasses

import pytest
from small_runs import write_settings

from grpo_jax.configure import dump, kind_class, load
from grpo_jax.configure.documents import tree_of
from grpo_jax.stages.budget import BudgetError, choose, left_open, remembered
from grpo_jax.stages.estimate import estimated, temporaries
from grpo_jax.stages.footprints import open_plant, phases
from grpo_jax.stages.pipeline import remember
from grpo_jax.stages.plan import open_shape
from grpo_jax.stages.remedies import with_value
from tests import tiny

OPEN = ("sft.microbatches", "sft.head_chunk", "rl.microbatches", "rl.head_chunk")
SIZES = {"prompts_per_step": 8, "num_generations": 8, "sampling": {"max_completion_length": 128}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = write_settings(
        tmp_path_factory.mktemp("budget") / "run.yaml", sft={"batch_size": 32, "max_length": 512}, rl=SIZES
    )
    return load([str(file), *(word for key in OPEN for word in (f"--{key}", "0")), "--print_config"]).config


def plant_of(config, **sizes):
    mesh = tiny.mesh_of(**sizes)
    return open_plant(config, open_shape(config, print), mesh)


def numbers(config):
    return {key: getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) for key in OPEN}


def test_on_a_cpu_blocks_are_near_the_caches(config):
    """1024 tokens a micro-batch on a device, and the logits of all: a group of 8 x 128 at a time, 2 rows of 512."""
    chosen = choose(plant_of(config), None)
    assert numbers(chosen) == dict(zip(OPEN, (16, 512, 8, 128), strict=True))
    two = numbers(choose(plant_of(config, data=2), None))
    assert (two["sft.microbatches"], two["rl.microbatches"]) == (8, 4)  # each device as much as the one
    assert left_open(chosen) == []
    sorted_rows = numbers(choose(plant_of(with_value(config, "rl.length_buckets", 4)), None))
    assert (sorted_rows["rl.microbatches"], sorted_rows["rl.head_chunk"]) == (8, 128)


@pytest.mark.parametrize("memory", [None, 10**12])
def test_sorted_rows_are_cut_so_that_they_pad_little(config, memory):
    """Twice as many micro-batches as buckets, where there are rows for them on each shard; pairs stay together."""

    def microbatches(buckets, kind="grpo", **mesh):
        c = dataclasses.replace(config.rl, length_buckets=buckets, algorithm=kind_class("algorithms", kind)())
        return numbers(choose(plant_of(dataclasses.replace(config, rl=c), **mesh), memory))["rl.microbatches"]

    assert [microbatches(n) for n in (8, 16, 32, 100)] == [16, 32, 64, 64]
    assert microbatches(16, data=4) == 16  # a shard has 16 rows
    assert microbatches(16, "dpo") == 32 and microbatches(32, "dpo") == 32  # pairs, of which there are 32


def test_what_was_given_stays(config):
    given = with_value(with_value(config, "rl.head_chunk", 7), "sft.microbatches", 2)
    chosen = numbers(choose(plant_of(given), None))
    assert (chosen["rl.head_chunk"], chosen["sft.microbatches"], chosen["rl.microbatches"]) == (7, 2, 8)
    all_given = with_value(with_value(given, "rl.microbatches", 1), "sft.head_chunk", 5)
    assert choose(plant_of(all_given), 1) == all_given  # nothing is open, however little memory there is


def test_as_much_as_memory_allows(config):
    """Whole batches where they fit, more micro-batches in less memory, and a refusal with numbers where none do."""
    plant = plant_of(config)
    assert numbers(choose(plant, 10**12)) == dict(zip(OPEN, (1, 128, 1, 128), strict=True))
    parts = [numbers(choose(plant, memory)) for memory in (10**9, 3 * 10**8, 10**8)]
    for key in ("sft.microbatches", "rl.microbatches"):
        assert (found := [part[key] for part in parts]) == sorted(found) and found[-1] > 1, found
    with pytest.raises(BudgetError, match=r"sft.microbatches, sft.head_chunk: 0 .* GB of its 0.0 GB; set model.remat"):
        choose(plant, 10**5)


def test_a_stage_that_is_not_asked_for_need_not_fit(config):
    """Of `--only rl`, of an evaluation: nothing of sft is chosen here, and nothing of it refused."""
    given = with_value(with_value(config, "rl.microbatches", 1), "rl.head_chunk", 8)
    assert choose(plant_of(given), 10**5, stages=("rl", "evaluation")) == given
    assert left_open(choose(plant_of(config), None, stages=("rl",))) == ["sft.microbatches", "sft.head_chunk"]


def test_a_batch_that_the_mesh_does_not_divide_is_left_to_its_stage(config):
    odd = dataclasses.replace(config, rl=dataclasses.replace(config.rl, prompts_per_step=3))
    assert left_open(choose(plant_of(odd, data=2), None)) == ["rl.microbatches", "rl.head_chunk"]


def test_a_run_that_goes_on_keeps_what_it_chose(config, tmp_path):
    """Of a stage that has left something; with other devices the choice from scratch would be another."""
    chosen = choose(plant_of(config), None)
    assert remembered(config, tree_of(chosen), ("sft", "rl")) == chosen
    assert left_open(remembered(config, tree_of(chosen), ("sft",))) == ["rl.microbatches", "rl.head_chunk"]
    assert remember(tmp_path, config) == config

    (tmp_path / "config.yaml").write_text(dump(chosen))
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "metrics.jsonl").write_text("")
    assert numbers(remember(tmp_path, config))["rl.microbatches"] == 8
    assert numbers(choose(plant_of(config, data=2), None))["rl.microbatches"] == 4


def long_rows(config, kernel):
    """The scoring pass of a group of eight rows of 512 tokens after as long a prompt: its plant, and the phase."""
    sampling = dataclasses.replace(config.rl.sampling, max_completion_length=512)
    rl = dataclasses.replace(config.rl, prompts_per_step=1, microbatches=1, head_chunk=16, sampling=sampling)
    prompt = dataclasses.replace(config.prompt, max_prompt_length=512)
    plant = plant_of(dataclasses.replace(config, rl=rl, prompt=prompt))
    plant = plant._replace(decoder=dataclasses.replace(plant.decoder, attention_kernel=kernel))
    return plant, next(phase for phase in phases(plant, ("rl",)) if phase.name == "rl: reference log-probabilities")


def test_scores_count_as_the_kernel_holds_them(config):
    """All of plain attention, half of the own keys of blocks, as the compiler says; none of splash, as on TPUs."""
    guessed, compiled = {}, {}
    for kernel in ("xla", "blocks"):
        plant, phase = long_rows(config, kernel)
        guessed[kernel] = estimated(plant, phase.work)
        compiled[kernel] = phase.compile().footprint().temporaries
    assert compiled["blocks"] < 0.9 * compiled["xla"]
    assert guessed["xla"] / guessed["blocks"] == pytest.approx(compiled["xla"] / compiled["blocks"], rel=0.15)

    plant, phase = long_rows(config, "auto")
    guess = {on: temporaries(plant.decoder, phase.work, tensor=1, platform=on) for on in ("cpu", "gpu", "tpu")}
    assert (guess["cpu"], guess["gpu"]) == (guessed["blocks"], guessed["xla"]) and guess["tpu"] < guess["cpu"] / 2
    kept = {}  # of every layer: without remat plain attention keeps its scores, the others compute them again
    for on in guess:
        deep = [dataclasses.replace(plant.decoder, num_layers=L, remat="none") for L in (1, 2)]
        work = phase.work._replace(gradient=1)
        less, more = (temporaries(decoder, work, tensor=1, platform=on) for decoder in deep)
        kept[on] = more - less
    assert kept["cpu"] == kept["tpu"] < kept["gpu"] / 10
