// The browser of rollouts: choose a step and a group, see its completions from best to worst, token by token.

const COLOURS = {
  logprobs: { name: 'log-probability', low: 'certain', high: 'unlikely', needs: ['logprobs'] },
  ratio: { name: 'change from the reference', low: 'less likely now', high: 'more likely now', needs: ['logprobs', 'ref_logprobs'] },
  trainer: { name: 'trainer against sampler', low: 'less likely to the trainer', high: 'more likely to it', needs: ['trainer_gap'] },
  entropy: { name: 'entropy', low: 'decided', high: 'open', needs: ['entropy'] },
  none: { name: 'nothing', needs: [] },
};
const UNLIKELY = Math.log(0.1);

// The number that a token is coloured by, from -1 to 1; negative is hot (orange), positive cold (blue).
function tint(completion, t, mode) {
  const at = (name) => completion[name]?.[t] ?? null;
  const p = at('logprobs');
  if (mode === 'logprobs') return p === null ? 0 : -Math.sqrt(clamp(-p / 5, 0, 1));
  if (mode === 'entropy') return -Math.sqrt(clamp((at('entropy') ?? 0) / 3, 0, 1));
  if (mode === 'trainer') return clamp((at('trainer_gap') ?? 0) / 0.1, -1, 1);
  const reference = at('ref_logprobs');
  return mode === 'ratio' && p !== null && reference !== null ? clamp((p - reference) / 2, -1, 1) : 0;
}

const paint = (value) => (Math.abs(value) < 0.02 ? '' : `rgb(var(--${value < 0 ? 'hot' : 'cold'}) / ${(Math.abs(value) * 0.62).toFixed(3)})`);

// What is known about a token, as pairs of name and text.
function tokenFacts(completion, t) {
  const at = (name) => completion[name]?.[t] ?? null;
  const [p, reference, gap, entropy] = ['logprobs', 'ref_logprobs', 'trainer_gap', 'entropy'].map(at);
  if (p === null) return [['', 'not chosen by the policy']];
  const facts = [['log-probability', `${show(p)}  (${show(100 * Math.exp(p))} %)`]];
  if (reference !== null) facts.push(['of the reference', show(reference)], ['ratio to the reference', show(Math.exp(p - reference))]);
  if (gap !== null) facts.push(['of the trainer', show(p + gap)], ['trainer / sampler', Math.exp(gap).toFixed(4)]);
  if (entropy !== null) facts.push(['entropy', show(entropy)]);
  return facts;
}

const mixed = (group) => new Set(group.all_rewards.filter((reward) => reward !== null)).size > 1;
const average = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);

class Tip {
  constructor() {
    this.element = document.body.appendChild(make('div', { id: 'tip', role: 'tooltip', hidden: true }));
  }

  show(span, completion, t) {
    const visible = JSON.stringify(completion.tokens[t]).slice(1, -1) || '(part of a character)';
    this.element.replaceChildren(make('code', null, visible.replaceAll(' ', '·')),
      make('dl', null, ...tokenFacts(completion, t).flatMap(([name, value]) => [make('dt', null, name), make('dd', null, value)])));
    this.element.hidden = false;
    const token = span.getClientRects()[0] || span.getBoundingClientRect();
    const tip = this.element.getBoundingClientRect();
    const below = token.bottom + 8 + tip.height < innerHeight;
    this.element.style.left = `${clamp(token.left, 8, Math.max(8, innerWidth - tip.width - 8))}px`;
    this.element.style.top = `${below ? token.bottom + 8 : Math.max(8, token.top - tip.height - 8)}px`;
  }

  hide() { this.element.hidden = true; }
}

