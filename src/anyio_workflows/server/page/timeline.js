// The executions of a run over time, drawn on a canvas of the size of its panel, however many there are.

import { $, duration, plural, say } from "./dom.js";

const BAR = 12, GAP = 3, LANE = 9, AXIS = 20, MOST_ROWS = 16;
const COLOURS = ["text", "muted", "faint", "line", "panel", "running", "bar-done", "bar-running", "bar-waiting", "bar-failed", "bar-lost"];
const BARS = { failed: "bar-failed", recovered: "bar-failed", cancelled: "bar-lost", interrupted: "bar-lost" };

export class Timeline {
  #lanes = new Map();
  #run = null;
  #packed = 0;  // how many executions were looked at
  #queued = [];  // those of them that have not begun
  #first = null;
  #zoom = null;  // [from, to], ms since the start of the run; null for all of it
  #chosen = null;
  #step = null;
  #pen;
  #colours = null;
  #hatch = null;
  #drawn = -1;
  #bars = [];  // what is in view, to find what the pointer is at

  constructor(place, canvas, size, { order, chosen }) {
    Object.assign(this, { place, canvas, size, order, chosen });
    this.#pen = canvas.getContext("2d");
    new ResizeObserver(() => this.draw(true)).observe(place);
    place.addEventListener("scroll", () => this.draw(true), { passive: true });
    place.addEventListener("pointermove", event => this.#hover(event));
    place.addEventListener("pointerleave", () => this.#tip(null));
    place.addEventListener("click", event => { const bar = this.#at(event); if (bar) this.#choose(bar.execution); });
    place.addEventListener("keydown", event => this.#key(event));
    place.addEventListener("wheel", event => this.#wheel(event), { passive: false });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.#colours = null; this.draw(true); });
  }

  get count() { return this.#run?.executions.length ?? 0; }

  show(run) {
    this.#run = run;
    this.#lanes.clear();
    this.#packed = 0;
    this.#queued = [];
    this.#first = run?.executions[0] ?? null;
    this.#zoom = this.#chosen = this.#step = null;
    this.#tip(null);
    this.draw(true);
  }

  setStep(step) {
    this.#step = step;
    this.draw(true);
  }

  zoom(factor, at = null) {
    const [from, to] = this.#span();
    if (factor === 0) this.#zoom = null;
    else {
      const whole = this.#whole(), middle = at ?? (from + to) / 2;
      const wide = Math.min(whole, Math.max(1, (to - from) * factor));
      const start = Math.max(0, Math.min(whole - wide, middle - (middle - from) / (to - from) * wide));
      this.#zoom = wide >= whole * 0.999 ? null : [start, start + wide];
    }
    this.draw(true);
  }

  // --- Where the bars go --------------------------------------------------------------------------

  #whole() {
    const { created, ended, lastTime, active } = this.#run;
    const end = active ? Date.now() : Math.max(ended ?? 0, lastTime);
    return Math.max(50, end - created);
  }

  #span() { return this.#zoom ?? [0, this.#whole()]; }

  /** Give each execution that has begun a row of its lane, below those that overlap it. */
  #pack() {
    const { executions } = this.#run;
    if (executions[0] !== this.#first) {  // the oldest were dropped
      this.#first = executions[0];
      this.#lanes.clear();
      this.#packed = 0;
      this.#queued = [];
    }
    for (const step of this.order()) this.#lane(step);
    const late = [];
    for (const one of [...this.#queued, ...executions.slice(this.#packed)]) {
      if (one.begun === null) { if (one.end === null) late.push(one); continue; }
      this.#place(one);
    }
    this.#queued = late;
    this.#packed = executions.length;
    for (const lane of this.#lanes.values()) lane.queued = 0;
    for (const one of late) this.#lane(one.step).queued += 1;
  }

  #lane(step) {
    if (!this.#lanes.has(step)) this.#lanes.set(step, { step, rows: [], bars: [], queued: 0 });
    return this.#lanes.get(step);
  }

  #place(one) {
    const lane = this.#lane(one.step), { rows } = lane;
    const free = row => rows[row].end !== null && rows[row].end <= one.begun;
    let row = rows.findIndex(last => last.worker === one.worker);
    if (row < 0 || !free(row)) row = rows.findIndex((_, n) => free(n));
    if (row < 0) row = rows.length < MOST_ROWS ? rows.length : lane.bars.length % MOST_ROWS;
    one.row = row;
    rows[row] = one;
    lane.bars.push(one);
  }

  #heightOf(lane) { return LANE + Math.max(1, lane.rows.length) * (BAR + GAP); }

  // --- Drawing ------------------------------------------------------------------------------------

  /** Draw, if anything has changed or the run is in progress. */
  draw(anyway = false) {
    if (!this.#run) { this.#clear(); return; }
    if (!anyway && !this.#run.active && this.#drawn === this.#run.version) return;
    this.#drawn = this.#run.version;
    this.#pack();
    const width = this.place.clientWidth, height = this.place.clientHeight;
    if (!width || !height) return;
    const whole = AXIS + [...this.#lanes.values()].reduce((sum, lane) => sum + this.#heightOf(lane), 0) + 6;
    this.size.style.height = `${Math.max(0, whole - height)}px`;
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    const pen = this.#pen;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.#load();
    pen.font = this.#font;
    const left = Math.min(150, Math.max(60, ...[...this.#lanes.keys()].map(step => pen.measureText(step).width + 22)));
    this.#paint(left, width, height, whole);
    this.#describe();
  }

  #clear() {
    this.#pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.size.style.height = "0";
    this.#bars = [];
  }

  #load() {
    if (this.#colours) return;
    const style = getComputedStyle(document.documentElement);
    this.#colours = Object.fromEntries(COLOURS.map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.#font = `11px ${style.getPropertyValue("--sans")}`;
    const tile = new OffscreenCanvas(6, 6), pen = tile.getContext("2d");
    pen.strokeStyle = this.#colours["bar-failed"];
    pen.lineWidth = 1.6;
    for (const offset of [-6, 0, 6]) { pen.moveTo(offset - 1, 7); pen.lineTo(offset + 7, -1); }
    pen.stroke();
    this.#hatch = this.#pen.createPattern(tile, "repeat");
  }

  #font = "";

  #paint(left, width, height, whole) {
    const pen = this.#pen, c = this.#colours, [from, to] = this.#span(), now = this.#whole();
    const per = (width - left - 12) / (to - from), x = ms => left + (ms - from) * per;
    const scroll = this.place.scrollTop;
    this.scale = { left, from, per };
    this.#bars = [];
    pen.textBaseline = "middle";
    this.#ticks(from, to, x, Math.min(height, whole - scroll) - AXIS);
    let y = AXIS - scroll;
    for (const lane of this.#lanes.values()) {
      const tall = this.#heightOf(lane);
      if (y + tall > AXIS && y < height) {
        pen.save();
        pen.beginPath();
        pen.rect(0, AXIS, width, height);
        pen.clip();
        this.#paintLane(lane, y, { left, width, x, now, tall });
        pen.restore();
      }
      y += tall;
    }
  }

  #ticks(from, to, x, height) {
    const pen = this.#pen, c = this.#colours, unit = niceUnit((to - from) / 6);
    for (let at = Math.ceil(from / unit) * unit; at <= to; at += unit) {
      pen.fillStyle = c.line;
      pen.fillRect(Math.round(x(at)), AXIS - 4, 1, height);
      pen.fillStyle = c.muted;
      pen.textAlign = x(at) < x(from) + 12 ? "left" : x(at) > x(to) - 18 ? "right" : "center";
      pen.fillText(tickText(at, unit), x(at), 8);
    }
  }

  #paintLane(lane, y, { left, width, x, now, tall }) {
    const pen = this.#pen, c = this.#colours;
    const dim = this.#step !== null && this.#step !== lane.step;
    pen.fillStyle = c.line;
    pen.fillRect(0, y, width, 1);
    pen.globalAlpha = dim ? 0.35 : 1;
    pen.textAlign = "left";
    pen.fillStyle = this.#step === lane.step ? c.running : c.text;
    pen.fillText(fitting(pen, lane.step, left - 14), 2, y + LANE / 2 + 2 + BAR / 2);
    if (lane.queued && tall > 2 * BAR + LANE) {
      pen.fillStyle = c.muted;
      pen.fillText(`${lane.queued} queued`, 2, y + LANE / 2 + 2 + BAR * 1.5 + 2);
    }
    pen.beginPath();
    pen.rect(left - 2, y, width - left, tall + 2);
    pen.clip();
    for (const one of lane.bars) {
      const start = x(one.begun - this.#run.created), end = x((one.end ?? this.#run.created + now) - this.#run.created);
      if (end < left || start > width) continue;
      const top = y + LANE / 2 + 1 + one.row * (BAR + GAP);
      this.#paintBar(one, start, Math.max(end, start + 2), top, x, now);
      this.#bars.push({ execution: one, start, end: Math.max(end, start + 4), top });
    }
    pen.globalAlpha = 1;
  }

  #paintBar(one, start, end, top, x, now) {
    const pen = this.#pen, c = this.#colours;
    const round = () => { pen.beginPath(); pen.roundRect(start, top, end - start, BAR, Math.min(3, (end - start) / 2)); };
    round();
    if (one.outcome === "retrying") {
      pen.fillStyle = c.panel;
      pen.fill();
      pen.fillStyle = this.#hatch;
      pen.fill();
      pen.strokeStyle = c["bar-failed"];
      pen.lineWidth = 1;
      pen.stroke();
    } else {
      pen.fillStyle = c[one.end === null ? "bar-running" : BARS[one.outcome] ?? "bar-done"];
      pen.fill();
      if (one.states.some(each => each.state === "waiting")) this.#paintWaits(one, start, end, top, x, now);
    }
    if (one === this.#chosen) {
      pen.strokeStyle = c.text;
      pen.lineWidth = 2;
      round();
      pen.stroke();
    }
  }

  #paintWaits(one, start, end, top, x, now) {
    const pen = this.#pen, { created } = this.#run;
    pen.save();
    pen.clip();
    pen.fillStyle = this.#colours["bar-waiting"];
    one.states.forEach(({ state, time }, n) => {
      if (state !== "waiting") return;
      const until = one.states[n + 1]?.time ?? one.end ?? created + now;
      pen.fillRect(x(time - created), top, Math.max(1, x(until - created) - x(time - created)), BAR);
    });
    pen.restore();
  }

  /** Say to screen readers what the canvas shows. */
  #describe() {
    const running = this.#run.executions.slice(-1000).filter(one => one.state === "running").length;
    const text = `Timeline: ${plural(this.count, "execution")}, ${running} running. Left and right choose one, plus and minus zoom.`;
    if (this.place.ariaLabel !== text) this.place.ariaLabel = text;
  }

  // --- Pointing and choosing ----------------------------------------------------------------------

  #at(event) {
    const box = this.place.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    return this.#bars.findLast(bar => px >= bar.start - 2 && px <= bar.end + 2 && py >= bar.top - 1 && py <= bar.top + BAR + 1);
  }

  #hover(event) {
    const bar = this.#at(event);
    this.place.style.cursor = bar ? "pointer" : "";
    this.#tip(bar?.execution ?? null, event.clientX, event.clientY);
  }

  #tip(one, px = 0, py = 0) {
    const tip = $("tip");
    tip.hidden = one === null;
    if (one === null) return;
    tip.textContent = summary(one);
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(px + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${py + 16 + box.height > innerHeight ? py - box.height - 8 : py + 16}px`;
  }

  #choose(one) {
    this.#chosen = one;
    if (one) {
      say(summary(one));
      this.chosen(one);
    }
    this.draw(true);
  }

  unselect() { this.#choose(null); }

  #key(event) {
    const begun = this.#run?.executions.filter(one => one.begun !== null) ?? [];
    const at = begun.indexOf(this.#chosen);
    const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? begun.length - 1 : at - 1, Home: 0, End: begun.length - 1 }[event.key];
    if (next !== undefined && begun.length) this.#choose(begun[Math.max(0, Math.min(begun.length - 1, next))]);
    else if (event.key === "+" || event.key === "=") this.zoom(0.5);
    else if (event.key === "-") this.zoom(2);
    else if (event.key === "0") this.zoom(0);
    else return;
    event.preventDefault();
  }

  #wheel(event) {
    if (!this.#run || !this.scale) return;
    const { left, from, per } = this.scale;
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY / 200), from + (event.clientX - this.place.getBoundingClientRect().left - left) / per);
    } else if (this.#zoom && Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const wide = this.#zoom[1] - this.#zoom[0], start = Math.max(0, Math.min(this.#whole() - wide, this.#zoom[0] + event.deltaX / per));
      this.#zoom = [start, start + wide];
      this.draw(true);
    }
  }
}

function summary(one) {
  const begun = one.begun, took = duration((one.end ?? Date.now()) - begun);
  const attempt = one.attempt > 1 || one.outcome === "retrying" ? `, attempt ${one.attempt}` : "";
  const state = one.end === null ? one.state : one.outcome === "retrying" ? "failed, tried again" : one.outcome;
  const flow = one.output ? `${one.input} → ${one.output}` : one.input;
  return `${one.step} #${one.worker}${attempt}: ${state}, ${took}\n${flow}${one.error ? `\n${one.error}` : ""}`;
}

function niceUnit(ms) {
  const power = 10 ** Math.floor(Math.log10(Math.max(ms, 0.1)));
  if (ms < 30_000) return [1, 2, 5, 10].map(k => k * power).find(unit => unit >= ms);
  const units = [60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400].map(s => s * 1000);
  return units.find(unit => unit >= ms) ?? Math.ceil(ms / 86_400_000) * 86_400_000;
}

function tickText(ms, unit) {
  if (ms === 0) return "0";
  if (unit < 1000 && ms < 1000) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 60_000 || unit < 1000) return `${Number((ms / 1000).toFixed(unit < 1000 ? 3 : 0))} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)}:${String(Math.round(ms / 1000 % 60)).padStart(2, "0")} min`;
  return ms < 86_400_000 * 2 ? `${Number((ms / 3_600_000).toFixed(1))} h` : `${Number((ms / 86_400_000).toFixed(1))} d`;
}

function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  while (text.length > 1 && pen.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}
