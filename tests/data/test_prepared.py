"""Data sets through TFDS and through the package `datasets`."""

import json
import subprocess
import sys
import types

import pytest

from grpo_jax.data.rows import Fields, RowError
from grpo_jax.data.sources import hf, jsonl, tfds

ROWS = [{"question": f"{i}+0=?", "answer": f"It is <<{i}+0={i}>>{i}.\n#### {i}"} for i in range(30)]


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for split, rows in (("train", ROWS[:20]), ("test", ROWS[20:])):
        write(folder / f"{split}.jsonl", rows)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(data_dir, **settings):
    return tfds.build(tfds.Config(data_dir=str(data_dir), **settings), 0)


def test_local_gsm8k_is_prepared_once_and_then_read_from_data_dir(manual, tmp_path, capsys):
    first = gsm8k(tmp_path / "tfds", manual_dir=str(manual))
    assert {p.question for p in first} == {row["question"] for row in ROWS[:20]}
    again = gsm8k(tmp_path / "tfds", manual_dir=str(manual))
    without = gsm8k(tmp_path / "tfds")
    assert list(first) == list(again) == list(without)
    assert first[0].solution.endswith(f"So the answer is $\\boxed{{{first[0].answer}}}$.")
    assert "<<" not in first[0].solution and first[0].id == "gsm8k/train:0"
    assert len(gsm8k(tmp_path / "tfds", split="test")) == 10
    assert len(gsm8k(tmp_path / "tfds", split="train[:25%]")) == 5
    assert capsys.readouterr().out == ""


def test_no_tensorflow_is_imported(manual, tmp_path):
    code = (
        "import sys; from grpo_jax.data.sources import tfds;"
        "tfds.build(tfds.Config(data_dir=sys.argv[1], manual_dir=sys.argv[2]), 0);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "d"), str(manual)]).returncode == 0


def test_changed_manual_files_are_noticed(manual, tmp_path):
    gsm8k(tmp_path / "tfds", manual_dir=str(manual))
    write(manual / "test.jsonl", ROWS[20:-1])
    with pytest.raises(RowError, match=r"was prepared from other files than those in .*files; remove it"):
        gsm8k(tmp_path / "tfds", manual_dir=str(manual))


def test_a_broken_manual_file_is_named_by_line_and_leaves_nothing_behind(manual, tmp_path):
    write(manual / "train.jsonl", [*ROWS[:3], {"question": "q", "answer": "no mark"}])
    with pytest.raises(RowError, match=r"train.jsonl:4: expected \{question, answer: 'rationale #### 18'\}"):
        gsm8k(tmp_path / "tfds", manual_dir=str(manual))
    write(manual / "train.jsonl", ROWS[:20])
    assert len(gsm8k(tmp_path / "tfds", manual_dir=str(manual))) == 20


def test_what_tfds_cannot_give(manual, tmp_path):
    with pytest.raises(RowError, match=r"tfds gsm8k: nothing is prepared in .*gsm8k/1.0.0"):
        gsm8k(tmp_path / "none")
    with pytest.raises(RowError, match=r"tfds no_such_set: Dataset no_such_set not found"):
        gsm8k(tmp_path / "none", name="no_such_set")
    with pytest.raises(RowError, match=r"source.manual_dir: .* has no train.jsonl or test.jsonl; give the directory"):
        gsm8k(tmp_path / "none", manual_dir=str(tmp_path))
    with pytest.raises(RowError, match=r"source.manual_dir: .*/nowhere does not exist; give the directory"):
        gsm8k(tmp_path / "none", manual_dir=str(tmp_path / "nowhere"))
    with pytest.raises(RowError, match=r"tfds math_qa: source.manual_dir is for gsm8k only"):
        gsm8k(tmp_path / "none", name="math_qa", manual_dir=str(manual))
    gsm8k(tmp_path / "tfds", manual_dir=str(manual))
    with pytest.raises(RowError, match=r"split 'valid': .*\(splits: test, train\)"):
        gsm8k(tmp_path / "tfds", split="valid")


def test_another_builder_by_name(tmp_path):
    code = """
import sys, numpy as np, tensorflow_datasets as tfds
class OwnSums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    def _info(self):
        turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        features = {"messages": tfds.features.Sequence(turn), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(4):
            yield i, {"messages": [{"role": "user", "content": f"{i}+1= é"}], "label": i + 1}
OwnSums(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    problems = gsm8k(tmp_path, name="own_sums", fields=Fields(answer="label"))
    found = {(p.messages[0]["content"], p.answer) for p in problems}
    assert found == {(f"{i}+1= é", str(i + 1)) for i in range(4)}


def test_gsm8k_through_tfds_equals_the_file(shared, tmp_path):
    path = shared / "data" / "gsm8k"
    one = gsm8k(tmp_path, manual_dir=str(path), split="test")
    other = jsonl.build(jsonl.Config(path=str(path / "test.jsonl")), 0)
    key = lambda p: (p.question, p.answer, p.solution)  # noqa: E731
    assert sorted(map(key, one)) == sorted(map(key, other))


def test_without_the_package_datasets_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RowError, match=r"'openai/gsm8k' needs the package datasets: python -m pip"):
        hf.build(hf.Config(path="openai/gsm8k", name="main"), 0)


def test_hub_rows_and_faults(monkeypatch, tmp_path):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if args[0] == "gone":
            raise FileNotFoundError("Dataset 'gone' doesn't exist\nmore lines")
        return [*ROWS, {"question": "q", "answer": None}]

    fake = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=lambda path: ROWS[:2])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    problems = hf.build(hf.Config(path="openai/gsm8k", name="main", split="test", limit=30), 0)
    assert len(problems) == 30 and problems[3].answer == "3" and problems[3].id == "openai/gsm8k/test:3"
    assert calls == [(("openai/gsm8k", "main"), {"split": "test", "revision": None})]
    with pytest.raises(RowError, match=r"^openai/gsm8k/train:30: field 'answer': expected text"):
        hf.build(hf.Config(path="openai/gsm8k"), 0)
    with pytest.raises(RowError, match=r"source hf: 'gone', split 'train': Dataset 'gone' doesn't"):
        hf.build(hf.Config(path="gone"), 0)
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(hf.build(hf.Config(path=str(tmp_path)), 0)) == 2


def test_a_local_data_set_through_the_real_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", ROWS)
    data = datasets.load_dataset("json", data_files=str(tmp_path / "train.jsonl"), split="train")
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "dict"))
    for place in (tmp_path, tmp_path / "saved", tmp_path / "dict"):
        problems = hf.build(hf.Config(path=str(place)), 0)
        assert len(problems) == 30 and problems[3].answer == "3"