class Rollouts {
  constructor(root, data) {
    this.steps = data.rollouts;
    this.files = data.rollout_files;
    this.tip = new Tip();
    this.step = this.steps.length - 1;
    this.group = 0;
    this.wanted = 'all';
    const rewards = this.steps.flatMap(({ groups }) => groups.flatMap((group) => group.all_rewards)).filter((reward) => reward !== null);
    this.range = rewards.reduce(([low, high], reward) => [Math.min(low, reward), Math.max(high, reward)], [0, 0]);
    this.modes = Object.keys(COLOURS).filter((mode) => COLOURS[mode].needs.every((name) => this.has(name)));
    this.mode = this.modes[0];
    this.list = make('ol', { class: 'groups', 'aria-label': 'Groups' });
    this.detail = make('div', { class: 'problem' });
    root.append(this.tools(), this.note = make('p', { class: 'lead' }), make('div', { class: 'browser' }, this.list, this.detail));
    this.listen();
    if (!this.readHash()) this.group = Math.max(0, this.groups().findIndex(mixed));
    this.show();
  }

  has(name) {
    return this.steps.some(({ groups }) => groups.some((group) => group.completions.some((completion) => completion[name])));
  }

  tools() {
    this.slider = make('input', { type: 'range', min: 0, max: this.steps.length - 1, step: 1, 'aria-label': 'Step', oninput: () => this.open(Number(this.slider.value), 0) });
    this.shown = make('output');
    const move = (by, name, sign) => make('button', { type: 'button', 'aria-label': name, onclick: () => this.open(this.step + by, this.group) }, sign);
    this.moves = [move(-1, 'Earlier step', '‹'), move(1, 'Later step', '›')];
    const options = [['all', 'all groups'], ['mixed', 'with different rewards'], ['same', 'with one reward']];
    this.filter = make('select', { onchange: () => { this.wanted = this.filter.value; this.open(this.step, 0); } },
      ...options.map(([value, name]) => make('option', { value }, name)));
    return make('div', { class: 'tools' },
      make('span', { class: 'field' }, 'Step', this.moves[0], this.slider, this.moves[1], this.shown),
      make('label', null, 'Show', this.filter));
  }

  groups() {
    return this.steps[this.step].groups.filter((group) => this.wanted === 'all' || mixed(group) === (this.wanted === 'mixed'));
  }

  readHash() {
    const match = /^#rollouts\/(\d+)(?:\/(\d+))?$/.exec(location.hash);
    if (!match) return false;
    const step = this.steps.findIndex((entry) => entry.step === Number(match[1]));
    if (step >= 0) this.step = step;
    this.group = Number(match[2] || 0);
    requestAnimationFrame(() => document.getElementById('rollouts').scrollIntoView());
    return true;
  }

  open(step, group) {
    this.step = clamp(step, 0, this.steps.length - 1);
    this.group = group;
    this.show();
    try { history.replaceState(null, '', `#rollouts/${this.steps[this.step].step}/${this.group}`); } catch { /* a page without an address */ }
  }

  show() {
    const entry = this.steps[this.step];
    const groups = this.groups();
    this.group = clamp(this.group, 0, Math.max(0, groups.length - 1));
    this.slider.value = this.step;
    this.slider.setAttribute('aria-valuetext', `step ${entry.step}`);
    this.shown.textContent = entry.step;
    this.moves[0].disabled = this.step === 0;
    this.moves[1].disabled = this.step === this.steps.length - 1;
    const left = [];
    if (this.files > this.steps.length) left.push(`${this.steps.length} of ${this.files} recorded steps`);
    if (entry.groups_total > entry.groups.length) left.push(`${entry.groups.length} of the ${entry.groups_total} groups of this step`);
    this.note.textContent = left.length ? `To keep the page small it holds ${left.join(' and ')}; all are in rl/rollouts.` : '';
    this.list.replaceChildren(...groups.map((group, i) => make('li', null, this.item(group, i))));
    this.reveal(this.list.querySelector('[aria-current]'));
    this.tip.hide();
    if (groups.length) this.detail.replaceChildren(...this.problem(groups[this.group]));
    else this.detail.replaceChildren(make('p', { class: 'empty' }, 'No such group at this step.'));
  }

