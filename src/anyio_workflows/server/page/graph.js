// The drawing of a workflow: the server's SVG, whose steps light up.

import { call, workflowPath } from "./api.js";
import { make, makeSvg } from "./dom.js";
import { countsText } from "./run.js";

const STATES = ["running", "waiting", "done", "failed"];
const MARKS = { running: "M-2-3.5L3.5 0L-2 3.5Z", waiting: "M-2-3V3M2-3V3", done: "M-3.5 0L-1 2.8L3.5-2.5", failed: "M-2.7-2.7L2.7 2.7M2.7-2.7L-2.7 2.7" };
const sheets = new Map();

/** Apply the style sheet of a drawing to the page. */
function adopt(text) {
  if (sheets.has(text)) return;
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(text);
  sheets.set(text, sheet);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}

export class GraphView {
  #nodes = new Map();
  #svg = null;
  #legend = false;
  #name = null;
  #drawings = new Map();

  constructor(place, choose) {
    this.place = place;
    this.choose = choose;
  }

  get steps() { return [...this.#nodes.keys()]; }

  /** Show the drawing of a workflow, without states. */
  async show(name) {
    if (name === this.#name) return this.clear();
    this.#name = name;
    this.#nodes.clear();
    let text;
    try {
      if (!this.#drawings.has(name)) this.#drawings.set(name, call(workflowPath(name, "/graph?format=svg"), { accept: "image/svg+xml" }).then(response => response.text()));
      text = await this.#drawings.get(name);
    } catch (error) {
      this.#drawings.delete(name);
      if (this.#name === name) {
        this.#name = null;
        this.place.replaceChildren(make("p", { className: "empty", textContent: `No drawing of ${name}: ${error.message}` }));
      }
      return;
    }
    if (this.#name !== name) return;
    this.#draw(text, name);
  }

  #draw(text, name) {
    // The policy of the page forbids inline styles already where they are parsed: take them out before.
    const plain = text
      .replace(/<style>([^<]*)<\/style>/g, (_, rules) => { adopt(rules); return ""; })
      .replace(/^(<svg [^>]*?) style="[^"]*"/, "$1");
    const svg = new DOMParser().parseFromString(plain, "image/svg+xml").documentElement;
    for (const script of svg.querySelectorAll("script, foreignObject")) script.remove();
    // As an image its parts could not be reached by the keyboard.
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", `Steps of ${name}`);
    svg.querySelector(":scope > title")?.remove();
    this.#svg = document.importNode(svg, true);
    for (const group of this.#svg.querySelectorAll("[data-step]")) this.#prepare(group);
    this.place.replaceChildren(this.#svg);
    this.#size();
  }

  #prepare(group) {
    const step = group.dataset.step;
    group.setAttribute("tabindex", "0");
    group.setAttribute("role", "button");
    group.setAttribute("aria-pressed", "false");
    group.setAttribute("aria-label", `Step ${step}`);
    group.addEventListener("click", () => this.choose(step));
    group.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.choose(step);
    });
    this.#nodes.set(step, { group, state: "", counts: "" });
  }

  /** Fit the drawing to the panel, with or without the legend. */
  #size() {
    const legend = this.#svg.querySelector(".aw-legend");
    const [, , width, whole] = (this.#svg.dataset.box ??= this.#svg.getAttribute("viewBox")).split(" ").map(Number);
    const above = legend ? Number(/translate\(\S+ (\S+)\)/.exec(legend.getAttribute("transform"))?.[1] ?? whole) : whole;
    legend?.toggleAttribute("hidden", !this.#legend);
    const height = this.#legend ? whole : above;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.setAttribute("width", width);
    this.#svg.setAttribute("height", height);
    this.#svg.style.minWidth = `${Math.round(width * 0.62)}px`;
  }

  toggleLegend() {
    this.#legend = !this.#legend;
    if (this.#svg) this.#size();
    return this.#legend;
  }

  clear() {
    for (const step of this.#nodes.keys()) this.#mark(step, "", "");
    this.press(null);
  }

  /** Light the steps of a run up. */
  light(run, now) {
    for (const step of this.#nodes.keys()) this.#mark(step, run.light(step, now), countsText(run.doc.steps?.[step]));
  }

  press(step) {
    for (const [name, { group }] of this.#nodes) group.setAttribute("aria-pressed", String(name === step));
  }

  /** Return the types of the events that enter or leave a step, as far as the drawing says. */
  typesOf(step) {
    const types = new Set();
    for (const edge of this.#svg?.querySelectorAll("[data-source]") ?? []) {
      const { source, target } = edge.dataset;
      if (source !== step && target !== step) continue;
      for (const end of [source, target]) if (end.startsWith("(")) types.add(end.slice(1, -1));
      for (const line of (edge.querySelector("title")?.textContent ?? "").split("\n").slice(1)) types.add(line.trim());
    }
    return types;
  }

  #mark(step, state, counts) {
    const node = this.#nodes.get(step);
    if (node.state === state && node.counts === counts) return;
    const { group } = node;
    if (node.state !== state) {
      group.classList.remove(...STATES.map(one => `aw-${one}`));
      if (state) { group.classList.add(`aw-${state}`); group.dataset.state = state; } else delete group.dataset.state;
      node.badge?.remove();
      node.badge = null;
      if (state) group.append(node.badge = this.#badge(group, state));
    }
    Object.assign(node, { state, counts });
    group.setAttribute("aria-label", `Step ${step}${counts || state ? `: ${counts || state}` : ""}`);
    this.#pill(node);
  }

  #badge(group, state) {
    const box = group.querySelector("rect, path").getBBox();
    const badge = makeSvg("g", { transform: `translate(${box.x + box.width - 4} ${box.y + 1})` });
    badge.append(makeSvg("circle", { class: "aw-badge", r: 8 }), makeSvg("path", { class: "aw-mark", d: MARKS[state] }));
    return badge;
  }

  /** Write the counts on the lower border of the box. */
  #pill(node) {
    if (!node.counts) { node.pill?.remove(); node.pill = null; return; }
    if (!node.pill) {
      node.pill = makeSvg("g", { class: "counts" });
      node.pill.append(makeSvg("rect", { rx: 7.5, height: 15 }), makeSvg("text"));
      node.group.append(node.pill);
    }
    const [rect, text] = node.pill.children;
    text.textContent = node.counts;
    const box = node.group.querySelector("rect, path").getBBox(), middle = box.x + box.width / 2;
    const width = text.getComputedTextLength() + 12;
    rect.setAttribute("x", middle - width / 2);
    rect.setAttribute("y", box.y + box.height - 6);
    rect.setAttribute("width", width);
    text.setAttribute("x", middle);
    text.setAttribute("y", box.y + box.height + 5);
  }
}
