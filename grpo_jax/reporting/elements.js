// Making elements and writing numbers. Text of the run only ever becomes a text node.

const SVG = 'http://www.w3.org/2000/svg';

function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const make = (tag, attributes, ...children) => furnish(document.createElement(tag), attributes, children);
const shape = (tag, attributes, ...children) => furnish(document.createElementNS(SVG, tag), attributes, children);

// A number for reading: three or four significant digits, a true minus sign, k and M for large counts.
function show(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  const size = Math.abs(value);
  let text;
  if (size === 0) text = '0';
  else if (size >= 1e9 || size < 1e-3) text = value.toExponential(2).replace(/\.?0+e/, 'e').replace('e+', 'e');
  else if (size >= 1e6) text = `${trim((value / 1e6).toPrecision(4))}M`;
  else if (size >= 1e4) text = `${trim((value / 1e3).toPrecision(4))}k`;
  else if (Number.isInteger(value)) text = String(value);
  else if (size >= 100) text = value.toFixed(1);
  else text = value.toPrecision(size >= 1 ? 4 : 3);
  return text.replaceAll('-', '−');
}

const trim = (text) => (text.includes('.') ? text.replace(/\.?0+$/, '') : text);
const brief = (value) => trim(show(value));
const signed = (value) => (value > 0 ? `+${brief(value)}` : brief(value));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// At most `count` round numbers between two others.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let i = first; i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Powers of ten between two positive numbers, with 2 and 5 between them where there are few.
function logTicks(low, high) {
  const found = [];
  const wide = Math.log10(high / low) > 2.5;
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of wide ? [1] : [1, 2, 5]) {
      const value = Number((factor * 10 ** power).toPrecision(12));
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  const every = Math.ceil(found.length / 6);
  return found.filter((_, i) => i % every === 0);
}
