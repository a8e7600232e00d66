"""What is announced as saved is on the disk, whole; what is not whole is named and never loaded."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.config import MeshConfig, OptimizerConfig
from grpo_jax.sharding import make_mesh, named
from grpo_jax.training import manifest, storage
from grpo_jax.training.checkpoint import CheckpointError, Checkpoints
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state
from grpo_jax.types import TrainState

AXES = {
    "embed": ("vocab", "embed"),
    "layers": {"norm": ("layers", None), "q": ("layers", "embed", "heads", "head_dim")},
}
SHAPES = {"embed": (8, 8), "layers": {"norm": (2, 8), "q": (2, 8, 4, 2)}}
META = {"config": {"learning_rate": 1e-6, "mesh": (2, 2, 2)}, "position": 7, "name": "π"}


def abstract_tree(mesh_sizes, *, reference=True):
    """The shapes and shardings of a run's checkpoint: the train state and a frozen bfloat16 reference."""
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), mesh_sizes, strict=True))))

    def params(dtype):
        return jax.tree.map(
            lambda shape, axes: jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, *axes)),
            SHAPES,
            AXES,
            is_leaf=lambda x: isinstance(x, tuple),
        )

    state = abstract_state(params(jnp.float32), make_optimizer(OptimizerConfig(), 5), mesh)
    return {"state": state, "reference": params(jnp.bfloat16) if reference else None}


def random_tree(abstract, seed=0):
    """Random arrays of every leaf's shape, type and sharding."""
    rng = np.random.default_rng(seed)

    def make(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(seed + 7), leaf.sharding)
        return jax.device_put(jnp.asarray(rng.normal(size=leaf.shape) * 100, leaf.dtype), leaf.sharding)

    return jax.tree.map(make, abstract)


def raw(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def save_steps(directory, *steps, limit=10, size=8):
    """Small checkpoints whose values tell their step."""
    with Checkpoints(directory, limit) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"w": jnp.full((size,), float(step))}, {"step": step})


