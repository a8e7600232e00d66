// One chart: curves or a stack of areas over the steps of a stage, with a reading under the pointer.

const HEIGHT = 176;
const EDGE = { top: 8, right: 8, bottom: 22 };

// Exponential mean with the start corrected, as TensorBoard draws it; gaps stay gaps, a few points stay as they are.
function smooth(values, weight) {
  if (!weight || values.filter((value) => value !== null).length < 30) return values;
  let mean = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

class Chart {
  constructor(view, description) {
    this.view = view;
    this.description = description;
    this.log = false;
    this.id = `clip${Chart.count = (Chart.count || 0) + 1}`;
    this.series = description.series.map(({ key, label }, i) => ({ key, label, colour: `s${i % 7}`, ...view.stage.series[key] }));
    this.single = this.series.length === 1;
    this.svg = shape('svg', { class: 'plot', role: 'img', tabindex: 0 });
    this.legend = make('div', { class: `legend${this.single ? ' single' : ''}` });
    this.element = make('article', { class: `chart${description.verdict ? ' outside' : ''}` },
      make('header', null, make('h4', null, description.title), this.logButton(), this.at = make('span', { class: 'at' })),
      make('p', { class: 'meaning' }, description.meaning || `The metric ${this.series[0].key}.`),
      this.legend,
      this.svg,
      make('p', { class: 'healthy' }, `${description.verdict ? 'Outside the usual range. ' : ''}${description.healthy}`));
    this.listen();
  }

  logButton() {
    const positive = this.series.every((one) => one.mean.every((value) => value === null || value > 0));
    if (!positive || this.description.stacked) return null;
    const button = make('button', { class: 'plain', type: 'button', 'aria-pressed': 'false', title: 'Logarithmic scale',
      'aria-label': `Logarithmic scale: ${this.description.title}` }, 'log');
    button.addEventListener('click', () => {
      this.log = !this.log;
      button.setAttribute('aria-pressed', String(this.log));
      this.draw();
    });
    return button;
  }

  // What is seen: indices from `view.first` to `view.last`, values smoothed, and the scales of both axes.
  measure() {
    const { view } = this;
    const inside = (values) => (values || []).slice(view.first, view.last + 1);
    for (const one of this.series) {
      const values = this.description.stacked ? one.mean.map((value) => value ?? 0) : one.mean;
      one.line = this.description.exact ? values : smooth(values, view.smoothing);
    }
    let seen;
    if (this.description.stacked) {
      const sums = view.stage.steps.map((_, i) => this.series.reduce((sum, one) => sum + one.line[i], 0));
      seen = [...inside(sums), 0];
    } else {
      seen = this.series.flatMap((one) => [one.mean, one.line, one.low, one.high].flatMap(inside)).filter((value) => value !== null);
    }
    const [low, high] = extent(seen);
    const cap = this.log ? null : capOf(seen);
    this.cut = cap === null ? null : high;
    this.scale(low, cap ?? high);
  }

  scale(low, high) {
    if (!Number.isFinite(low)) [low, high] = [0, 1];
    if (this.log && low > 0) {
      if (low === high) [low, high] = [low / 2, high * 2];
      this.ticks = logTicks(low, high);
      const [a, b] = [Math.log(low), Math.log(high)];
      const pad = (b - a) * 0.04;
      this.y = (value) => EDGE.top + (1 - (Math.log(value) - a + pad) / (b - a + 2 * pad)) * this.tall();
    } else {
      if (low >= 0 && low < 0.5 * high) low = 0;
      if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
      const pad = (high - low) * 0.05;
      const bottom = low === 0 ? 0 : low - pad;
      this.ticks = ticks(bottom, high + pad, 4);
      this.y = (value) => EDGE.top + (1 - (value - bottom) / (high + pad - bottom)) * this.tall();
    }
    this.labels = this.ticks.map(brief);
    this.left = 12 + 6.6 * Math.max(2, ...this.labels.map((label) => label.length));
    const { steps } = this.view.stage;
    const [first, last] = [steps[this.view.first], steps[this.view.last]];
    this.wide = Math.max(this.svg.clientWidth, 120) - this.left - EDGE.right;
    this.x = (step) => this.left + (last > first ? (step - first) / (last - first) : 0.5) * this.wide;
  }

  tall() { return HEIGHT - EDGE.top - EDGE.bottom; }

  draw() {
    this.measure();
    const clip = shape('clipPath', { id: this.id }, shape('rect', { x: this.left - 5, y: this.cut === null ? -5 : EDGE.top, width: this.wide + 10, height: HEIGHT + 5 }));
    const drawn = shape('g', { 'clip-path': `url(#${this.id})` }, ...(this.description.stacked ? this.areas() : this.curves()));
    this.svg.replaceChildren(clip, ...this.usual(), ...this.axes(), drawn, ...this.breaks(), ...this.cutOff());
    this.mark = this.svg.appendChild(shape('g'));
    this.point(this.view.cursor);
    this.svg.setAttribute('aria-label', this.summary());
  }

  axes() {
    const { steps } = this.view.stage;
    const [first, last] = [steps[this.view.first], steps[this.view.last]];
    const right = this.left + this.wide;
    const bottom = HEIGHT - EDGE.bottom;
    const lines = this.ticks.map((tick) => shape('line', { class: 'grid', x1: this.left, x2: right, y1: this.y(tick), y2: this.y(tick) }));
    const names = this.ticks.map((tick, i) => shape('text', { class: 'tick', x: this.left - 7, y: this.y(tick) + 4, 'text-anchor': 'end' }, this.labels[i]));
    const places = last > first ? ticks(first, last, clamp(Math.floor(this.wide / 70), 2, 6)).filter(Number.isInteger) : [first];
    const under = places.map((step) => shape('text', { class: 'tick', x: this.x(step), y: HEIGHT - 6, 'text-anchor': 'middle' }, brief(step)));
    return [...lines, ...names, shape('line', { class: 'axis', x1: this.left, x2: right, y1: bottom, y2: bottom }), ...under];
  }

  // The usual range, as far as it lies within the picture.
  usual() {
    if (!this.description.usual) return [];
    const [, low, high] = this.description.usual;
    const [top, bottom] = [EDGE.top, HEIGHT - EDGE.bottom];
    const at = (value, otherwise) => (value === null || (this.log && value <= 0) ? otherwise : clamp(this.y(value), top, bottom));
    const [y1, y2] = [at(high, top), at(low, bottom)];
    const edges = [y1, y2].filter((y) => y > top + 1 && y < bottom - 1);
    return [shape('rect', { class: 'usual', x: this.left, y: y1, width: this.wide, height: Math.max(0, y2 - y1) }),
      ...edges.map((y) => shape('line', { class: 'usual-edge', x1: this.left, x2: this.left + this.wide, y1: y, y2: y }))];
  }

  // What lies above the picture because it would flatten all the rest.
  cutOff() {
    if (this.cut === null) return [];
    return [shape('text', { class: 'tick', x: this.left + this.wide, y: EDGE.top + 10, 'text-anchor': 'end' }, `cut off, up to ${show(this.cut)}`)];
  }

  points(values) {
    const { steps } = this.view.stage;
    const found = [];
    for (let i = this.view.first; i <= this.view.last; i += 1) {
      const value = values[i];
      if (value !== null && value !== undefined && !(this.log && value <= 0)) found.push([this.x(steps[i]), this.y(value)]);
    }
    return found;
  }

  curves() {
    const path = (points) => points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(1)} ${y.toFixed(1)}`).join('');
    return this.series.flatMap((one) => {
      const drawn = [];
      if (one.low && one.high) {
        const outline = [...this.points(one.high), ...this.points(one.low).reverse()];
        if (outline.length) drawn.push(shape('path', { class: `spread ${one.colour}`, d: `${path(outline)}Z` }));
      }
      const points = this.points(one.line);
      if (one.line !== one.mean) drawn.push(shape('path', { class: `curve raw ${one.colour}`, d: path(this.points(one.mean)) }));
      if (points.length > 1) drawn.push(shape('path', { class: `curve ${one.colour}`, d: path(points) }));
      if (points.length <= 12) drawn.push(...points.map(([cx, cy]) => shape('circle', { class: `point ${one.colour}`, cx, cy, r: 3.5 })));
      return drawn;
    });
  }

  areas() {
    const { steps } = this.view.stage;
    const indices = Array.from({ length: this.view.last - this.view.first + 1 }, (_, i) => this.view.first + i);
    let floor = indices.map(() => 0);
    return this.series.map((one) => {
      const roof = floor.map((base, n) => base + one.line[indices[n]]);
      const corner = (heights) => indices.map((i, n) => `${this.x(steps[i]).toFixed(1)} ${this.y(heights[n]).toFixed(1)}`);
      const d = `M${corner(roof).join('L')}L${corner(floor).reverse().join('L')}Z`;
      floor = roof;
      return shape('path', { class: `area ${one.colour}`, d });
    });
  }

  // A cross at the top for every value that was not finite.
  breaks() {
    const { steps } = this.view.stage;
    const [first, last] = [steps[this.view.first], steps[this.view.last]];
    return this.series.flatMap((one) => (one.broken || []).filter((step) => step >= first && step <= last).map((step) => {
      const x = this.x(step);
      return shape('path', { class: 'broken', d: `M${x - 3} 3l6 6m0 -6l-6 6` }, shape('title', null, `${one.key} was not finite at step ${step}`));
    }));
  }

  // The reading at an index, or of the last value where there is no pointer.
  point(index) {
    const { steps } = this.view.stage;
    const shown = index !== null && index >= this.view.first && index <= this.view.last;
    this.mark.replaceChildren();
    if (shown) {
      const x = this.x(steps[index]);
      this.mark.append(shape('line', { class: 'cross', x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      if (!this.description.stacked) {
        for (const one of this.series) {
          const value = one.line[index];
          if (value === null || (this.log && value <= 0)) continue;
          this.mark.append(shape('circle', { class: `point ${one.colour}`, cx: x, cy: this.y(value), r: 4 }));
        }
      }
    }
    const entries = this.series.map((one) => {
      const at = shown ? index : lastIndex(one.mean, this.view.first, this.view.last);
      const name = this.single ? [] : [make('i', { class: one.colour }), make('span', { class: 'label' }, one.label)];
      return make('span', { class: 'entry' }, ...name, make('span', { class: 'value' }, show(one.mean[at])));
    });
    this.legend.replaceChildren(...entries);
    this.at.textContent = `step ${steps[shown ? index : this.view.last]}`;
  }

  summary() {
    const { steps } = this.view.stage;
    const parts = this.series.map((one) => {
      const [a, b] = [firstIndex(one.mean, this.view.first, this.view.last), lastIndex(one.mean, this.view.first, this.view.last)];
      return `${one.label} ${show(one.mean[a])} at step ${steps[a]}, ${show(one.mean[b])} at step ${steps[b]}`;
    });
    return `${this.description.title}: ${parts.join('; ')}. Arrow keys read the values.`;
  }

  // The index of the step nearest to a place of the pointer.
  nearest(event) {
    const { steps } = this.view.stage;
    const place = event.clientX - this.svg.getBoundingClientRect().left;
    let best = this.view.first;
    for (let i = this.view.first; i <= this.view.last; i += 1) {
      if (Math.abs(this.x(steps[i]) - place) < Math.abs(this.x(steps[best]) - place)) best = i;
    }
    return best;
  }

  listen() {
    let from = null;
    let box = null;
    const stop = () => { from = null; if (box) box.remove(); box = null; };
    this.svg.addEventListener('pointermove', (event) => {
      const index = this.nearest(event);
      this.view.pointAt(index);
      if (from === null) return;
      const { steps } = this.view.stage;
      const [a, b] = [this.x(steps[Math.min(from, index)]), this.x(steps[Math.max(from, index)])];
      if (!box) box = this.svg.appendChild(shape('rect', { class: 'selected', y: EDGE.top, height: this.tall() }));
      box.setAttribute('x', a);
      box.setAttribute('width', b - a);
    });
    this.svg.addEventListener('pointerdown', (event) => {
      if (event.pointerType !== 'mouse' || event.button !== 0) return;
      from = this.nearest(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener('pointerup', (event) => {
      const [a, b] = [from, this.nearest(event)];
      stop();
      if (a !== null && Math.abs(a - b) > 1) this.view.setRange(Math.min(a, b), Math.max(a, b));
    });
    this.svg.addEventListener('pointercancel', stop);
    this.svg.addEventListener('pointerleave', () => { if (from === null) this.view.pointAt(null); });
    this.svg.addEventListener('dblclick', () => this.view.setRange(0, this.view.stage.steps.length - 1));
    this.svg.addEventListener('blur', () => this.view.pointAt(null));
    this.svg.addEventListener('keydown', (event) => {
      const jump = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === 'Escape') this.view.pointAt(null);
      if (jump === undefined) return;
      event.preventDefault();
      const now = this.view.cursor ?? this.view.last;
      this.view.pointAt(clamp(now + jump, this.view.first, this.view.last));
    });
  }
}

function extent(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

// Where to cut the picture if one value in fifty is far above all others; null where none is.
function capOf(values) {
  if (values.length < 40) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const usual = sorted[Math.floor(0.975 * (sorted.length - 1))];
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  return low >= 0 && usual > 0 && high > 4 * usual ? 1.5 * usual : null;
}

function lastIndex(values, first, last) {
  for (let i = last; i >= first; i -= 1) if (values[i] !== null) return i;
  return last;
}

function firstIndex(values, first, last) {
  for (let i = first; i <= last; i += 1) if (values[i] !== null) return i;
  return first;
}