  // Scroll the list, and only the list, so that the open group is seen in it.
  reveal(button) {
    if (!button) return;
    const [inner, outer] = [button.getBoundingClientRect(), this.list.getBoundingClientRect()];
    if (inner.top < outer.top || inner.bottom > outer.bottom) this.list.scrollTop += inner.top - outer.top - 8;
  }

  item(group, i) {
    const [low, high] = this.range;
    const known = group.all_rewards.filter((reward) => reward !== null);
    const mean = average(known);
    const bars = group.all_rewards.map((reward) => {
      const bar = make('i', { class: reward === null ? 'none' : undefined });
      bar.style.height = `${reward === null ? 100 : 100 * (high > low ? (reward - low) / (high - low) : 1)}%`;
      return bar;
    });
    return make('button', { type: 'button', 'aria-current': i === this.group ? 'true' : undefined, onclick: () => { this.open(this.step, i); this.list.querySelectorAll('button')[i]?.focus(); } },
      make('span', { class: 'row' }, make('span', null, `problem ${group.problem_index ?? '?'}`), make('span', null, `mean ${brief(mean)}`)),
      make('span', { class: 'question' }, group.question || '(no question)'),
      make('span', { class: 'strip', 'aria-hidden': 'true' }, ...bars));
  }

  problem(group) {
    const known = group.all_rewards.filter((reward) => reward !== null);
    const mean = average(known);
    const same = known.every((reward) => reward === known[0]); // rounding must not make a spread of 1e-16
    const spread = known.length ? (same ? 0 : Math.sqrt(average(known.map((reward) => (reward - mean) ** 2)))) : null;
    const facts = [['answer', group.answer || '–'], ['mean reward', brief(mean)], ['spread', brief(spread)], ['completions', String(group.total)]];
    if (group.completions.length < group.total) facts.push(['shown', `${group.completions.length}, best to worst evenly`]);
    if (known.length < group.total) facts.push(['cannot be judged', String(group.total - known.length)]);
    this.current = group;
    this.cards = make('div', { class: 'completions' }, ...group.completions.map((completion, i) => this.card(completion, i)));
    return [
      make('p', { class: 'question' }, group.question || '(no question)'),
      make('dl', null, ...facts.map(([name, value]) => make('div', null, make('dt', null, name), make('dd', null, value)))),
      group.prompt ? make('details', null, make('summary', null, 'The prompt as the policy read it'), make('pre', { tabindex: 0 }, group.prompt)) : null,
      this.colours(),
      this.cards,
    ].filter(Boolean);
  }

  colours() {
    const select = make('select', { onchange: () => { this.mode = select.value; this.ramp(); this.repaint(); } },
      ...this.modes.map((mode) => make('option', { value: mode, selected: mode === this.mode }, COLOURS[mode].name)));
    this.scale = make('span', { class: 'ramp' });
    this.ramp();
    return make('div', { class: 'colours' }, make('label', null, 'Colour tokens by', select), this.scale);
  }

  ramp() {
    const { low, high } = COLOURS[this.mode];
    if (!low) { this.scale.replaceChildren(); return; }
    const bar = make('span', { class: 'bar', 'aria-hidden': 'true' });
    const two = this.mode === 'ratio' || this.mode === 'trainer';
    bar.style.background = `linear-gradient(to right, ${two ? `${paint(-1)}, transparent, ${paint(1)}` : `transparent, ${paint(-1)}`})`;
    this.scale.replaceChildren(low, bar, high, this.mode === 'logprobs' ? make('span', null, '(dotted: below 10 %)') : '');
  }