def small(size=8):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"w": jax.ShapeDtypeStruct((size,), jnp.float32, sharding=device)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a run on a (2, 2, 2) mesh, and the tree that was saved."""
    directory = tmp_path_factory.mktemp("saved")
    tree = random_tree(abstract_tree((2, 2, 2)))
    with Checkpoints(directory, 2) as checkpoints:
        checkpoints.save(3, tree, META)
    return directory, tree


@pytest.mark.parametrize("mesh_sizes", [(2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_round_trip_is_bit_exact_on_any_mesh(saved, mesh_sizes):
    directory, tree = saved
    abstract = abstract_tree(mesh_sizes)
    restored, meta = Checkpoints(directory).restore(3, abstract)
    assert meta == json.loads(json.dumps(META))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert type(restored["state"]) is TrainState
    for new, old, wanted in zip(*map(jax.tree.leaves, (restored, tree, abstract)), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert new.sharding == wanted.sharding
        assert raw(new) == raw(old)
    draw = [jax.random.uniform(jax.random.fold_in(t["state"].key, 5)) for t in (restored, tree)]
    assert draw[0] == draw[1]


def test_parameters_alone_for_the_next_stage(saved):
    directory, tree = saved
    abstract = abstract_tree((1, 4, 2))
    params = Checkpoints(directory).restore_params(3, abstract["state"].params)
    assert jax.tree.structure(params) == jax.tree.structure(tree["state"].params)
    for new, old, wanted in zip(
        *map(jax.tree.leaves, (params, tree["state"].params, abstract["state"].params)), strict=True
    ):
        assert raw(new) == raw(old)
        assert new.sharding == wanted.sharding
    reference = Checkpoints(directory).restore_params(3, abstract["reference"], at=("reference",))
    assert raw(reference["embed"]) == raw(tree["reference"]["embed"])


def test_meta_is_read_without_the_arrays(saved):
    assert Checkpoints(saved[0]).meta(3) == {**META, "config": {"learning_rate": 1e-6, "mesh": [2, 2, 2]}}


def test_another_model_is_refused_leaf_by_leaf(saved):
    abstract = abstract_tree((2, 2, 2), reference=False)
    wider = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=abstract["state"].params["embed"].sharding)
    params = {**abstract["state"].params, "embed": wider}
    checkpoints = Checkpoints(saved[0])
    with pytest.raises(CheckpointError) as refused:
        checkpoints.restore(3, {**abstract, "state": abstract["state"].replace(params=params)})
    message = str(refused.value)
    assert "reference/embed: saved bfloat16[8, 8], this run has nothing" in message
    assert "state/params/embed: saved float32[8, 8], this run has float32[16, 8]" in message
    assert refused.value.exit_code == 3
    with pytest.raises(CheckpointError, match=r"embed: saved float32\[8, 8\], this run has float32\[16, 8\]"):
        checkpoints.restore_params(3, params)


def test_one_flipped_bit_in_any_file_is_named(saved, tmp_path):
    source = saved[0] / "3"
    names = [str(f.relative_to(source)) for f in source.rglob("*") if f.is_file()]
    assert any("/d/" in name for name in names) and manifest.NAME in names  # array data among them
    rng = np.random.default_rng(0)
    save_steps(tmp_path, 1)
    shutil.copytree(source, tmp_path / "3")
    for name in names:
        path = tmp_path / "3" / name
        good = path.read_bytes()
        if not good:
            continue
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        step, passed_over = Checkpoints(tmp_path).latest()
        assert step == 1 and len(passed_over) == 1 and name in passed_over[0], (name, passed_over)
        with pytest.raises(CheckpointError, match=r"SHA-256|cannot be read|format"):
            Checkpoints(tmp_path).restore(3, abstract_tree((2, 2, 2)))
        path.write_bytes(good)
    assert Checkpoints(tmp_path).latest() == (3, ())


def test_every_kind_of_bad_step_is_passed_over_with_its_reason(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, 5, 6)
    data = next((tmp_path / "6").glob("ocdbt.process_0/d/*"))
    data.unlink()
    metadata = tmp_path / "5" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:-9])
    (tmp_path / "4" / manifest.NAME).unlink()
    content = manifest.read(tmp_path / "3")
    (tmp_path / "3" / manifest.NAME).write_text(json.dumps({**content, "format": 99}))
    (tmp_path / "2" / manifest.NAME).write_text("{")
    (tmp_path / "7").mkdir()
    (tmp_path / "best").mkdir()
    checkpoints = Checkpoints(tmp_path)
    step, passed_over = checkpoints.latest()
    assert step == 1
    reasons = {
        "best": "its name is not a step",
        "7": "was never finished",
        "6": f"{data.name} is missing",
        "5": "_METADATA has",
        "4": "was never finished",
        "3": "has format 99, this program reads format 1",
        "2": "cannot be read",
    }
    for line, (name, reason) in zip(passed_over, reasons.items(), strict=True):
        assert str(tmp_path / name) in line and reason in line
    with pytest.raises(CheckpointError, match=r"its name is not a step; .*format 99"):
        checkpoints.latest(strict=True)
    with pytest.raises(CheckpointError, match=r"8: there is no such checkpoint; there are \[7, 6"):
        checkpoints.restore(8, small())


def test_nothing_saved_yet(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() == (None, ())


def test_retention_keeps_the_newest_good_ones(tmp_path):
    save_steps(tmp_path, 1, 2, 3, limit=2)
    assert storage.entries(tmp_path)[0] == [3, 2]
    (tmp_path / "3" / manifest.NAME).unlink()  # never finished: it does not count
    with Checkpoints(tmp_path, 2) as checkpoints:
        assert checkpoints.latest()[0] == 2
        checkpoints.save(4, {"w": jnp.zeros(8)}, {})
    assert storage.entries(tmp_path)[0] == [4, 2]
    save_steps(tmp_path, 5, limit=1)
    assert storage.entries(tmp_path)[0] == [5]


def test_announced_only_when_it_verifies_and_leftovers_go(tmp_path):
    for name in ("9.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-123", "8.deleting"):
        (tmp_path / name / "state").mkdir(parents=True)
    announced = []

    def announce(saved):
        assert Checkpoints(tmp_path).latest() == (saved.step, ())
        assert saved.bytes > 0 and saved.path == tmp_path / str(saved.step)
        announced.append(saved.step)

    with Checkpoints(tmp_path, 1, announce=announce) as checkpoints:
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]
        assert checkpoints.poll() is None
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.full(8, float(step))}, {})
        assert checkpoints.wait().step == checkpoints.poll().step == 2
    assert announced == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "2"]


def test_the_arrays_may_be_donated_while_the_save_is_in_flight(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    w = jax.random.normal(jax.random.key(0), (512, 1024))
    expected = np.asarray(w).copy()
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, {"w": w}, {})
        for _ in range(10):
            w = add(w)
        w.block_until_ready()
    abstract = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)}
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(1, abstract)[0]["w"], expected)


def test_a_step_is_saved_once_and_a_broken_one_again(tmp_path):
    save_steps(tmp_path, 1, 2)
    manifest_file = tmp_path / "2" / manifest.NAME
    manifest_file.write_bytes(manifest_file.read_bytes()[:-1])
    with Checkpoints(tmp_path, 5) as checkpoints:
        assert checkpoints.latest()[0] == 1
        with pytest.raises(CheckpointError, match="neither saved nor goes on from"):
            checkpoints.save(1, {"w": jnp.zeros(8)}, {})
        checkpoints.restore(1, small())
        checkpoints.save(1, {"w": jnp.zeros(8)}, {})  # it goes on from there: nothing to do
        checkpoints.save(2, {"w": jnp.full(8, 2.5)}, {})
        checkpoints.save(2, {"w": jnp.zeros(8)}, {})
    reader = Checkpoints(tmp_path)
    assert reader.latest() == (2, ())
    assert [float(reader.restore(step, small())[0]["w"][0]) for step in (1, 2)] == [1.0, 2.5]


def test_a_second_run_and_unusable_places_are_refused(tmp_path):
    lock = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "print(1, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", lock, tmp_path / ".lock"], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(CheckpointError, match="another run is writing here"):
            Checkpoints(tmp_path, 2)
        assert Checkpoints(tmp_path).latest() == (None, ())  # reading is free
    finally:
        other.kill()
        other.wait()
    Checkpoints(tmp_path, 2).close()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints", 2)
    with pytest.raises(CheckpointError, match="mount the bucket"):
        Checkpoints("gs://bucket/run", 2)
    with pytest.raises(CheckpointError, match="opened for reading"):
        Checkpoints(tmp_path).save(1, {"w": jnp.zeros(8)}, {})


def removed_before_it_is_locked(monkeypatch, path, times):
    """Whoever held the lock lets go of it, and removes it, between another's opening of the file and its locking."""
    lockf, left = storage.fcntl.lockf, iter(range(times))

    def late(file, kind):
        if next(left, None) is not None:
            path.unlink()
        lockf(file, kind)

    monkeypatch.setattr(storage.fcntl, "lockf", late)


