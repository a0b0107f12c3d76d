// The list of events: as many as there are, of which only those in view are elements.

import { duration, make, oneLine, plural, throttled } from "./dom.js";

const ROW = 24, SPARE = 6;
const SMALL = 64;  // characters of the JSON of the data of an event that may be grouped
const ENOUGH = 4;  // so many alike in a row are a group

/** Return what stands in a row: an event, or a group of `{ group: [events], open }`. */
const isGroup = row => row.group !== undefined;
const seqOf = row => isGroup(row) ? row.group[0].seq : row.seq;

const small = event => !event.internal && !event.asks && !event.stops && !event.gap && event.raw.length - event.raw.indexOf('"data":') < SMALL + '"data":'.length;

function onlyText(event) {
  let found = null;
  for (const value of Object.values(event.data)) {
    if (typeof value !== "string") continue;
    if (found !== null) return null;
    found = value;
  }
  return found;
}

/** Return the texts of a group, joined; null if its events do not have one text each. */
export function joinedText(events, most = Infinity) {
  let text = "";
  for (const event of events) {
    const part = onlyText(event);
    if (part === null) return null;
    text += part;
    if (text.length > most) break;
  }
  return text;
}

const WORDS = { preparing: "queued", running: "running", waiting: "waiting" };

function preview(event) {
  if (event.gap) return `${plural(event.gap.last - event.gap.first + 1, "event")} from ${event.gap.first} on had left the memory of the server`;
  if (event.type === "StepStateChanged") {
    const { name, worker_id: worker, step_state: state, attempt, outcome, error, input_event_name: input, output_event_name: output } = event.data;
    const what = state === "not_running" ? outcome ?? "over" : WORDS[state] ?? state;
    const flow = output ? `${input} → ${output}` : input;
    return `${name} #${worker}${attempt > 1 ? `, attempt ${attempt}` : ""}: ${what}   ${error ?? flow}`;
  }
  const { exception, ...data } = event.data;
  const { type, text } = exception?.value ?? {};
  return event.bad && typeof type === "string" ? `${type.split(".").at(-1)}: ${text ?? ""}   in ${data.step_name}` : event.data;
}

/** Show the fields of an event in one line, their names paler than their values. */
function showLine(place, value) {
  const fields = value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).filter(([, part]) => part !== null) : [];
  if (fields.length < 2) {
    place.textContent = oneLine(value);
    return;
  }
  const parts = [];
  for (const [name, part] of fields.slice(0, 8)) parts.push(make("b", { textContent: name }), ` ${oneLine(part)}  `);
  place.replaceChildren(...parts);
}

export class LogView {
  #rows = [];
  #taken = 0;  // events of the run that were looked at, those that were dropped included
  #run = null;
  #tail = 0;  // how many of the last rows are alike, or 0 behind a group
  #elements = new Map();
  #pool = [];
  #selected = -1;
  #open = new Set();  // first numbers of the groups that are open
  #follow = true;
  #internal = false;
  #text = "";
  #step = null;
  #types = new Set();
  #lastTop = 0;
  #stale = false;
  #length = 0;

