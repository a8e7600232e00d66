"""What a measurement leaves."""

import json
from xml.etree import ElementTree

import pytest

from grpo_jax.benchmark import drawing, results
from grpo_jax.benchmark.alternate import Measured, Step
from grpo_jax.benchmark.compare import Request, check, check_settings, peer_settings
from grpo_jax.benchmark.curves import AXES, Point, exponent, law_of
from grpo_jax.benchmark.workloads import S
from grpo_jax.configure import ConfigError

MACHINE = {"matmul": 2e11, "read": 2e10, "decode_mlp": 5e10}


def measured():
    ours = {"reward": 0.01, "sample": 0.9, "reference": 0.6, "train": 1.4}  # told by the loop, as the devices had them
    peer = {"prefill": 0.5, "sample": 3.0, "reference": 1.0}
    steps = [Step("ours", r, 3.0, ours, 8192) for r in range(2)] + [Step("peer", r, 9.0, peer, 8192) for r in range(2)]
    ready = {"system": "x 1", "devices": "cpu", "startup_seconds": 2.0, "first_seconds": 10.0}
    programs = {"prefill": 0.1, "generate": 0.8, "reference": 0.5, "update": 1.5}
    finish = {"ours": {"peak_memory": 1e9, "programs": programs}, "peer": {"peak_memory": 3e9}}
    return Measured({"ours": ready, "peer": ready}, steps, finish)


def test_summaries():
    ours, peer = results.summarize(S, measured(), MACHINE)
    assert (ours["times_ours"], peer["times_ours"]) == (1.0, 3.0)
    assert ours["phases"]["reference"] == pytest.approx(0.6)  # as in the loop, whatever its programs take alone
    assert ours["phases"]["train"] == pytest.approx(1.4)
    assert ours["phases"]["other"] == pytest.approx(0.1)
    assert ours["phases"]["decode"] == pytest.approx(0.8)
    assert peer["phases"]["train"] == pytest.approx(5.0)  # what is left of the step
    assert peer["phases"]["decode"] == pytest.approx(2.5)
    assert (ours["compile_seconds"], peer["compile_seconds"]) == (pytest.approx(6.1), pytest.approx(1.0))
    assert ours["tokens_per_second"] == {"sample": pytest.approx(8192 / 0.9), "step": pytest.approx(8192 / 3)}
    forward = ours["floor_seconds"]["reference"]
    assert ours["share_of_floor"]["update"] == pytest.approx(3 * forward / 1.4)
    assert ours["flops_utilisation"] == pytest.approx(5 * forward / 3.0)
    assert 0 < ours["decode_bandwidth_share"] < ours["decode_operations_share"] < 1


def test_phases_of_fused_steps_are_those_of_the_programs_alone():
    """The loop cannot tell them apart."""
    phases = results.phase_seconds({"reward": 0.01}, measured().finish["ours"]["programs"], 3.0)
    assert phases == pytest.approx(
        {"prefill": 0.1, "decode": 0.7, "sample": 0.8, "reference": 0.5, "train": 1.5, "other": 0.2}
    )


def test_a_share_that_cannot_be_is_said(capsys):
    fast = MACHINE | {"matmul": 1e9}
    results.show(S, fast, results.summarize(S, measured(), fast))
    assert "above 100 %" in capsys.readouterr().out
    results.show(S, MACHINE, results.summarize(S, measured(), MACHINE | {"matmul": 1e13}))
    assert "above 100 %" not in capsys.readouterr().out


def test_files_and_table(tmp_path, capsys):
    summaries = results.summarize(S, measured(), MACHINE)
    results.write_results(tmp_path, S, measured(), MACHINE, summaries)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["machine", *["step"] * 4, *["summary"] * 2]
    ElementTree.fromstring((tmp_path / "phases.svg").read_text())
    with pytest.raises(FileExistsError):
        results.write_results(tmp_path, S, measured(), MACHINE, summaries)
    results.show(S, MACHINE, summaries)
    printed = capsys.readouterr().out
    assert "peer" in printed and "3.00" in printed


def test_a_directory_is_never_used_twice(tmp_path):
    made = [results.new_directory(tmp_path / "out", "S") for _ in range(5)]
    assert len(set(made)) == 5
    assert all(path.is_dir() for path in made)


def test_bars_are_as_long_as_their_numbers():
    picture = ElementTree.fromstring(drawing.bars("t", {"a & b": {"x": 2.0, "y": 2.0}, "c": {"x": 1.0, "y": 1.0}}, "s"))
    wide = [
        float(rect.get("width")) for rect in picture.iter() if rect.tag.endswith("rect") and rect.get("height") == "20"
    ]
    assert wide == [280.0, 280.0, 140.0, 140.0]


def test_curves_lie_on_logarithmic_axes():
    line = drawing.Curve("n", [(1, 1), (10, 10), (100, 100)])
    picture = ElementTree.fromstring(drawing.curves([drawing.Panel("t", "x", "y", [line])]))
    (path,) = (e.get("points") for e in picture.iter() if e.tag.endswith("polyline"))
    x = [float(point.split(",")[0]) for point in path.split()]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)


def test_exponents():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def test_what_departs_from_its_law_is_named():
    axis = AXES[0]
    names = ("sample", "reference", "update")
    follow = [
        {f"{n}_{what}": float(v) for n in names for what in ("seconds", "bytes", "operations", "arrays")}
        for v in axis.values
    ]
    assert law_of(axis, follow, 4)["departs"] == []
    bent = [p | {"update_seconds": p["update_seconds"] ** 2, "update_bytes": 1.0} for p in follow]
    found = law_of(axis, bent, 4)
    assert (found["departs"], found["why"]) == (["update time", "memory"], "not known")
    (width,) = (axis for axis in AXES if axis.name == "width")
    slow = [p | {"update_seconds": p["update_seconds"] ** 2} for p in follow]
    assert law_of(width, slow, 4)["why"].startswith("small matrices")
    assert law_of(width, [p | {"update_bytes": 1.0} for p in follow], 4)["why"] == "not known"


def test_every_axis_changes_one_size():
    for axis in AXES:
        points = [axis.point(value) for value in axis.values]
        assert len(set(points)) == len(axis.values)
        assert all(isinstance(point, Point) for point in points)


def test_peers_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such peer; choose of trl, tunix"):
        check(Request("S", peers=("verl",)))
    with pytest.raises(ConfigError, match=r"make\.py trl"):
        check(Request("S", peers=("trl",), environments={"trl": tmp_path}))


def test_settings_of_peers():
    assert peer_settings(["trl.batch=16", "trl.name=x"]) == {"trl": {"batch": 16, "name": "x"}}
    with pytest.raises(ConfigError, match=r"choose of batch, threads"):
        check_settings(Request("S", peers=("trl",)), "trl", {"batc": 16})
    with pytest.raises(ConfigError, match=r"batch=24: a step has 64 completions"):
        check_settings(Request("S", peers=("trl",)), "trl", {"batch": 24})
    with pytest.raises(ConfigError, match=r"a step has 2 prompts"):
        check_settings(Request("L", peers=("tunix",)), "tunix", {"batch": 16})
    with pytest.raises(ConfigError, match=r"trl is not measured"):
        check_settings(Request("S"), "trl", {"batch": 16})
    check_settings(Request("L", peers=("trl",)), "trl", {"batch": 16})
    with pytest.raises(ConfigError, match="write PEER"):
        peer_settings(["batch=16"])