@pytest.mark.parametrize("made_again", [False, True])
def test_a_lock_that_was_removed_meanwhile_keeps_others_out(tmp_path, monkeypatch, made_again):
    path = tmp_path / storage.LOCK
    removed_before_it_is_locked(monkeypatch, path, 1)
    if made_again:
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda self: (unlink(self), self.touch()))
    second = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with storage.claim(tmp_path):
        done = subprocess.run([sys.executable, "-S", "-c", second], capture_output=True, text=True)
        assert "BlockingIOError" in done.stderr
    subprocess.run([sys.executable, "-S", "-c", second], check=True)


def test_a_lock_that_is_always_removed_is_given_up(tmp_path, monkeypatch):
    removed_before_it_is_locked(monkeypatch, tmp_path / storage.LOCK, storage.MOST_TRIES)
    with pytest.raises(CheckpointError, match="another run is writing here"):
        storage.claim(tmp_path)


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 34))
    message = r"needs 35 bytes \(a tenth to spare\), 34 are free"
    with Checkpoints(tmp_path, 1) as checkpoints, pytest.raises(CheckpointError, match=message):
        checkpoints.save(2, {"w": jnp.zeros(8)}, {})
    assert Checkpoints(tmp_path).latest() == (1, ())


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 6 MB, where the tests may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=6m", "tmpfs", path], capture_output=True)
    if not done or done.returncode:
        pytest.skip("no right to mount a file system")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_fills_up_during_the_save(tiny_disk, monkeypatch, capfd):
    big = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
    with Checkpoints(tiny_disk, 5) as checkpoints:
        checkpoints.save(1, big, {})
        checkpoints.wait()
        with pytest.raises(CheckpointError, match=r"needs 4,400,000 bytes .* are free"):
            checkpoints.save(2, big, {})
        monkeypatch.setattr(storage, "require_room", lambda directory, size: None)
        checkpoints.save(2, big, {})
        with pytest.raises(CheckpointError, match=r"2: not saved; earlier .*: the disk is full"):
            checkpoints.wait()
        assert sorted(p.name for p in tiny_disk.iterdir()) == [".lock", "1"]
        checkpoints.save(3, {"w": jnp.zeros(8)}, {})  # what fits is saved again
    assert Checkpoints(tiny_disk).latest() == (3, ())
    assert "Traceback" not in capfd.readouterr().err


