"""The report in a real headless Chromium: no complaints, no network, and every control does what it says."""

import json

import pytest
from browser import Page, find_chromium
from synthetic_run import make_run

from grpo_jax.reporting.report import write_report
from grpo_jax.reporting.rollouts import write_rollouts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium here"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "words", words=True, rollout_files=6, groups=3))


@pytest.fixture(scope="module")
def page(report):
    with Page() as page:
        page.open(report)
        yield page


def text(page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def centre(page, selector: str) -> list[float]:
    return page.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        "const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_opens_without_complaint_and_fits_its_window(report, width, dark):
    with Page(width, 900, dark) as page:
        page.open(report)
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelectorAll('.chart').length") >= 20
        assert page.evaluate("document.querySelectorAll('.completion').length") == 16
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(250, 250, 247)") != dark


def test_hovering_reads_all_charts_at_one_step(page):
    x, y = centre(page, ".chart .plot")
    page.pointer("mouseMoved", x, y)
    steps = page.evaluate("[...document.querySelectorAll('.chart .at')].map(e => e.textContent)")
    assert len(set(steps)) == 1 and steps[0] != "step 200"
    assert page.evaluate("document.querySelectorAll('.cross').length") == len(steps)


def test_dragging_chooses_a_range_and_a_button_takes_it_back(page):
    x, y = centre(page, ".chart .plot")
    for kind, at in (("mousePressed", x - 50), ("mouseMoved", x + 50), ("mouseReleased", x + 50)):
        page.pointer(kind, at, y)
    first, last = page.evaluate("[...document.querySelectorAll('input[type=number]')].map(e => Number(e.value))")
    assert 1 < first < last < 200
    page.evaluate("[...document.querySelectorAll('#curves button')].find(b => b.textContent == 'All steps').click()")
    assert page.evaluate("document.querySelector('input[type=number]').value") == "1"


def test_arrow_keys_read_a_chart(page):
    page.pointer("mouseMoved", 2, 2)
    page.evaluate("document.querySelector('.chart .plot').focus()")
    page.key("ArrowLeft")
    assert text(page, ".chart .at") == "step 199"
    page.key("Home")
    assert text(page, ".chart .at") == "step 1"
    page.key("Escape")
    assert text(page, ".chart .at") == "step 200"


def test_smoothing_and_stage_change_the_curves(page):
    curve = "document.querySelector('.curve:not(.raw)').getAttribute('d')"
    before = page.evaluate(curve)
    page.evaluate(
        "(() => { const s = document.querySelector('#curves input[type=range]'); s.value = 0;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    page.settle()
    assert page.evaluate(curve) != before and page.evaluate("document.querySelectorAll('.raw').length") == 0
    page.evaluate("document.querySelector('.choice button').click()")
    assert "likelihood" in text(page, ".chart .meaning")
    page.evaluate("document.querySelectorAll('.choice button')[1].click()")
    assert page.complaints == []


def test_a_group_is_opened_and_its_tokens_are_read(page):
    page.evaluate("document.querySelectorAll('.groups button')[1].click()")
    assert page.evaluate("document.querySelectorAll('.groups button')[1].getAttribute('aria-current')") == "true"
    assert page.evaluate("location.hash") == "#rollouts/200/1"
    page.pointer("mouseMoved", *centre(page, ".tokens [data-t='2']"))
    tip = text(page, "#tip")
    for word in ("log-probability", "ratio to the reference", "trainer / sampler", "entropy"):
        assert word in tip, word
    page.evaluate("document.querySelector('.tokens').focus()")
    page.key("ArrowRight")
    page.key("ArrowRight")
    assert page.evaluate("document.querySelector('.here').dataset.t") == "1"
    page.key("Escape")
    assert page.evaluate("document.getElementById('tip').hidden") is True


def test_steps_filters_and_colours_of_rollouts(page):
    page.evaluate("document.querySelector('[aria-label=\"Earlier step\"]').click()")
    assert text(page, "#rollouts output") == "160"
    for value in ("mixed", "same", "all"):
        page.evaluate(
            "(() => { const s = document.querySelector('#rollouts .tools select');"
            f"s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()"
        )
    backgrounds = "[...document.querySelectorAll('.tokens [data-t]')].map(e => e.style.background).join()"
    seen = set()
    modes = page.evaluate("[...document.querySelectorAll('.colours option')].map(e => e.value)")
    assert modes == ["logprobs", "ratio", "trainer", "entropy", "none"]
    for mode in modes:
        page.evaluate(
            "(() => { const s = document.querySelector('.colours select');"
            f"s.value = '{mode}'; s.dispatchEvent(new Event('change')); }})()"
        )
        seen.add(page.evaluate(backgrounds))
    assert len(seen) >= 4 and page.complaints == []


def test_evil_text_is_shown_and_does_nothing(tmp_path):
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    run = make_run(tmp_path / "evil", steps=5, rollout_files=1, groups=1)
    item = {"text": evil, "tokens": [evil], "logprobs": [-1.0], "reward": 1.0, "advantage": 0.0}
    item |= {"rewards": {evil: 1.0}, "finished": True, "extracted": evil}
    group = {"step": 1, "problem_index": 0, "question": evil, "prompt": "p" + evil, "answer": evil}
    write_rollouts(run / "rl", 1, [group | {"completions": [item]}])
    (run / "config.yaml").write_text(evil)
    with Page() as page:
        page.open(write_report(run))
        assert page.evaluate("document.title") == "evil · grpo_jax"
        assert text(page, ".tokens") == evil and text(page, "#config pre") == evil
        assert text(page, ".problem .question") == evil and page.complaints == []


def test_a_link_opens_a_step_and_group(report):
    with Page() as page:
        page.open(report, "#rollouts/41/2")
        assert text(page, "#rollouts output") == "41"
        assert page.evaluate("document.querySelectorAll('.groups button')[2].getAttribute('aria-current')") == "true"
