// The list of runs: newest first, in pages, looked at again every few seconds.

import { get } from "./api.js";
import { ago, make, plural, words } from "./dom.js";

const PAGE = 50, EVERY = 3000;

export class RunList {
  #runs = new Map();
  #items = new Map();
  #next = null;
  #selected = null;
  #status = "";
  #busy = false;
  #again = false;
  #timer = 0;

  constructor({ list, empty, more }, { chosen, listed, failed }) {
    Object.assign(this, { list, empty, more, chosen, listed, failed });
    more.addEventListener("click", () => this.#older());
    list.addEventListener("keydown", event => this.#key(event));
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
  }

  set status(status) {
    this.#status = status;
    this.#runs.clear();
    this.#next = null;
    this.refresh();
  }

  select(id) {
    this.#selected = id;
    this.#draw();
  }

  get(id) { return this.#runs.get(id); }

  /** Show what is known about a run from elsewhere. */
  put(run) {
    if (!this.#runs.has(run.id) || this.#status && this.#status !== run.status) return;
    this.#runs.set(run.id, run);
    this.#draw();
  }

  forget(id) {
    this.#runs.delete(id);
    this.#draw();
  }

  #query(before) {
    const query = new URLSearchParams({ limit: PAGE });
    if (this.#status) query.set("status", this.#status);
    if (before) query.set("before", before);
    return `v1/runs?${query}`;
  }

  /** Look at the newest runs again; those of further pages stay as they are. */
  async refresh() {
    if (this.#busy) { this.#again = true; return; }
    this.#busy = true;
    clearTimeout(this.#timer);
    const status = this.#status;
    try {
      const page = await get(this.#query());
      if (status !== this.#status) { this.#again = true; return; }
      const oldest = page.next && page.runs.length ? Date.parse(page.runs.at(-1).created) : -Infinity;
      for (const [id, run] of this.#runs) if (Date.parse(run.created) > oldest) this.#runs.delete(id);
      const further = this.#runs.size > 0;
      this.#add(page, !further);
      this.listed();
    } catch (error) {
      this.failed(error);
    } finally {
      this.#busy = false;
      if (this.#again) { this.#again = false; this.refresh(); }
      else this.#timer = setTimeout(() => { if (!document.hidden) this.refresh(); }, EVERY);
    }
  }

  async #older() {
    this.more.disabled = true;
    try {
      this.#add(await get(this.#query(this.#next)), true);
    } catch (error) {
      this.failed(error);
    } finally {
      this.more.disabled = false;
    }
  }

  #add(page, last) {
    for (const run of page.runs) this.#runs.set(run.id, run);
    if (last) this.#next = page.next;
    this.#draw();
  }

  #draw() {
    const runs = [...this.#runs.values()].sort((a, b) => Date.parse(b.created) - Date.parse(a.created));
    const wanted = runs.map(run => this.#item(run));
    for (const [id, item] of this.#items) if (!this.#runs.has(id)) { item.remove(); this.#items.delete(id); }
    wanted.forEach((item, n) => { if (this.list.children[n] !== item) this.list.insertBefore(item, this.list.children[n] ?? null); });
    this.empty.hidden = runs.length > 0;
    this.empty.textContent = this.#status ? `No run is ${words(this.#status)}.` : "No runs yet.";
    this.more.hidden = !this.#next;
  }

  #item(run) {
    let item = this.#items.get(run.id);
    if (!item) {
      const button = make("button", { type: "button" },
        make("i", { className: "dot" }), make("span", { className: "name" }), make("span", { className: "state" }),
        make("span", { className: "id" }), make("time", {}));
      button.addEventListener("click", () => this.chosen(run.id));
      item = make("li", { data: { run: run.id } }, button);
      this.#items.set(run.id, item);
    }
    const [dot, name, state, id, time] = item.firstChild.children;
    const status = run.questions && run.status === "running" ? "waiting" : run.status;
    const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
    dot.dataset.status = state.dataset.status = status;
    put(name, run.workflow);
    put(state, run.questions ? plural(run.questions, "question") : words(status));
    put(id, run.id);
    put(time, ago(Date.parse(run.created)));
    time.dateTime = run.created;
    time.title = new Date(run.created).toLocaleString();
    if (run.id === this.#selected) item.firstChild.setAttribute("aria-current", "true");
    else item.firstChild.removeAttribute("aria-current");
    return item;
  }

  #key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...this.list.querySelectorAll("button")];
    buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    event.preventDefault();
  }
}
