// What every part of the page needs: elements, texts, times. Text enters the page as text only.

export const $ = id => document.getElementById(id);

/** Return a new element with properties (`data` for the data attributes) and children. */
export function make(tag, { data, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

export const sleep = (ms, signal) => new Promise(resolve => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

/** Return a function that calls `act` at once, and then at most every `ms`, the last call included. */
export function throttled(act, ms) {
  let last = -Infinity, timer = 0;
  return () => {
    if (timer) return;
    timer = setTimeout(() => { timer = 0; last = performance.now(); act(); },
      Math.max(0, last + ms - performance.now()));
  };
}

/** Say something in a corner of the page, and to screen readers. */
export function notify(text, kind = "info") {
  const notice = make("p", { textContent: text, data: { kind } });
  $("notices").append(notice);
  while ($("notices").childElementCount > 4) $("notices").firstChild.remove();
  setTimeout(() => notice.remove(), kind === "bad" ? 12000 : 6000);
}

/** Let screen readers say something that is seen already. */
export const say = text => { $("spoken").textContent = text; };

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
export const words = text => text.replaceAll("_", " ");

export function duration(ms) {
  if (ms < 0) ms = 0;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60 % 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600 % 24)} h`;
}

export function ago(ms) {
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 5) return "now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(ms).toLocaleDateString();
}

/** Return a value as one line: a text as it is, the only field of an object by itself. */
export function oneLine(value, most = 240) {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    const fields = Object.values(value).filter(part => part !== null);
    if (fields.length === 1) [value] = fields;
  }
  const text = (typeof value === "string" ? value : JSON.stringify(value) ?? "").slice(0, most * 2).replace(/\s+/g, " ");
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

/** Show the fields of an object as a list: texts as they are, lists of texts joined, everything else as JSON. */
export function factList(fields) {
  const list = make("dl");
  for (const [name, value] of fields) {
    const simple = Array.isArray(value) && value.every(part => typeof part === "string");
    const text = typeof value === "string" ? value : simple ? value.join(", ") : JSON.stringify(value, null, 1);
    list.append(make("dt", { textContent: name }), make("dd", { textContent: text }));
  }
  return list;
}

const TOKENS = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const MOST_COLOURED = 40_000, MOST_SHOWN = 1_000_000;

/** Show a value as indented JSON, with colours unless it is long. */
export function showJson(place, value) {
  let text = JSON.stringify(value, null, 2) ?? "null";
  if (text.length > MOST_SHOWN) text = text.slice(0, MOST_SHOWN) + "\n… " + plural(text.length - MOST_SHOWN, "more character");
  if (text.length > MOST_COLOURED) return place.replaceChildren(text);
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(TOKENS)) {
    if (found.index > from) parts.push(text.slice(from, found.index));
    const kind = found[2] !== undefined ? "key" : found[1] ? "text" : found[3] ? "word" : "number";
    parts.push(make("span", { className: `json-${kind}`, textContent: found[1] ?? found[0] }));
    if (found[2]) parts.push(found[2]);
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  place.replaceChildren(...parts);
}
