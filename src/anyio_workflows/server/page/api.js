// Requests to the server the page came from, and the stream of a run's events.
// All addresses are relative: the page works wherever the server is mounted.

import { $, sleep } from "./dom.js";

const TOKEN = "anyio-workflows-token";
const QUIET = 45_000;  // the server sends something every 15 s: three times that is a dead connection
const SLICE = 12;  // ms of reading before the browser may draw

if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem(TOKEN, decodeURIComponent(location.hash.slice("#token=".length)));
  history.replaceState(null, "", location.pathname + location.search);
}

/** What the server answered instead (RFC 9457). `path` says which part of the data is wrong. */
export class Problem extends Error {
  constructor(status, { title, detail, path } = {}) {
    super(detail || title || `the server answered ${status}`);
    Object.assign(this, { status, path });
  }
}

/** The server did not answer. */
export class Unreachable extends Error {
  constructor() { super("The server cannot be reached."); }
}

let asking = null;

/** Ask for the token; several requests that need one share the question. */
function askForToken() {
  return asking ??= new Promise(resolve => {
    const dialog = $("token-dialog");
    $("token-fault").textContent = sessionStorage.getItem(TOKEN) ? "The server does not accept that token." : "";
    $("token").value = "";
    $("token-form").onsubmit = () => sessionStorage.setItem(TOKEN, $("token").value.trim());
    dialog.oncancel = event => event.preventDefault();
    dialog.onclose = () => { asking = null; resolve(); };
    dialog.showModal();
  });
}

/** Return the response; ask for the token as often as it is refused. Throws a Problem, or Unreachable. */
export async function call(path, { method, body, accept = "application/json", signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { accept };
    if (token) headers.authorization = `Bearer ${token}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"), headers, signal, cache: "no-store",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      throw signal?.aborted ? error : new Unreachable();
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new Problem(response.status, await response.json().catch(() => ({})));
    if (token === sessionStorage.getItem(TOKEN)) await askForToken();
  }
}

export const get = async (path, options) => (await call(path, options)).json();
export const runPath = (id, rest = "") => `v1/runs/${encodeURIComponent(id)}${rest}`;
export const workflowPath = (name, rest = "") => `v1/workflows/${encodeURIComponent(name)}${rest}`;

/** Read an event stream to its end; call `take` with the kind, the data and the id of each frame. */
async function readStream(response, take, heard, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  signal.addEventListener("abort", () => reader.cancel().catch(() => {}));
  let rest = "", kind = "", data = [], id = "", since = performance.now();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (let line of lines) {
        if (line.endsWith("\r")) line = line.slice(0, -1);
        if (line === "") {
          if (data.length) take(kind || "message", data.join("\n"), id);
          kind = ""; data = []; id = "";
          continue;
        }
        const colon = line.indexOf(":");
        if (colon === 0) continue;
        const name = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
        if (name === "data") data.push(text);
        else if (name === "id") id = text;
        else if (name === "event") kind = text;
        else if (name === "retry") take("retry", text, "");
      }
      if (!document.hidden && performance.now() - since > SLICE) {
        await sleep(0);
        since = performance.now();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * The events of one run, however often the connection is lost: each time it is opened again behind the last
 * event that was seen, after a delay that grows while the server is away. `pause()` gives the connection back: a
 * browser has six for each server, in all tabs.
 *
 * `take(kind, data, raw)` gets events ("message"), gaps and the end; `state(name, seconds)` how the connection is:
 * "connecting", "live", "lost" (with the seconds until the next try), "ended", "refused" (with the Problem).
 */
export class Feed {
  #stop = new AbortController();
  #attempt = null;
  #wake = () => {};
  #paused = false;
  #base = 1000;
  cursor = 0;
  ended = false;

  constructor(id, { take, state, reopened }) {
    Object.assign(this, { id, take, state, reopened });
  }

  /** Begin to read: from a response that is there already, or with a request. */
  async read(response = null) {
    const signal = this.#stop.signal;
    for (let failures = 0; !signal.aborted && !this.ended;) {
      while (this.#paused && !signal.aborted) await new Promise(resolve => { this.#wake = resolve; });
      const attempt = this.#attempt = new AbortController();
      let opened = false;
      const abort = () => attempt.abort();
      signal.addEventListener("abort", abort);
      let watch = 0;
      const heard = () => { clearTimeout(watch); watch = setTimeout(abort, QUIET); };
      try {
        if (!response) {
          if (!failures) this.state("connecting");
          heard();
          const path = runPath(this.id, `/events?after=${this.cursor}&internal=1`);
          response = await call(path, { accept: "text/event-stream", signal: attempt.signal });
          this.reopened?.();
        }
        if (response.status === 204) { this.#end(null); break; }
        this.state("live");
        opened = true;
        await readStream(response, (...frame) => this.#frame(...frame), heard, attempt.signal);
      } catch (error) {
        if (signal.aborted) return;
        if (error.status >= 400 && error.status < 500 && error.status !== 429) {
          this.ended = true;
          this.state("refused", error);
          return;
        }
      } finally {
        clearTimeout(watch);
        signal.removeEventListener("abort", abort);
        response = null;
      }
      if (this.ended || signal.aborted) break;
      failures = opened ? 0 : failures + 1;
      if (!this.#paused) await this.#pause(Math.min(this.#base * 2 ** failures, 15_000));
    }
  }

  /** Try again now instead of after the delay. */
  hurry() { this.#wake(); }

  pause() {
    if (this.ended) return;
    this.#paused = true;
    this.#attempt?.abort();
    this.#wake();
  }

  resume() {
    this.#paused = false;
    this.#wake();
  }

  stop() { this.#stop.abort(); this.#wake(); }

  #frame(kind, raw, id) {
    if (this.#stop.signal.aborted) return;
    if (kind === "retry") { this.#base = Math.max(100, Number(raw) || 1000); return; }
    const data = JSON.parse(raw);
    if (kind === "end") this.#end(data);
    else if (kind === "gap") { this.cursor = Math.max(this.cursor, data.last); this.take(kind, data, raw); }
    else if (kind === "message") {
      if (id) this.cursor = Number(id);
      this.take(kind, data, raw);
    }
  }

  #end(data) {
    this.ended = true;
    this.state("ended");
    this.take("end", data, "");
  }

  async #pause(ms) {
    const until = performance.now() + ms;
    let hurried = false;
    while (!hurried && !this.#stop.signal.aborted) {
      const left = until - performance.now();
      if (left <= 0) break;
      this.state("lost", Math.ceil(left / 1000));
      await Promise.race([sleep(Math.min(left, 1000)), new Promise(resolve => { this.#wake = () => { hurried = true; resolve(); }; })]);
    }
  }
}
