"""launch/convert.py: what it writes is what the checkpoint holds, in other programs too, and what it refuses.

python -m pytest tests/stages/test_convert.py -s      # prints the table of wrong inputs and messages
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import assert_well_said, checkpoint, quick_compilation, write_settings
from small_runs import run as train

from grpo_jax.config import MeshConfig
from grpo_jax.data.tokenizer import eos_ids, load_tokenizer
from grpo_jax.models.hf import family_names, load_params, read_config, save_params
from grpo_jax.models.parameters import init_params
from grpo_jax.sharding import make_mesh
from grpo_jax.stages import convert, convert_check, convert_import, convert_place, policy
from grpo_jax.stages.convert_folder import is_converted, load_model, saved_leaves
from launch.convert import main
from tests.make_random_model import main as make_random_model

SIZES = {"vocab": 300, "hidden": 16, "layers": 2, "heads": 4, "kv-heads": 2, "head-dim": 4, "mlp": 16}
SMALL = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
LORA = {"rank": 2, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}


def launched(capsys, *argv, devices: int = 1) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a conversion on so many of the fake devices."""
    capsys.readouterr()
    few = mock.patch.object(jax, "local_devices", lambda: jax.devices()[:devices])
    with quick_compilation(), few:
        code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


def converted(capsys, *argv, devices: int = 1) -> str:
    """What a conversion that must succeed has said."""
    code, out, err = launched(capsys, *argv, devices=devices)
    assert (code, err) == (0, ""), err
    assert not list(Path(str(argv[2])).parent.glob(".*.converting")), "the workspace is gone"
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stats(folder: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


def gap_said(out: str) -> float:
    return float(re.search(r"max \|gap\| (\S+)", out)[1])


def assert_holds(folder: Path, leaves: dict, prefix: str = "['state']['params']") -> None:
    """The directory holds the parameters of a checkpoint."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    loaded = load_params(folder, read_config(folder), mesh)
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}
    assert len(flat) > 5
    for name, leaf in flat.items():
        np.testing.assert_array_equal(leaf, leaves[prefix + name], err_msg=name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole random Qwen2 directory."""
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    make_random_model([str(folder), *SMALL])
    return folder


@pytest.fixture(scope="module")
def adapted(model, tmp_path_factory, workers):
    """A finished run of sft with adapters."""
    folder = tmp_path_factory.mktemp("adapted")
    train(adapted_settings(folder, model), folder / "run", workers)
    return folder / "run"


def adapted_settings(folder: Path, model: Path) -> Path:
    return write_settings(
        folder / "run.yaml",
        rl=None,
        model={"architecture": None, "model_name_or_path": str(model), "lora": LORA},
        sft={"max_steps": 2, "max_length": 24, "optimizer": {"learning_rate": 0.1}},
    )


@pytest.fixture(scope="module")
def told():
    """The table, printed at the end."""
    lines: list[tuple[str, int, str]] = []
    yield lines
    for name, code, message in lines:
        print(f"\n{name} -> exit {code}\n    " + message.strip().replace("\n", "\n    "))


def test_a_run_becomes_a_hugging_face_directory(base, tmp_path, capsys):
    """The newest checkpoint of the last stage, on one device and on eight; the run's own export is the same."""
    _, run = base
    before = stats(run)
    said = converted(capsys, "to-hf", run, tmp_path / "one")
    assert "rl, step 4 of run" in said and gap_said(said) == 0.0
    assert "of prompts and completions of rl, step 4" in said
    assert stats(run) == before, "read only"
    assert_holds(tmp_path / "one", checkpoint(run, "rl"))
    converted(capsys, "to-hf", run / "rl" / "checkpoints" / "4", tmp_path / "eight", devices=8)
    assert files_of(tmp_path / "eight") == files_of(tmp_path / "one") == files_of(run / "hf")
    assert json.loads((tmp_path / "one" / "generation_config.json").read_text())["eos_token_id"] == [1]


def test_stage_step_type_and_shards_can_be_chosen(base, tmp_path, capsys):
    _, run = base
    flags = ("--stage", "sft", "--step", 4, "--dtype", "bfloat16", "--max-shard-size", "1kb")
    said = converted(capsys, "to-hf", run, tmp_path / "out", *flags)
    assert "sft, step 4" in said and "rounded to bfloat16" in said and 0 < gap_said(said) < 0.1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    leaves = checkpoint(run, "sft")
    assert_holds(tmp_path / "out", {k: np.asarray(jnp.asarray(v).astype(jnp.bfloat16)) for k, v in leaves.items()})


def test_a_run_that_goes_on(base, tmp_path, capsys):
    """Its lock is held, an unfinished save lies there, and the checkpoint that is being read is removed."""
    import fcntl

    _, run = base
    shutil.copytree(run, moved := tmp_path / "moved")
    (moved / "rl" / "done.json").unlink()
    checkpoints = moved / "rl" / "checkpoints"
    shutil.copytree(checkpoints / "4", checkpoints / "5")
    shutil.copytree(checkpoints / "4", checkpoints / "6.orbax-checkpoint-tmp")
    text = (checkpoints / "5" / "manifest.json").read_text()
    restore, removed = convert.restore_as, []

    def vanishing(opened, step, abstract):
        if not removed:
            removed.append(step)
            shutil.rmtree(opened.directory / str(step))
        return restore(opened, step, abstract)

    with (moved / ".lock").open("a+") as lock, mock.patch.object(convert, "restore_as", vanishing):
        fcntl.lockf(lock, fcntl.LOCK_EX)
        said = converted(capsys, "to-hf", moved, tmp_path / "out")
    assert removed == [5] and text
    assert "checkpoints/5: the run has removed it meanwhile" in said and "rl, step 4" in said


def test_a_broken_checkpoint_is_passed_over_or_named(base, tmp_path, capsys, told):
    _, run = base
    shutil.copytree(run, moved := tmp_path / "moved")
    checkpoints = moved / "rl" / "checkpoints"
    shutil.copytree(checkpoints / "4", checkpoints / "5")
    largest = max((p for p in (checkpoints / "5").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = converted(capsys, "to-hf", moved, tmp_path / "out")
    assert "passed over: " in said and "(SHA-256)" in said and "rl, step 4" in said
    for flags, remedy in (
        (("--step", "5"), "--step takes another: there are 4, 5"),
        ((), "there are: sft (4), rl (5)"),
    ):
        code, _, message = launched(capsys, "to-hf", moved, tmp_path / "bad", *flags)
        told.append((f"broken checkpoint {' '.join(flags)}", code, message.replace(str(tmp_path) + "/", "")))
        assert code == 3
        assert_well_said(message, ("checkpoints/5", "other bytes than were written (SHA-256)", remedy))
        shutil.rmtree(checkpoints / "4", ignore_errors=True)
    assert not (tmp_path / "bad").exists() and not list(tmp_path.glob(".*"))


def test_text_of_its_own_or_a_passage(base, model):
    """Rollouts, else the problems of a source that is at hand, else mathematics in the characters that are known."""
    from grpo_jax.stages.convert_source import find_source

    def text(path, **options):
        source = find_source(str(path), **{"stage": None, "step": None, "model": None, "note": print} | options)
        return source, convert_check.make_text(*source.texts(), source.tokenizer, 4096)

    source, found = text(base[1])
    assert "completions" in found.origin and len(found.rows) == 5
    assert re.fullmatch(r"\d[+-]\d=.*", source.tokenizer.decode(found.rows[1]), re.DOTALL)
    with mock.patch("grpo_jax.stages.convert_source.rollout_files", lambda stage: {}):
        source, found = text(base[1])
        assert found.origin == "problems of the run" and found.tokens >= 100
    passage = convert_check.make_text([], "", source.tokenizer, 64)
    assert passage.origin == "a passage of mathematics" and all(len(row) <= 64 for row in passage.rows)
    assert passage.sentence == "482=2448+24=72"
    assert len(convert_check.make_text([], "", load_tokenizer(str(model), print), 64).rows) > 4


def test_what_reads_back_otherwise_is_kept_under_another_name(base, tmp_path, capsys, told):
    """A bit that flips on the disk, a setting, a token: exit 3, the numbers, and nothing under the name asked for."""
    _, run = base
    save = policy.save_params

    def flipped(params, *rest, **options):
        path = save(params, *rest, **options)
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        return path

    def other_settings(params, *rest, model_type="llama", **options):
        path = save(params, *rest, **options)
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5, "model_type": model_type}))
        return path

    def other_tokenizer(params, *rest, **options):
        return other_settings(params, *rest, model_type="qwen2", **options)

    cases = {
        flipped: ("final_norm: its numbers", "log-probabilities: max |gap| "),
        other_settings: ("rms_norm_eps: 1e-06 became 1e-05",),
        other_tokenizer: ("for model type llama: ", "does not give text back"),  # the one of qwen2 knows no line breaks
    }
    for number, (change, words) in enumerate(cases.items()):
        with mock.patch.object(policy, "save_params", change):
            code, _, message = launched(capsys, "to-hf", run, tmp_path / "out")
        told.append((f"{change.__name__}", code, message.replace(str(tmp_path) + "/", "")))
        assert code == 3
        kept = tmp_path / f"out.mismatch{number or ''}"
        assert_well_said(message, (f"{kept}: what was written is not what was meant", *words))
        assert (kept / "model.safetensors").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mismatch", "out.mismatch1", "out.mismatch2"]


