// The section of curves: one stage at a time, with smoothing and a range of steps for all its charts.

class Curves {
  constructor(root, stages) {
    this.stages = stages;
    this.smoothing = 0.6;
    this.cursor = null;
    this.body = make('div');
    this.buttons = stages.map((stage) => make('button', { type: 'button', onclick: () => this.open(stage) }, stage.name));
    this.inputs = ['First step', 'Last step'].map((name) => make('input', { type: 'number', 'aria-label': name, onchange: () => this.readRange() }));
    this.all = make('button', { type: 'button', onclick: () => this.setRange(0, this.stage.steps.length - 1) }, 'All steps');
    root.append(this.tools(), this.body);
    this.open(stages.find((stage) => stage.name === 'rl') || stages[stages.length - 1]);
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      this.draw();
    }).observe(this.body);
  }

  tools() {
    const output = make('output', null, this.smoothing.toFixed(2));
    const slider = make('input', { type: 'range', min: 0, max: 0.98, step: 0.02, value: this.smoothing, 'aria-label': 'Smoothing' });
    slider.addEventListener('input', () => {
      this.smoothing = Number(slider.value);
      output.textContent = this.smoothing.toFixed(2);
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.draw());
    });
    return make('div', { class: 'tools' },
      make('div', { class: 'choice', role: 'group', 'aria-label': 'Stage' }, ...this.buttons),
      make('label', null, 'Smoothing', slider, output),
      make('span', { class: 'field' }, 'Steps', this.inputs[0], 'to', this.inputs[1], this.all));
  }

  open(stage) {
    this.stage = stage;
    this.cursor = null;
    this.buttons.forEach((button, i) => button.setAttribute('aria-pressed', String(this.stages[i] === stage)));
    this.charts = [];
    const sections = stage.sections.flatMap((section) => {
      const charts = section.charts.map((description) => new Chart(this, description));
      this.charts.push(...charts);
      return [make('h3', null, section.title), make('div', { class: 'charts' }, ...charts.map((chart) => chart.element))];
    });
    this.body.replaceChildren(...this.remarks(), ...sections);
    this.setRange(0, stage.steps.length - 1);
  }

  remarks() {
    const { stage } = this;
    const found = [];
    const verdicts = stage.sections.flatMap((section) => section.charts.map((chart) => chart.verdict)).filter(Boolean);
    if (verdicts.length) {
      found.push(make('div', { class: 'verdicts', role: 'note' }, 'Worth a look, by the last tenth of the steps:',
        make('ul', null, ...verdicts.map((verdict) => make('li', null, verdict)))));
    }
    if (stage.every > 1) {
      found.push(make('p', { class: 'lead' }, `${stage.lines} lines of metrics: a point is the mean of about ${stage.every}, the shade around the curve is their range.`));
    }
    return found;
  }

  setRange(first, last) {
    this.first = clamp(first, 0, this.stage.steps.length - 1);
    this.last = clamp(last, this.first, this.stage.steps.length - 1);
    const { steps } = this.stage;
    this.inputs[0].value = steps[this.first];
    this.inputs[1].value = steps[this.last];
    this.all.disabled = this.first === 0 && this.last === steps.length - 1;
    this.draw();
  }

  readRange() {
    const { steps } = this.stage;
    const [from, to] = this.inputs.map((input) => (input.value === '' ? NaN : Number(input.value)));
    const first = Number.isNaN(from) ? 0 : steps.findIndex((step) => step >= from);
    const after = Number.isNaN(to) ? -1 : steps.findIndex((step) => step > to);
    const last = after === -1 ? steps.length - 1 : after - 1;
    this.setRange(first === -1 ? steps.length - 1 : first, last);
  }

  draw() {
    for (const chart of this.charts) chart.draw();
  }

  // One cursor for all charts: what happened elsewhere at the same step.
  pointAt(index) {
    if (index === this.cursor) return;
    this.cursor = index;
    for (const chart of this.charts) chart.point(index);
  }
}