  card(completion, i) {
    const { advantage } = completion;
    const side = advantage > 0 ? 'plus' : advantage < 0 ? 'minus' : 'zero';
    const heard = completion.gap ? 0 : (completion.logprobs || []).filter((p) => p === null).length;
    const parts = Object.entries(completion.rewards).map(([name, value]) => make('span', null, `${name} `, make('b', null, value === null ? 'cannot judge' : brief(value))));
    if (completion.extracted !== undefined) parts.push(make('span', null, 'read as ', make('b', null, completion.extracted)));
    return make('article', { class: 'completion', 'aria-label': `Completion ${completion.number + 1}` },
      make('header', null,
        make('span', null, 'reward ', make('b', null, completion.reward === null ? 'none' : brief(completion.reward))),
        advantage === null ? null : make('span', null, 'advantage ', make('span', { class: `sign ${side}` }, signed(advantage))),
        completion.finished === false ? make('span', { class: 'flag' }, 'truncated') : null,
        make('span', { class: 'count' }, completion.tokens ? `${completion.length} token${completion.length === 1 ? '' : 's'}${heard ? `, ${heard} of a tool` : ''}` : ''),
        make('span', { class: 'parts' }, ...parts)),
      make('div', { class: 'tokens', tabindex: 0, role: 'group', 'data-i': i, 'aria-label': 'Tokens; arrow keys read their values' }, ...this.text(completion)));
  }

  text(completion) {
    if (!completion.tokens) return [completion.text || '(empty)'];
    if (!completion.tokens.length) return ['(empty)'];
    const nodes = completion.tokens.map((token, t) => {
      const p = completion.logprobs?.[t];
      const kind = p === null ? 'context' : p < UNLIKELY ? 'rare' : undefined;
      const span = make('span', { 'data-t': t, class: kind });
      token.split(/(\n)/).forEach((piece) => span.append(...(piece === '\n' ? [make('span', { class: 'newline', 'aria-hidden': 'true' }, '↵'), '\n'] : [piece])));
      span.style.background = paint(tint(completion, t, this.mode));
      return span;
    });
    if (completion.gap) nodes.splice(completion.gap.after, 0, make('span', { class: 'left-out' }, `${completion.gap.left_out} tokens left out`));
    return nodes;
  }

  repaint() {
    for (const box of this.cards.querySelectorAll('.tokens')) {
      const completion = this.current.completions[Number(box.dataset.i)];
      for (const span of box.querySelectorAll('[data-t]')) span.style.background = paint(tint(completion, Number(span.dataset.t), this.mode));
    }
  }

  point(box, t) {
    const completion = this.current.completions[Number(box.dataset.i)];
    const span = box.querySelector(`[data-t="${t}"]`);
    box.querySelector('.here')?.classList.remove('here');
    if (!span || !completion.tokens) return;
    span.classList.add('here');
    span.scrollIntoView({ block: 'nearest' });
    this.tip.show(span, completion, t);
  }

  listen() {
    const spanOf = (event) => event.target.closest?.('.tokens [data-t]');
    const look = (event) => {
      const span = spanOf(event);
      if (!span) { this.tip.hide(); return; }
      this.tip.show(span, this.current.completions[Number(span.closest('.tokens').dataset.i)], Number(span.dataset.t));
    };
    this.detail.addEventListener('pointerover', look);
    this.detail.addEventListener('click', look);
    this.detail.addEventListener('pointerleave', () => this.tip.hide());
    addEventListener('scroll', (event) => { if (event.target === document) this.tip.hide(); }, { passive: true });
    this.detail.addEventListener('focusout', (event) => {
      event.target.querySelector?.('.here')?.classList.remove('here');
      this.tip.hide();
    });
    this.detail.addEventListener('keydown', (event) => {
      const box = event.target.closest('.tokens');
      if (!box) return;
      const jump = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (event.key === 'Escape') this.tip.hide();
      if (jump === undefined) return;
      event.preventDefault();
      const here = box.querySelector('.here');
      const last = this.current.completions[Number(box.dataset.i)].tokens.length - 1;
      this.point(box, clamp((here ? Number(here.dataset.t) : -1) + jump, 0, last));
    });
    this.list.addEventListener('keydown', (event) => {
      const jump = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!jump) return;
      event.preventDefault();
      this.open(this.step, clamp(this.group + jump, 0, this.groups().length - 1));
      this.list.querySelectorAll('button')[this.group]?.focus();
    });
  }
}