def test_weights_that_are_not_finite(base, tmp_path, capsys, told):
    """A run that has blown up: its weights are written, and no loader takes them."""
    restore = convert.restore_as

    def blown_up(*arguments):
        params = restore(*arguments)
        return params | {"final_norm": params["final_norm"].at[3].set(jnp.nan)}

    with mock.patch.object(convert, "restore_as", blown_up):
        code, _, message = launched(capsys, "to-hf", base[1], tmp_path / "out")
    told.append(("weights that are not finite", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(message, ("out.mismatch/model.safetensors: tensor model.norm.weight holds NaN or",))


def test_a_checkpoint_that_reads_back_otherwise(model, tmp_path, capsys, told):
    save = convert_import.save_converted

    def changed(params, *rest, **options):
        save(params | {"embed": params["embed"].at[7, 3].add(1e-6)}, *rest, **options)

    def broken(params, source, path, **options):
        save(params, source, path, **options)
        largest = max((path / "checkpoints").rglob("*"), key=lambda p: p.stat().st_size)
        largest.write_bytes(b"?" + largest.read_bytes()[1:])

    for change, words in ((changed, "embed: its numbers"), (broken, "mismatch1/checkpoints/0: ")):
        with mock.patch.object(convert_import, "save_converted", change):
            code, _, message = launched(capsys, "from-hf", model, tmp_path / "out")
        told.append((f"from-hf, {change.__name__}", code, message.replace(str(tmp_path) + "/", "")))
        assert code == 3
        assert_well_said(message, (words, "what was written is not what was meant"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mismatch", "out.mismatch1"]


def test_digests_see_every_change():
    """A bit, an exchange of two numbers, the sign of a zero; and a type rounds as the files do."""
    numbers = np.random.default_rng(0).normal(size=(7, 64, 33)).astype(np.float32)
    numbers[0, 0, :2] = [0.0, 1e-41]  # a subnormal
    print_of = lambda x, dtype="float32": convert_check.fingerprint({"x": jnp.asarray(x)}, dtype)["x"]  # noqa: E731
    seen = {print_of(numbers), print_of(numbers.swapaxes(1, 2))}
    for place in ((0, 0, 0), (6, 63, 32)):
        changed = numbers.copy()
        changed.view(np.uint32)[place] ^= 1
        seen.add(print_of(changed))
    swapped = numbers.copy()
    swapped[[1, 5]] = numbers[[5, 1]]
    minus = numbers.copy()
    minus[0, 0, 0] = -0.0
    seen |= {print_of(swapped), print_of(minus)}
    assert len(seen) == 6 and print_of(numbers) == print_of(numbers.copy()) in seen
    half = jnp.asarray(numbers).astype(jnp.bfloat16)
    assert print_of(numbers, "bfloat16") == print_of(half.astype(jnp.float32)) == print_of(half) not in seen
    with mock.patch.object(convert_check, "PIECE", 3 * 64 * 33):
        jax.clear_caches()
        assert print_of(numbers) in seen, "three, three and one of seven rows"
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    split = jax.device_put(numbers[:, :, :32], jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor")))
    assert print_of(split) == print_of(numbers[:, :, :32]), "whatever the layout"


@pytest.mark.parametrize("family", family_names())
def test_every_family_there_and_back(tmp_path, capsys, family):
    """A directory made a checkpoint, and a directory again: every file has the same bytes."""
    make_random_model([str(tmp_path / "saved"), "--family", family, *SMALL])
    converted(capsys, "from-hf", tmp_path / "saved", tmp_path / "orbax")
    said = converted(capsys, "to-hf", tmp_path / "orbax", tmp_path / "again")
    assert gap_said(said) == 0.0
    expected, got = files_of(tmp_path / "saved"), files_of(tmp_path / "again")
    assert expected.keys() == got.keys()
    for name in expected.keys() - {"generation_config.json"}:  # a run's own says which ids end a text, no more
        assert got[name] == expected[name], name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_and_export_give_the_same_bytes(tmp_path, model, capsys, dtype):
    """A directory, made a checkpoint and a directory again, is what loading and saving it gives; and so once more."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config, tokenizer = read_config(model), load_tokenizer(str(model), print)
    ids = {"eos_token_id": list(eos_ids(tokenizer, str(model))), "pad_token_id": tokenizer.pad_token_id}
    params = load_params(model, config, mesh)
    direct = save_params(params, config, tokenizer, tmp_path / "direct", dtype=dtype, generation_config=ids)
    said = converted(capsys, "from-hf", direct, tmp_path / "orbax")
    assert "read back bit for bit" in said and f"numbers of weights in {dtype}" in said
    assert is_converted(tmp_path / "orbax") and not is_converted(direct)
    said = converted(capsys, "to-hf", tmp_path / "orbax", tmp_path / "again")
    assert gap_said(said) == 0.0 and "a passage of mathematics" in said and f"in {dtype}" in said
    assert files_of(tmp_path / "again") == files_of(direct)
    saved = saved_leaves(tmp_path / "orbax" / "checkpoints" / "0")
    assert saved["layers/q"] == f"{dtype}[2, 16, 4, 4]" and saved["final_norm"] == "float32[16]"


def test_import_can_round(tmp_path, model, capsys):
    said = converted(capsys, "from-hf", model, tmp_path / "orbax", "--dtype", "bfloat16")
    assert "bit for bit, float32 as bfloat16" in said
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    loaded = load_model(tmp_path / "orbax", read_config(model), mesh)
    expected = load_params(model, read_config(model), mesh, dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}


def test_a_scalar_head_is_kept(tmp_path, model, capsys):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = dataclasses.replace(read_config(model), head="scalar")
    tokenizer = load_tokenizer(str(model), print)
    ids = {"eos_token_id": list(eos_ids(tokenizer, str(model))), "pad_token_id": tokenizer.pad_token_id}
    params = init_params(config, jax.random.key(0), mesh)
    judge = save_params(params, config, tokenizer, tmp_path / "judge", generation_config=ids)
    converted(capsys, "from-hf", judge, tmp_path / "orbax")
    said = converted(capsys, "to-hf", tmp_path / "orbax", tmp_path / "again")
    assert "scores: max |gap| 0 on" in said and "AutoModelForSequenceClassification" in said
    assert files_of(tmp_path / "again") == files_of(judge)
    assert torch_says(said) == pytest.approx(number_said(said), abs=1e-4)


def test_training_starts_from_a_converted_model(tmp_path, model, adapted, capsys, workers):
    """Adapters are trained bit for bit as on the directory that it was made of, and fit that as their base too."""
    converted(capsys, "from-hf", model, tmp_path / "orbax")
    train(adapted_settings(tmp_path, tmp_path / "orbax"), tmp_path / "run", workers)
    one, other = checkpoint(adapted, "sft"), checkpoint(tmp_path / "run", "sft")
    assert one.keys() == other.keys()
    for leaf in one:
        np.testing.assert_array_equal(one[leaf], other[leaf], err_msg=leaf)
    said = converted(capsys, "to-hf", tmp_path / "run", tmp_path / "adapter")
    assert gap_said(said) == 0.0 and "torch needs the base as a Hugging Face directory" in said
    converted(capsys, "to-hf", tmp_path / "run", tmp_path / "merged", "--merge")
    converted(capsys, "to-hf", adapted, tmp_path / "same", "--merge", "--model", tmp_path / "orbax")
    assert files_of(tmp_path / "merged") == files_of(tmp_path / "same")


def test_a_converted_model_that_is_broken_or_another(tmp_path, model, capsys, workers, told):
    from small_runs import launched as trained

    converted(capsys, "from-hf", model, tmp_path / "orbax")
    file = write_settings(
        tmp_path / "run.yaml", rl=None, model={"architecture": None, "model_name_or_path": str(tmp_path / "orbax")}
    )
    argv = [str(file), "--output_dir", str(tmp_path / "run")]
    settings = tmp_path / "orbax" / "config.json"
    content = settings.read_text()
    settings.write_text(json.dumps(json.loads(content) | {"intermediate_size": 24}))
    code, message = trained(argv, capsys)
    told.append(("training: config.json of another model", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(message, ("checkpoints/0", "is of another model", "layers/down", "[2, 16, 16]", "[2, 24, 16]"))
    settings.write_text(content)
    largest = max((tmp_path / "orbax").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"?" + largest.read_bytes()[1:])
    code, message = trained(argv, capsys)
    told.append(("training: a broken byte", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(message, ("checkpoints/0", "other bytes than were written (SHA-256)", "launch/convert.py from-hf"))


def test_adapters_become_a_peft_directory(adapted, tmp_path, capsys):
    said = converted(capsys, "to-hf", adapted, tmp_path / "adapter")
    assert gap_said(said) == 0.0 and "numbers of adapters in float32" in said
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["target_modules"]) == (2, ["q_proj", "v_proj", "down_proj"])
    assert files_of(tmp_path / "adapter") == files_of(adapted / "adapter")
    pytest.importorskip("peft")
    assert torch_says(said) == pytest.approx(number_said(said), abs=1e-4)


def test_adapters_can_be_merged(adapted, tmp_path, capsys):
    said = converted(capsys, "to-hf", adapted, tmp_path / "merged", "--merge")
    assert gap_said(said) == 0.0
    unmerged = float(re.search(r"beside their base: max \|gap\| (\S+)", said)[1])
    assert 0 < unmerged < 1e-4, "sums in another order"
    merged = files_of(tmp_path / "merged")
    rounded = converted(capsys, "to-hf", adapted, tmp_path / "half", "--merge", "--dtype", "bfloat16")
    assert unmerged < float(re.search(r"beside their base: max \|gap\| (\S+)", rounded)[1]) < 0.1
    assert len(files_of(tmp_path / "half")["model.safetensors"]) < 0.6 * len(merged["model.safetensors"])
    assert torch_says(said) == pytest.approx(number_said(said), abs=1e-4)


def test_a_wrong_merge_is_found(adapted, tmp_path, capsys, told):
    def twice(base, adapters, config):
        return merge(merge(base, adapters, config), adapters, config)

    merge = convert.merge
    with mock.patch.object(convert, "merge", twice):
        code, _, message = launched(capsys, "to-hf", adapted, tmp_path / "out", "--merge")
    told.append(("a wrong merge", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(message, ("merging: max |gap|", "should be below"))


def test_another_base_is_refused(adapted, model, tmp_path, capsys, told):
    """The base has been trained on meanwhile; or it was moved, and `--model` says where to."""
    shutil.copytree(model, moved := tmp_path / "moved")
    run = tmp_path / "run"
    shutil.copytree(adapted, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(model), str(tmp_path / "gone")))
    code, _, message = launched(capsys, "to-hf", run, tmp_path / "out")
    told.append(("base moved", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 2
    assert_well_said(message, ("gone", "no such model directory", "--model says where it lies now"))
    converted(capsys, "to-hf", run, tmp_path / "out", "--model", moved)
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + np.float32(3.0).tobytes())
    header = np.frombuffer(weights.read_bytes()[:8], np.uint64)[0]
    content = bytearray(weights.read_bytes())
    content[8 + int(header) : 12 + int(header)] = np.float32(3.0).tobytes()
    weights.write_bytes(content)
    code, _, message = launched(capsys, "to-hf", run, tmp_path / "bad", "--model", moved)
    told.append(("base changed", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(message, ("sft/checkpoints/2", "is not the model that its adapters were trained on", "weights"))


def number_said(said: str) -> float:
    return float(re.search(r"' prints (\S+)", said)[1])


def torch_says(said: str) -> float:
    """What the command that was printed prints; run in this process, which has torch already."""
    pytest.importorskip("torch")
    command = re.search(r"check it in torch: (.*) prints", said)[1]
    words = shlex.split(command)
    assert words[:2] == ["python", "-c"]
    shown = []
    exec(words[2], {"print": shown.append})
    return shown[0]


def test_the_printed_command_works_in_torch(base, tmp_path, capsys):
    said = converted(capsys, "to-hf", base[1], tmp_path / "it's here")
    assert torch_says(said) == pytest.approx(number_said(said), abs=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(base, tmp_path, capsys, signum, request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell's jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    write = convert.write

    def signalled(job, params, path):
        write(job, params, path)
        os.kill(os.getpid(), signum)
        time.sleep(5)

    with mock.patch.object(convert, "write", signalled):
        code, _, message = launched(capsys, "to-hf", base[1], tmp_path / "out")
    assert code == 128 + signum and "Traceback" not in message
    assert message.startswith("stopped: nothing was left" if signum == signal.SIGTERM else "interrupted")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_conversion_left_is_removed(base, tmp_path, capsys):
    left = tmp_path / ".out.converting"
    (left / "model").mkdir(parents=True)
    (left / ".model.partial").mkdir()
    (left / "model" / "config.json").write_text("half")
    converted(capsys, "to-hf", base[1], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_conversions_to_one_place(base, tmp_path, capsys, told):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    (tmp_path / ".out.converting" / "model").mkdir(parents=True)
    command = [sys.executable, "-c", hold + "; sys.stdin.read()", str(tmp_path / ".out.converting" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, _, message = launched(capsys, "to-hf", base[1], tmp_path / "out")
        other.stdin.close()
    told.append(("two conversions to one place", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 2
    assert_well_said(message, ("another conversion is writing it", "wait for it"))
    assert (tmp_path / ".out.converting" / "model").exists(), "what is another's is let be"


REFUSED = {
    "no command": ((), ("to-hf | from-hf", "--help")),
    "no such flag": (("to-hf", "RUN", "OUT", "--dtipe", "x"), ("unrecognized arguments: --dtipe", "--help")),
    "unknown type": (("to-hf", "RUN", "OUT", "--dtype", "float16"), ("--dtype", "'float16'", "bfloat16")),
    "no size": (("to-hf", "RUN", "OUT", "--max-shard-size", "many"), ("'many' is no size", "5GB")),
    "not there": (("to-hf", "FOLDER/nowhere", "OUT"), ("nowhere: does not exist", "output_dir of launch/train.py")),
    "a file": (("to-hf", "FOLDER/file", "OUT"), ("file: a file", "output_dir")),
    "not a run": (("to-hf", "FOLDER/empty", "OUT"), ("empty: is no run (it has no config.yaml)", "from-hf")),
    "a model, not a run": (("to-hf", "MODEL", "OUT"), ("is a Hugging Face directory, not a run", "from-hf")),
    "nothing started": (("to-hf", "FOLDER/new", "OUT"), ("no checkpoint yet", "no stage has been started")),
    "no checkpoint yet": (("to-hf", "FOLDER/young", "OUT"), ("rl has no checkpoint yet", "there are: sft (4)")),
    "unknown stage": (("to-hf", "RUN", "OUT", "--stage", "dpo"), ("--stage dpo", "no such stage", "sft (4), rl (4)")),
    "unknown step": (("to-hf", "RUN", "OUT", "--step", "3"), ("rl/checkpoints: there is no step 3; there are 4",)),
    "two stages": (("to-hf", "RUN/rl", "OUT", "--stage", "sft"), ("--stage sft", "a checkpoint of rl", "one or the")),
    "two steps": (("to-hf", "RUN/rl/checkpoints/4", "OUT", "--step", "3"), ("--step 3", "of step 4", "one or the")),
    "step of another": (("to-hf", "RUN/rl/checkpoints/7", "OUT"), ("checkpoints/7: does not exist",)),
    "out exists": (("to-hf", "RUN", "FOLDER/empty"), ("empty: exists and is not overwritten", "choose another")),
    "out in the run": (("to-hf", "RUN", "RUN/export"), ("lies in", "only read", "choose a directory outside")),
    "out below a file": (("to-hf", "RUN", "FOLDER/file/out"), ("cannot be written (Not a directory)",)),
    "merge without adapters": (("to-hf", "RUN", "OUT", "--merge"), ("--merge", "has no adapters", "leave")),
    "adapters rounded": (("to-hf", "ADAPTED", "OUT", "--dtype", "bfloat16"), ("adapters are written in float32",)),
    "no tokenizer": (("to-hf", "FOLDER/untold", "OUT"), ("tokenizer", "cannot be loaded")),
    "broken settings": (("to-hf", "FOLDER/odd", "OUT"), ("config.yaml:", "model.dtype", '"float8"')),
    "from nowhere": (("from-hf", "FOLDER/nowhere", "OUT"), ("no such model directory",)),
    "from a run": (("from-hf", "RUN", "OUT"), ("config.json: missing",)),
    "from a model to it": (("from-hf", "MODEL", "MODEL/orbax"), ("lies in", "only read")),
    "from a model over another": (("from-hf", "MODEL", "FOLDER/empty"), ("exists and is not overwritten",)),
}


@pytest.fixture(scope="module")
def places(base, adapted, model, tmp_path_factory):
    """Wrong inputs of many kinds, by the words that stand for them."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "file").write_text("")
    for name in ("empty", "new", "young", "untold", "odd"):
        (folder / name).mkdir()
    run = base[1]
    for name in ("new", "young", "untold", "odd"):
        shutil.copy(run / "config.yaml", folder / name)
    for name in ("young", "untold", "odd"):
        shutil.copytree(run / "sft", folder / name / "sft")
    (folder / "young" / "rl").mkdir()
    (folder / "young" / "rl" / "metrics.jsonl").write_text("{}\n")
    settings = (folder / "odd" / "config.yaml").read_text()
    (folder / "odd" / "config.yaml").write_text(settings.replace("dtype: float32", "dtype: float8"))
    names = {"RUN": run, "FOLDER": folder, "MODEL": model, "ADAPTED": adapted, "OUT": folder / "out"}
    return {name: str(place) for name, place in names.items()}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "_"))
def test_refused(case, places, capsys, told):
    argv, words = REFUSED[case]
    for name, place in places.items():
        argv = [place + word.removeprefix(name) if word.startswith(name) else word for word in argv]
    before = {name: stats(Path(places[name])) for name in ("RUN", "FOLDER", "MODEL")}
    code, _, message = launched(capsys, *argv)
    for place in places.values():
        told_message = message.replace(str(Path(place).parent) + "/", "")
    told.append((case, code, told_message))
    assert code == 2
    assert_well_said(message, words)
    for name, there in before.items():
        assert stats(Path(places[name])) == there


@pytest.mark.parametrize("command", ["to-hf", "from-hf"])
def test_no_space(base, model, tmp_path, capsys, told, command):
    with mock.patch.object(convert_place.shutil, "disk_usage", lambda path: mock.Mock(free=10)):
        code, _, message = launched(capsys, command, {"to-hf": base[1]}.get(command, model), tmp_path / "out")
    told.append((f"{command}, no space", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 2
    assert_well_said(message, ("out: needs", "a tenth to spare", "10 are free", "choose another directory"))
    assert not list(tmp_path.iterdir())


def test_no_device(base, tmp_path, capsys, told):
    def none():
        raise RuntimeError("Unable to initialize backend 'tpu': the TPU is already in use by process 7")

    with mock.patch.object(jax, "local_devices", none):
        code = main(["to-hf", str(base[1]), str(tmp_path / "out")])
    message = capsys.readouterr().err
    told.append(("devices in use", code, message))
    assert code == 2
    assert_well_said(message, ("already in use", "JAX_PLATFORMS=cpu converts without them"))


def test_as_many_devices_as_divide(model):
    config = dataclasses.replace(read_config(model), hidden_size=12, num_heads=2, head_dim=6)
    assert convert_place.local_mesh(config).size == 6
    assert convert_place.local_mesh(dataclasses.replace(config, hidden_size=7)).size == 7
    assert convert_place.local_mesh(dataclasses.replace(config, hidden_size=11)).size == 1


def test_help_is_quick_and_says_what_there_is():
    script = Path(__file__).resolve().parents[2] / "launch" / "convert.py"
    code = f"""
import runpy, sys
sys.argv = ["convert.py", "to-hf", "--help"]
try:
    runpy.run_path({str(script)!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code
assert not {{"jax", "transformers", "torch"}} & set(sys.modules), "nothing heavy is imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("RUN_OR_CHECKPOINT", "--merge", "--max-shard-size", "--stage", "--step", "--model", "--dtype"):
        assert word in done.stdout


def test_progress_follows_what_is_written(tmp_path):
    """Rate and time left come from the bytes that have come to lie on the disk."""
    progress = mock.MagicMock()
    progress.return_value.__enter__.return_value = progress
    quick = mock.patch.object(convert_place, "INTERVAL", 0.02)
    with quick, mock.patch.object(convert_place, "Progress", progress), convert_place.writing(tmp_path, 5 * 10**6):
        for number in range(3):
            end, seen = time.monotonic() + 20, progress.advance.call_count
            (tmp_path / str(number)).write_bytes(bytes(10**6))
            while progress.advance.call_count == seen and time.monotonic() < end:
                time.sleep(0.01)
    steps = [call.kwargs["steps"] for call in progress.advance.call_args_list]
    assert sum(steps) == 5 and len(steps) >= 3
    progress.assert_called_once_with("write", total=5, unit="megabyte")


# A command whose checkpoint is never sealed: it is on the way until it is killed, however fast the machine is.
NEVER_DONE = """
import runpy, sys, time
from grpo_jax.training import manifest
manifest.write = lambda directory, body: time.sleep(1000)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_half_a_billion_numbers(tmp_path):
    """The shape of Qwen2.5-0.5B there and back in processes of their own, one of them killed on the way."""
    make_random_model([str(tmp_path / "model"), "--half-billion"])
    script = Path(__file__).resolve().parents[2] / "launch" / "convert.py"
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(script.parents[1])}

    def start(*words, code=()):
        return subprocess.Popen([sys.executable, *code, str(script), *map(str, words)], env=environment, cwd=tmp_path)

    killed = start("from-hf", tmp_path / "model", tmp_path / "orbax", code=("-c", NEVER_DONE))
    while killed.poll() is None and not list(tmp_path.glob(".orbax.converting/model/checkpoints/0*/*")):
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert list(tmp_path.glob(".orbax.converting/*")) and not (tmp_path / "orbax").exists()
    assert start("from-hf", tmp_path / "model", tmp_path / "orbax").wait() == 0
    assert start("to-hf", tmp_path / "orbax", tmp_path / "again").wait() == 0
    for name, content in files_of(tmp_path / "model").items():
        if name.endswith(".safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == content
    assert not list(tmp_path.glob(".*"))
