// What the page knows about one run: its events, and the executions that the internal events tell of.

const MOST_EVENTS = 200_000, MOST_EXECUTIONS = 20_000;

const is = (event, name) => event.type === name || event.bases.includes(name);

/** One attempt of one execution of a step. `states`: when it was queued, began, waited and continued. */
class Execution {
  end = null;
  outcome = "";
  error = null;
  output = null;
  row = -1;

  constructor(data, time) {
    this.step = data.name;
    this.worker = data.worker_id;
    this.attempt = data.attempt;
    this.input = data.input_event_name;
    this.states = [];
    this.enter(data.step_state, time);
  }

  get state() { return this.end === null ? this.states.at(-1).state : "over"; }

  enter(state, time) { this.states.push({ state, time }); }

  /** When it got a worker; null if it is queued. */
  get begun() { return this.states.find(one => one.state !== "preparing")?.time ?? null; }

  finish(time, outcome) {
    this.end = time;
    this.outcome = outcome;
  }

  describe() {
    const begun = this.begun, last = this.end ?? Date.now();
    return {
      step: this.step, execution: this.worker, attempt: this.attempt, state: this.end === null ? this.state : this.outcome,
      input: this.input, output: this.output, error: this.error,
      began: begun && new Date(begun).toISOString(), ended: this.end && new Date(this.end).toISOString(),
      seconds: begun === null ? null : (last - begun) / 1000,
      queued_seconds: this.states[0].state === "preparing" ? ((begun ?? last) - this.states[0].time) / 1000 : null,
    };
  }
}

export class Run {
  events = [];
  executions = [];
  doc;
  dropped = 0;
  lastTime = 0;
  /** Changes with every change: whoever draws compares. */
  version = 0;
  #latest = new Map();
  #repeats = null;
  #open = new Map();

  constructor(doc) {
    this.id = doc.id;
    this.update(doc);
  }

  update(doc) {
    this.doc = doc;
    this.created = Date.parse(doc.created);
    this.ended = doc.ended ? Date.parse(doc.ended) : null;
    this.version += 1;
  }

  get active() { return ["queued", "running", "waiting"].includes(this.doc.status); }

  /** The stream was opened again: internal events behind the cursor may come once more. */
  reopened(cursor) {
    this.#repeats = new Set();
    for (let n = this.events.length - 1; n >= 0 && this.events[n].seq >= cursor; n--) {
      if (this.events[n].internal) this.#repeats.add(this.#key(this.events[n]));
    }
  }

  #key({ time, type, data }) { return `${type} ${time} ${data.worker_id} ${data.attempt} ${data.step_state}`; }

  /** Add an event; return it, or null if it is known. */
  take(frame, raw) {
    const event = { seq: frame.seq, time: Date.parse(frame.time), type: frame.type, bases: frame.bases ?? [], data: frame.data ?? {}, internal: frame.internal === true, raw };
    if (event.internal) {
      if (this.#repeats?.has(this.#key(event))) return null;
    } else this.#repeats = null;
    event.asks = is(event, "InputRequiredEvent");
    event.stops = is(event, "StopEvent");
    event.bad = ["WorkflowFailedEvent", "WorkflowTimedOutEvent", "WorkflowCancelledEvent"].some(name => is(event, name));
    this.lastTime = Math.max(this.lastTime, event.time);
    if (event.type === "StepStateChanged") this.#execution(event);
    this.#keep(event);
    return event;
  }

  takeGap(gap) {
    this.#keep({ seq: gap.last, gap, time: this.lastTime, type: "", bases: [], data: {}, internal: false, raw: "" });
  }

  #keep(event) {
    this.events.push(event);
    this.version += 1;
    if (this.events.length > MOST_EVENTS * 1.1) {
      this.dropped += this.events.length - MOST_EVENTS;
      this.events = this.events.slice(-MOST_EVENTS);
    }
  }

  #execution({ data, time }) {
    let one = this.#latest.get(data.worker_id);
    const open = one && one.end === null;
    if (data.step_state === "not_running") {
      if (!open) return;
      one.output = data.output_event_name;
      one.error = data.error;
      this.#finish(one, time, data.outcome ?? "returned");
      return;
    }
    if (open && one.attempt === data.attempt) {
      if (one.state === data.step_state) return;
      // Queued again without an end: the process that executed it is gone, and another one begins anew.
      if (data.step_state !== "preparing") { one.enter(data.step_state, time); return; }
    }
    if (open) this.#finish(one, time, "interrupted");
    one = new Execution(data, time);
    this.#latest.set(data.worker_id, one);
    this.#opened(one.step).add(one);
    this.executions.push(one);
    if (this.executions.length > MOST_EXECUTIONS * 1.1) this.executions = this.executions.slice(-MOST_EXECUTIONS);
  }

  #opened(step) {
    if (!this.#open.has(step)) this.#open.set(step, new Set());
    return this.#open.get(step);
  }

  #finish(one, time, outcome) {
    one.finish(time, outcome);
    this.#opened(one.step).delete(one);
  }

  /** Whatever is in progress has ended with the run. */
  close(time) {
    for (const set of this.#open.values()) for (const one of [...set]) this.#finish(one, time, "cancelled");
    this.version += 1;
  }

  /** How a step stands: "running", "waiting", "failed", "done" or "", from its executions and its counts. */
  light(step, now) {
    const counts = this.doc.steps?.[step] ?? {};
    let waiting = false;
    for (const one of this.#open.get(step) ?? []) {
      if (one.state === "running") return "running";
      waiting ||= one.state === "waiting";
    }
    // A step that is over within a frame is seen for a moment.
    const lit = this.#lit(step);
    if (lit !== null && now - lit < 350) return "running";
    if (waiting) return "waiting";
    if (this.active && !this.#open.has(step)) {
      if (counts.running) return "running";
      if (counts.waiting) return "waiting";
    }
    if (counts.failed) return "failed";
    return counts.done ? "done" : "";
  }

  #lit(step) {
    for (let n = this.executions.length - 1; n >= Math.max(0, this.executions.length - 50); n--) {
      if (this.executions[n].step === step) return this.executions[n].begun;
    }
    return null;
  }
}

const COUNTS = ["queued", "running", "waiting", "delayed", "done", "failed", "cancelled", "retried"];

/** Return counts in words: "3 running, 3 done". Those that failed or were cancelled are not also "done". */
export function countsText(counts) {
  if (!counts) return "";
  const shown = { ...counts, done: Math.max(0, (counts.done ?? 0) - (counts.failed ?? 0) - (counts.cancelled ?? 0)), delayed: counts.delayed };
  return COUNTS.filter(name => shown[name]).map(name => `${shown[name].toLocaleString("en")} ${name}`).join(", ");
}
