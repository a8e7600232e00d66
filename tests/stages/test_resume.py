"""A run that is interrupted and goes on leaves what an unbroken run leaves, bit for bit."""

import shutil
from pathlib import Path

from small_runs import assert_equal_runs, assert_well_said, launched, run, run_interrupted, steps


def test_a_run_broken_everywhere_equals_an_unbroken_one(base, workers, tmp_path):
    """Within sft, at the border of the outer iterations, within the second, whose reference is another."""
    file, unbroken = base
    for stage, step in (("sft", 2), ("rl", 2), ("rl", 3)):
        stopped = run_interrupted(file, tmp_path, workers, stage, step)
        assert stopped.exit_code == 143 and f"stopped after step {step} of 4" in str(stopped)
        assert steps(tmp_path, stage)[-1] == step
    run(file, tmp_path, workers)
    assert_equal_runs(tmp_path, unbroken)


def test_a_damaged_checkpoint(base, workers, tmp_path, capsys):
    """Of a finished stage it is an error with a remedy; of a stage under way the one before is taken, by name."""
    file, unbroken = base
    shutil.copytree(unbroken, directory := tmp_path / "run")
    shutil.rmtree(directory / "hf")
    damaged = flip_a_bit(directory / "rl" / "checkpoints" / "4")
    code, message = launched([str(file), "--output_dir", str(directory)], capsys)
    assert code == 3
    remedy = ("delete", "rl/done.json", "newest good checkpoint")
    assert_well_said(message, ("rl/checkpoints/4", damaged.name, "other bytes than were written", *remedy))

    (directory / "rl" / "done.json").unlink()
    run(file, directory, workers)
    said = capsys.readouterr().out
    assert "passed over:" in said and damaged.name in said and "rl: step 4 is saved" in said
    assert_equal_runs(directory, unbroken)


def flip_a_bit(checkpoint: Path) -> Path:
    """In the middle of the largest file of a checkpoint."""
    largest = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return largest
