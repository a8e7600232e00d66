"""environment.json: what is there is said, what is not is no failure."""

import json
import subprocess
from pathlib import Path

from grpo_jax.reporting import environment as module
from grpo_jax.reporting.environment import git_state, without_home, write_environment
from grpo_jax.reporting.gather import sandbox_in_words


def test_versions_devices_and_command_line_are_written(tmp_path):
    write_environment(tmp_path / "run" / "environment.json")
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["platform"] == "cpu" and found["devices"] == {"cpu": found["device_count"]}
    assert found["process_count"] == 1 and found["command"]
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy"):
        assert found["versions"][name], name
    assert "XLA_FLAGS" in found["variables"]
    assert str(Path.home()) not in json.dumps(found) or len(str(Path.home())) == 1


def test_a_resumed_run_keeps_what_was_written_before(tmp_path):
    path = tmp_path / "environment.json"
    write_environment(path)
    write_environment(path)
    write_environment(path)
    found = json.loads(path.read_text())
    assert len(found["earlier"]) == 2 and "earlier" not in found["earlier"][0]


def test_git_is_optional(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None

    def no_git(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_state(Path(module.__file__).parent) is None


def test_the_commit_and_changes_are_seen(tmp_path):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        (tmp_path / "a.py").write_text("1\n")
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["changed"] is False
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": clean["commit"], "changed": True}


def test_the_home_directory_is_not_told(monkeypatch):
    home = "/" + "home/ada"
    monkeypatch.setenv("HOME", home)
    assert without_home(f"--output_dir={home}/runs") == "--output_dir=~/runs"


def test_more_is_written_beside(tmp_path):
    """What held the programs of a policy, and how the attacks on it ended."""
    record = {"backend": "namespaces", "attacks": {"spins": "contained"}}
    write_environment(tmp_path / "environment.json", tools={"rl": record})
    assert json.loads((tmp_path / "environment.json").read_text())["tools"] == {"rl": record}
    assert sandbox_in_words({"rl": record, "evaluation": record}) == "namespaces, 1 attacks and controls passed"
    assert sandbox_in_words({"rl": {"backend": "unsafe"}}) == "unsafe, not tried"
    assert sandbox_in_words({}) == ""