  constructor(place, size, { chosen, followed }) {
    Object.assign(this, { place, size, chosen, followed });
    this.redraw = throttled(() => this.#rebuild(), 100);
    place.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    place.addEventListener("keydown", event => this.#key(event));
    place.addEventListener("click", event => this.#click(event));
    new ResizeObserver(() => { this.#stick(); this.#draw(); }).observe(place);
  }

  get count() { return this.#rows.length; }

  show(run) {
    this.#run = run;
    this.#open.clear();
    this.#selected = -1;
    this.#rebuild();
  }

  set internal(on) { this.#internal = on; this.#rebuild(); }
  set text(text) { this.#text = text.trim().toLowerCase(); this.redraw(); }

  /** Show only what concerns a step, its internal events included; null for everything. */
  setStep(step, types = new Set()) { this.#step = step; this.#types = types; this.#rebuild(); }

  get follow() { return this.#follow; }
  set follow(on) {
    this.#follow = on;
    if (on) { this.#stick(); this.#draw(); }
  }

  // --- Which events there are ---------------------------------------------------------------------

  #wanted(event) {
    if (event.gap) return !this.#text;
    if (this.#step !== null) {
      const about = event.data.name === this.#step && event.internal || event.data.step_name === this.#step || !event.internal && this.#types.has(event.type);
      if (!about) return false;
    } else if (event.internal && !this.#internal) return false;
    return !this.#text || event.raw.toLowerCase().includes(this.#text);
  }

  #rebuild() {
    const chosen = this.#rows[this.#selected];
    this.#rows = [];
    this.#taken = this.#run?.dropped ?? 0;
    this.#tail = 0;
    this.#recycle();
    this.#take();
    this.#selected = chosen === undefined ? -1 : this.#rows.indexOf(chosen);
    this.#resize();
    this.#draw();
  }

  /** Take the events that are new; draw if there are any. */
  update() {
    if (!this.#run || this.#taken === this.#run.dropped + this.#run.events.length) return;
    if (this.#taken < this.#run.dropped) { this.#rebuild(); return; }
    this.#take();
    this.#resize();
    this.#draw();
  }

  #take() {
    if (!this.#run) return;
    const { events, dropped } = this.#run;
    for (let n = this.#taken - dropped; n < events.length; n++) if (this.#wanted(events[n])) this.#push(events[n]);
    this.#taken = dropped + events.length;
  }

  #push(event) {
    const rows = this.#rows;
    const group = this.#lastGroup();
    if (small(event)) {
      if (group && group.group[0].type === event.type) {
        group.group.push(event);
        if (group.open) rows.push(event);
        this.#changed(group.at);
        return;
      }
      const last = rows.at(-1);
      this.#tail = this.#tail && last.type === event.type ? this.#tail + 1 : 1;
      rows.push(event);
      if (this.#tail < ENOUGH) return;
      const first = rows.length - ENOUGH, made = { group: rows.slice(first), open: this.#open.has(rows[first].seq), at: first };
      rows.length = first;
      rows.push(made);
      if (made.open) rows.push(...made.group);
      for (let n = first; n < first + ENOUGH; n++) this.#changed(n);
      this.#tail = 0;
      this.#current = made;
      return;
    }
    this.#tail = 0;
    this.#current = null;
    rows.push(event);
  }

  #current = null;

  /** Return the group that the next event may join: it ends where the list ends. */
  #lastGroup() {
    const group = this.#current;
    if (!group || this.#rows[group.at] !== group) return null;
    return this.#rows.length === group.at + 1 + (group.open ? group.group.length : 0) ? group : null;
  }

  #toggle(index, open = !this.#rows[index].open) {
    const group = this.#rows[index];
    if (group.open === open) return;
    group.open = open;
    const seq = seqOf(group);
    if (open) this.#open.add(seq); else this.#open.delete(seq);
    this.#follow &&= !open;
    this.followed(this.#follow);
    this.#rebuild();
    this.#selected = this.#rows.findIndex(row => isGroup(row) && seqOf(row) === seq);
    const top = this.#selected * ROW;
    if (open && top > this.place.scrollTop + this.place.clientHeight / 2) this.place.scrollTop = top - ROW;
    this.#draw();
  }

  // --- Drawing ------------------------------------------------------------------------------------

  #resize() {
    if (this.#rows.length === this.#length) return;
    this.#length = this.#rows.length;
    this.size.style.height = `${this.#length * ROW}px`;
    this.size.style.setProperty("--seq", `${Math.max(3, String(this.#run?.events.at(-1)?.seq ?? "").length)}ch`);
    this.#stick();
  }

  #stick() {
    if (!this.#follow) return;
    this.place.scrollTop = this.#length * ROW;
    this.#lastTop = this.place.scrollTop;
  }

  #scrolled() {
    const top = this.place.scrollTop, bottom = top + this.place.clientHeight >= this.#length * ROW - 2;
    const before = this.#follow;
    if (top < this.#lastTop - 1 && !bottom) this.#follow = false;
    else if (bottom && top > this.#lastTop) this.#follow = true;
    this.#lastTop = top;
    if (before !== this.#follow) this.followed(this.#follow);
    this.#draw();
  }

  #recycle() {
    for (const element of this.#elements.values()) this.#pool.push(element);
    this.#elements.clear();
  }

  #changed(index) {
    const element = this.#elements.get(index);
    if (!element) return;
    this.#elements.delete(index);
    this.#pool.push(element);
  }

  #draw() {
    const first = Math.max(0, Math.floor(this.place.scrollTop / ROW) - SPARE);
    const last = Math.min(this.#rows.length, Math.ceil((this.place.scrollTop + this.place.clientHeight) / ROW) + SPARE);
    for (const [index, element] of this.#elements) {
      if (index >= first && index < last) continue;
      this.#elements.delete(index);
      this.#pool.push(element);
    }
    for (let index = first; index < last; index++) {
      const element = this.#elements.get(index) ?? this.#fill(index);
      const chosen = index === this.#selected;
      if (element.selected !== chosen) { element.selected = chosen; element.setAttribute("aria-selected", String(chosen)); }
    }
    while (this.#pool.length > 60) this.#pool.pop().remove();
    for (const element of this.#pool) if (!element.hidden) element.hidden = true;
    if (this.#elements.has(this.#selected)) this.place.setAttribute("aria-activedescendant", this.#elements.get(this.#selected).id);
    else this.place.removeAttribute("aria-activedescendant");
  }

  #make() {
    const element = make("div", { className: "row" },
      make("span", { className: "seq" }), make("span", { className: "at" }), make("span", { className: "type" }), make("span", { className: "what" }));
    element.setAttribute("role", "option");
    this.size.append(element);
    return element;
  }

  #fill(index) {
    const row = this.#rows[index], element = this.#pool.pop() ?? this.#make();
    const [seq, at, type, what] = element.children;
    const event = isGroup(row) ? row.group[0] : row;
    element.hidden = false;
    element.index = index;
    element.id = `event-row-${index}`;
    element.style.transform = `translateY(${index * ROW}px)`;
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-setsize", this.#rows.length);
    element.dataset.kind = isGroup(row) ? "group" : event.gap ? "gap" : event.bad ? "bad" : event.stops ? "stop" : event.asks ? "asks" : event.internal ? "internal" : "event";
    if (isGroup(row)) element.setAttribute("aria-expanded", String(row.open)); else element.removeAttribute("aria-expanded");
    seq.textContent = event.internal ? "" : event.gap ? "⋯" : event.seq;
    at.textContent = event.gap ? "" : `+${this.#offset(event.time)}`;
    type.textContent = isGroup(row) ? `${event.type} × ${row.group.length.toLocaleString("en")}` : event.gap ? "gap" : event.type;
    showLine(what, isGroup(row) ? joinedText(row.group, 400) ?? row.group.at(-1).data : preview(event));
    element.classList.toggle("inside", !isGroup(row) && this.#inside(index));
    this.#elements.set(index, element);
    return element;
  }

  #offset(time) {
    const ms = Math.max(0, time - this.#run.created);
    return ms < 100_000 ? (ms / 1000).toFixed(3) : duration(ms);
  }

  /** Return whether a row is one of the events of an open group. */
  #inside(index) {
    if (!this.#open.size) return false;
    for (let n = index - 1; n >= 0; n--) {
      const row = this.#rows[n];
      if (isGroup(row)) return row.open && index <= n + row.group.length;
      if (row.type !== this.#rows[index].type) return false;
    }
    return false;
  }

  // --- Choosing -----------------------------------------------------------------------------------

  /** Choose the event with this number; return whether it is there. */
  choose(seq) {
    let index = this.#rows.findIndex(row => !isGroup(row) && !row.internal && !row.gap && row.seq === seq);
    if (index < 0) {
      const at = this.#rows.findIndex(row => isGroup(row) && row.group[0].seq <= seq && seq <= row.group.at(-1).seq);
      if (at < 0) return false;
      this.#toggle(at, true);
      index = this.#rows.findIndex(row => !isGroup(row) && !row.internal && row.seq === seq);
    }
    this.#select(index, true);
    return true;
  }

  unselect() {
    this.#selected = -1;
    this.#draw();
  }

  #select(index, centred = false) {
    if (!this.#rows.length) return;
    index = Math.max(0, Math.min(this.#rows.length - 1, index));
    this.#selected = index;
    if (this.#follow && index < this.#rows.length - 1) { this.#follow = false; this.followed(false); }
    // The details open below and may make the list shorter: scroll afterwards.
    this.chosen(this.#rows[index]);
    const top = index * ROW, { scrollTop, clientHeight } = this.place;
    if (centred) this.place.scrollTop = top - clientHeight / 2;
    else if (top < scrollTop) this.place.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.place.scrollTop = top + ROW - clientHeight;
    this.#draw();
  }

  #click(event) {
    const element = event.target.closest(".row");
    if (!element) return;
    const row = this.#rows[element.index];
    if (row === undefined) return;
    if (isGroup(row) && this.#selected === element.index) this.#toggle(element.index);
    else this.#select(element.index);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.place.clientHeight / ROW) - 1);
    const moves = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    const row = this.#rows[this.#selected];
    if (event.key in moves) {
      const from = this.#selected < 0 ? (moves[event.key] < 0 ? this.#rows.length : Math.floor(this.place.scrollTop / ROW) - 1) : this.#selected;
      this.#select(from + moves[event.key]);
    } else if (row && isGroup(row) && ["ArrowRight", "ArrowLeft", "Enter", " "].includes(event.key)) {
      if (event.key === "ArrowRight") this.#toggle(this.#selected, true);
      else if (event.key === "ArrowLeft") this.#toggle(this.#selected, false);
      else this.#toggle(this.#selected);
    } else return;
    event.preventDefault();
  }
}
