"""metrics.jsonl: strict JSON, whole after a crash, the same after a resume; trackers never stop a run."""

import json
import types
import warnings

import ml_dtypes
import numpy as np
import pytest

from grpo_jax.reporting import metrics, trackers
from grpo_jax.reporting.metrics import MetricsWriter, read_metrics


def strict(line: str) -> dict:
    """The object of a line; fails on NaN and infinities, which json.loads would take."""

    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    return json.loads(line, parse_constant=refuse)


def without_time(path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "time"} for record in read_metrics(path)]


def test_lines_are_strict_json_and_say_what_was_not_finite(tmp_path):
    with MetricsWriter(tmp_path / "rl") as writer:
        writer.write(3, {"reward": 0.5, "kl": float("nan"), "ratio/max": np.float32("-inf")})
    [line] = (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()
    record = strict(line)
    assert record["step"] == 3 and record["reward"] == 0.5 and record["time"] > 1e9
    assert record["kl"] is None and record["ratio/max"] is None
    assert record["nonfinite"] == {"kl": "nan", "ratio/max": "-inf"}


def test_numbers_of_every_kind_are_taken(tmp_path):
    import jax.numpy as jnp

    values = {"a": jnp.float32(1.5), "b": np.int64(7), "c": ml_dtypes.bfloat16(0.25), "d": True, "e": np.ones((1, 1))}
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, values)
    [record] = read_metrics(tmp_path / "metrics.jsonl")
    assert [record[key] for key in "abcde"] == [1.5, 7, 0.25, 1, 1.0]
    assert isinstance(record["b"], int)


@pytest.mark.parametrize(
    ("key", "value", "says"), [("x", np.ones(3), r"\(3,\)"), ("x", "fast", "'?x'?"), ("step", 1.0, "'step'")]
)
def test_what_is_no_number_is_refused_by_name(tmp_path, key, value, says):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match=says):
        writer.write(0, {key: value})


def test_a_resumed_run_has_the_lines_of_an_unbroken_one(tmp_path):
    numbers = {step: {"reward": step / 7, "kl": float("nan") if step == 5 else 0.1} for step in range(1, 11)}
    with MetricsWriter(tmp_path / "unbroken") as writer:
        for step in numbers:
            writer.write(step, numbers[step])
    with MetricsWriter(tmp_path / "broken") as writer:
        for step in range(1, 9):
            writer.write(step, numbers[step])
    path = tmp_path / "broken" / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 9, "rew')  # the crash cut this line
    with MetricsWriter(tmp_path / "broken") as writer:
        writer.truncate_after(6)
        for step in range(7, 11):
            writer.write(step, numbers[step])
    assert without_time(path) == without_time(tmp_path / "unbroken" / "metrics.jsonl")
    assert [name.name for name in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_line_cut_by_a_crash_never_joins_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step":1,"time":0}\n{"st')
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {"loss": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path):
    text = '{"step":1,"time":0}\nnot json\n{"step":3,"time":0}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="line 2"):
        writer.truncate_after(1)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_truncating_before_the_first_line_is_no_error(tmp_path):
    with MetricsWriter(tmp_path / "new") as writer:
        writer.truncate_after(0)
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "is_primary", lambda: False)
    with MetricsWriter(tmp_path / "rl", report_to=("tensorboard",)) as writer:
        writer.write(1, {"loss": 1.0})
        writer.truncate_after(0)
    assert not (tmp_path / "rl").exists()


def scalars(directory) -> list[tuple[int, str, float]]:
    """The numbers in TensorBoard's event files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with MetricsWriter(tmp_path, report_to=("tensorboard",)) as writer:
        writer.write(1, {"reward": 0.5})
        writer.write(2, {"reward": 0.75})
    assert scalars(tmp_path / "tensorboard") == [(1, "reward", 0.5), (2, "reward", 0.75)]


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(trackers.TrackerError, match=r"'mlflow'.*tensorboard, wandb"):
        MetricsWriter(tmp_path, report_to=("mlflow",))


def test_a_missing_wandb_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(trackers.TrackerError, match="python -m pip install wandb"):
        MetricsWriter(tmp_path, report_to=("wandb",))


class FakeWandb(types.ModuleType):
    """Records what wandb is asked; logging fails, as without a network."""

    def __init__(self):
        super().__init__("wandb")
        self.asked = []

    def init(self, **options):
        self.asked.append(options)
        return self

    def log(self, numbers, step):
        raise ConnectionError("no network")

    def finish(self):
        raise ConnectionError("no network")


def test_a_failing_tracker_warns_once_and_the_run_goes_on(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    monkeypatch.setattr(trackers, "require", lambda module, name: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for steps in ((1, 2), (3, 4)):
            with MetricsWriter(tmp_path, ("wandb",), "tiny", {"seed": 1}) as writer:
                for step in steps:
                    writer.write(step, {"loss": 0.0})
    assert len(caught) == 2 and "no network" in str(caught[0].message)  # one of each writer
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    first, second = fake.asked
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["name"] == "tiny"


def test_a_wandb_that_cannot_start_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    fake = FakeWandb()
    fake.init = lambda **options: (_ for _ in ()).throw(RuntimeError("not logged in"))
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    monkeypatch.setattr(trackers, "require", lambda module, name: None)
    with pytest.raises(trackers.TrackerError, match=r"not logged in.*WANDB_MODE=offline"):
        MetricsWriter(tmp_path, report_to=("wandb",))