def test_a_failed_save_is_raised_by_poll_and_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def fail(directory, body):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(manifest, "write", fail)
    with pytest.raises(RuntimeError, match="first") as first, Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(8)}, {})
        with pytest.raises(CheckpointError, match="Input/output error"):
            for _ in range(1000):
                checkpoints.poll()
                time.sleep(0.01)
        checkpoints.save(2, {"w": jnp.zeros(8)}, {})
        raise RuntimeError("first")
    assert "Input/output error" in first.value.__notes__[0]
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def kill_while_saving(directory, first, delay):
    """Start a process that saves without pause, kill it, and return the steps that it announced."""
    script = Path(__file__).with_name("checkpoint_worker.py")
    with subprocess.Popen(
        [sys.executable, script, directory, str(first)],
        stdout=subprocess.PIPE,
        env={**os.environ, "XLA_FLAGS": ""},
        text=True,
    ) as process:
        announced = [process.stdout.readline()]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        announced += process.stdout.readlines()
    return [int(line) for line in announced if line.endswith("\n")]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_never_loses_what_was_announced(tmp_path, kills):
    rng = np.random.default_rng(kills)
    first = 0
    for _ in range(kills):
        announced = kill_while_saving(tmp_path, first, rng.uniform(0.0, 0.3))
        step, _ = Checkpoints(tmp_path).latest()
        assert step >= max(announced) > first
        abstract = {
            "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=small()["w"].sharding),
            "w": jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=small()["w"].sharding),
        }
        restored, meta = Checkpoints(tmp_path).restore(step, abstract)
        assert meta == {"step": step} and restored["step"] == step
        first = step
    Checkpoints(tmp_path, 2).close()
    assert all(p.name.isdecimal() or p.name == ".lock" for p in tmp_path.iterdir())


def test_two_processes_save_restore_and_stop_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).with_name("checkpoint_processes.py")
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(process), str(port), tmp_path / "checkpoints"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
        )
        for process in (0, 1)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert (first.pop("announced"), second.pop("announced")) == ([1, 2, 3], [])
    assert (first.pop("stop"), second.pop("stop")) == ([False, True], [True, True])
    assert "there is no such checkpoint" in first.pop("refused") and "process 0" in second.pop("refused")
    assert first.pop("steps") == [".lock", "2", "3"] and second.pop("steps")
    assert first == second == {"latest": 3, "meta": {"step": 3}, "equal": True, "key": [0, 3]}
