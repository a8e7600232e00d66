// The problems of an evaluation, filtered. Text of models only ever becomes a text node.

const OUTCOMES = {
  all: ['all problems', () => true],
  right: ['greedy right', (problem) => greedy(problem).grade === 'right'],
  wrong: ['greedy wrong', (problem) => greedy(problem).grade === 'wrong'],
  ungradable: ['ungradable, greedy or a sample', (problem) => greedy(problem).grade === 'ungradable' || problem.grades.includes('u')],
  cut: ['truncated, greedy or a sample', (problem) => !greedy(problem).finished || problem.grades.includes('t')],
  silent: ['without an answer, greedy or a sample', (problem) => greedy(problem).answer === null || /[nt]/.test(problem.grades)],
  official: ['greedy: published rules differ', (problem) => greedy(problem).official !== null && greedy(problem).official !== (greedy(problem).grade === 'right')],
};
const SHARES = {
  all: ['any share right', () => true],
  never: ['never right', (problem) => share(problem) === 0],
  sometimes: ['sometimes right', (problem) => share(problem) > 0 && share(problem) < 1],
  always: ['always right', (problem) => share(problem) === 1],
  outvoted: ['right, but outvoted', (problem) => share(problem) > 0 && problem.votes.length > 0 && problem.votes[0][0] !== 'right'],
};
const ORDERS = {
  asked: ['as published', () => 0],
  hard: ['hardest first', (a, b) => share(a) - share(b)],
  easy: ['easiest first', (a, b) => share(b) - share(a)],
  split: ['most divided first', (a, b) => Math.abs(share(a) - 0.5) - Math.abs(share(b) - 0.5)],
};
const PAGE = 40;

const greedy = (problem) => problem.shown[0];
const share = (problem) => (problem.grades ? [...problem.grades].filter((letter) => letter === 'r').length / problem.grades.length : 0);

class Problems {
  constructor(root, tasks) {
    this.tasks = tasks;
    this.count = make('p', { class: 'lead', role: 'status' });
    this.list = make('div', { class: 'answers' });
    this.more = make('button', { type: 'button', onclick: () => this.grow() }, 'Show more');
    const pick = (options) => make('select', { onchange: () => this.show() }, ...options.map(([value, name]) => make('option', { value }, name)));
    const named = (table) => Object.entries(table).map(([value, [name]]) => [value, name]);
    this.task = pick(tasks.map((task, i) => [i, task.name]));
    this.outcome = pick(named(OUTCOMES));
    this.shares = pick(named(SHARES));
    this.order = pick(named(ORDERS));
    this.words = make('input', { type: 'search', 'aria-label': 'Search', placeholder: 'in question, answer, id', oninput: () => this.show() });
    root.append(make('div', { class: 'tools' }, make('label', null, 'Benchmark', this.task), make('label', null, 'Greedy', this.outcome),
      make('label', null, 'Samples', this.shares), make('label', null, 'Order', this.order), make('label', null, 'Search', this.words)),
    this.count, this.list, this.more);
    this.show();
  }

  show() {
    const task = this.tasks[Number(this.task.value)];
    const words = this.words.value.trim().toLowerCase();
    const [, outcome] = OUTCOMES[this.outcome.value];
    const [, shares] = SHARES[this.shares.value];
    const found = (problem) => !words || [problem.id, problem.question, problem.answer].some((text) => text.toLowerCase().includes(words));
    this.chosen = task.problems.filter((problem) => outcome(problem) && shares(problem) && found(problem)).sort(ORDERS[this.order.value][1]);
    this.count.textContent = `${this.chosen.length} of ${task.problems.length} problems`;
    this.list.replaceChildren();
    this.shown = 0;
    this.grow();
  }

  grow() {
    const next = this.chosen.slice(this.shown, this.shown + PAGE);
    this.list.append(...next.map((problem) => this.card(problem)));
    this.shown += next.length;
    this.more.hidden = this.shown >= this.chosen.length;
  }

  card(problem) {
    const first = greedy(problem);
    const right = [...problem.grades].filter((letter) => letter === 'r').length;
    const body = make('div', { class: 'body' });
    const card = make('details', { class: `card ${first.grade}`, ontoggle: () => { if (card.open && !body.hasChildNodes()) body.append(...this.inside(problem)); } },
      make('summary', null, make('span', { class: 'grade' }, first.grade), make('span', { class: 'asked' }, problem.question.split('\n')[0]),
        make('span', { class: 'share' }, `${right} of ${problem.grades.length}`)),
      body);
    return card;
  }

  inside(problem) {
    const votes = problem.votes.map(([answer, count]) => make('span', { class: answer === 'right' ? 'vote good' : 'vote' }, `${answer} ×${count}`));
    return [make('p', { class: 'question' }, problem.question),
      make('p', null, make('small', null, `${problem.id}, reference `), make('b', null, problem.answer)),
      make('p', { class: 'votes' }, make('small', null, 'votes '), ...votes),
      ...problem.shown.map((one, i) => this.completion(one, i))];
  }

  completion(one, i) {
    const facts = [i ? `sample ${one.sample}` : 'greedy', one.grade, one.answer === null ? 'no answer' : `read as ${one.answer}`, one.reason,
      one.finished ? null : 'truncated', one.official === null ? null : `published rules: ${one.official ? 'right' : 'wrong'}`];
    return make('article', { class: `completion ${one.grade}` },
      make('header', null, ...facts.filter(Boolean).map((fact) => make('span', null, fact))),
      make('pre', { tabindex: 0 }, one.text === undefined ? '(left out to keep the page small; the records have it)' : one.text || '(empty)'));
  }
}

const data = JSON.parse(document.getElementById('data').textContent);
if (data.tasks.length) new Problems(document.getElementById('problems-view'), data.tasks);
