// The page: starts runs, and shows one of them. `#run/ID` is a link to a run, `#run/ID/12` to its event 12.

import { Feed, call, get, runPath, workflowPath } from "./api.js";
import { $, duration, factList, make, notify, plural, showJson, sleep, throttled, words } from "./dom.js";
import { SchemaForm } from "./forms.js";
import { GraphView } from "./graph.js";
import { LogView, joinedText } from "./log.js";
import { Run } from "./run.js";
import { RunList } from "./runs.js";
import { Timeline } from "./timeline.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
let view = null;  // what is shown on the right: { run, feed, step, wanted, refresh, asking, again, deleting }
let inspected = null;  // the data that "Copy" copies

const graph = new GraphView($("graph"), step => filterStep(view?.step === step ? null : step));
const timeline = new Timeline($("timeline"), $("canvas"), $("timeline-size"), {
  order: () => graph.steps,
  chosen: one => { log.unselect(); inspect(`${one.step} #${one.worker}${one.attempt > 1 ? `, attempt ${one.attempt}` : ""}`, one.describe()); },
});
const log = new LogView($("events"), $("events-size"), {
  chosen: row => inspectRow(row),
  followed: on => { $("follow").checked = on; },
});
const list = new RunList({ list: $("runs"), empty: $("no-runs"), more: $("more") }, {
  chosen: id => { location.hash = `run/${encodeURIComponent(id)}`; },
  listed: () => { if (!view || view.feed.ended) connection("live"); noticeOthers(); },
  failed: error => { if (error.status) notify(error.message, "bad"); else connection("lost"); },
});

// --- The connection -------------------------------------------------------------------------------

function connection(state, seconds) {
  const texts = { connecting: "connecting", live: "live", lost: seconds ? `reconnecting in ${seconds} s` : "no connection" };
  const text = texts[state] ?? "live";
  $("connection").dataset.state = texts[state] ? state : "live";
  if ($("connection").textContent !== text) $("connection").textContent = text;
  $("connection").title = state === "lost" ? "Try again now" : "Connection to the server";
}

function hurry() {
  view?.feed.hurry();
  list.refresh();
}
$("connection").addEventListener("click", hurry);
addEventListener("online", hurry);

// A tab that nobody looks at gives its connection to others, and comes back with its cursor.
let leaving = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(leaving);
  if (document.hidden) leaving = setTimeout(() => view?.feed.pause(), 30_000);
  else view?.feed.resume();
});

// --- Start a run ----------------------------------------------------------------------------------

const workflows = new Map();
let form = null;

const describe = name => {
  if (!workflows.has(name)) {
    const asked = get(workflowPath(name));
    asked.catch(() => workflows.delete(name));
    workflows.set(name, asked);
  }
  return workflows.get(name);
};

async function loadWorkflows() {
  for (let delay = 500; ; delay = Math.min(delay * 2, 10_000)) {
    try {
      const { workflows: known } = await get("v1/workflows");
      $("workflow").replaceChildren(...known.map(({ name }) => make("option", { value: name, textContent: name })));
      $("run-button").disabled = !known.length;
      if (!known.length) $("doc").textContent = "This server has no workflows.";
      return;
    } catch (error) {
      if (error.status) { $("start-fault").textContent = error.message; return; }
      connection("lost");
      await sleep(delay);
    }
  }
}

async function showForm() {
  const name = $("workflow").value;
  if (!name) return;
  $("start-fault").textContent = "";
  try {
    const workflow = await describe(name);
    if ($("workflow").value !== name) return;
    $("doc").textContent = (workflow.doc ?? "").trim().split("\n\n")[0];
    $("input").dataset.workflow = name;
    form = new SchemaForm($("input"), workflow.input ?? {}, { prefix: "$.input" });
    if (!view) await graph.show(name);
  } catch (error) {
    form = null;
    $("start-fault").textContent = error.message;
  }
}
$("workflow").addEventListener("change", showForm);

$("start").addEventListener("submit", async event => {
  event.preventDefault();
  $("start-fault").textContent = "";
  const input = form?.read();
  if (!input) return;
  const focused = document.activeElement;
  $("run-button").disabled = true;
  try {
    // One request starts the run and follows it, so that no execution is missed.
    const path = workflowPath($("workflow").value, "/runs?internal=1");
    const response = await call(path, { body: { input }, accept: "text/event-stream" });
    const id = decodeURIComponent(response.headers.get("location").split("/").at(-1));
    await open(id, { response });
    list.refresh();
  } catch (error) {
    if (!form.blame(error.path, error.message)) $("start-fault").textContent = error.message;
  } finally {
    $("run-button").disabled = false;
    if (document.activeElement === document.body) focused.focus();  // a disabled button has lost it
  }
});

// --- One run --------------------------------------------------------------------------------------

let opening = null;  // the last call of open(): of two that overlap, the later one counts

/** Return the document of a run; wait for the server if it is away. */
async function find(id, wanted) {
  for (let delay = 500; wanted(); delay = Math.min(delay * 2, 10_000)) {
    try {
      return await get(runPath(id));
    } catch (error) {
      if (!wanted()) break;
      if (error.status) {
        blank(error.status === 404 ? `There is no run ${id}.` : error.message);
        break;
      }
      connection("lost");
      await sleep(delay);
    }
  }
  return null;
}

/** Show a run: from its first event, or from a response that is its stream. */
async function open(id, { response = null, seq = null } = {}) {
  if (view?.run.id === id && !response) {
    if (seq !== null) chooseEvent(seq);
    return;
  }
  view?.feed.stop();
  view = null;
  const opened = opening = Symbol(id), doc = await find(id, () => opened === opening);
  if (!doc || opened !== opening) {
    response?.body.cancel().catch(() => {});
    return;
  }
  const run = new Run(doc), shown = { run, step: null, wanted: seq };
  shown.feed = new Feed(id, {
    take: (kind, data, raw) => take(shown, kind, data, raw),
    state: (state, detail) => { if (view === shown) state === "refused" ? refused(shown, detail) : connection(state, detail); },
    reopened: () => run.reopened(shown.feed.cursor),
  });
  shown.refresh = throttled(() => refresh(shown), 250);
  view = shown;
  const hash = `#run/${encodeURIComponent(id)}`;
  if (location.hash.split("/").slice(0, 2).join("/") !== hash) history.pushState(null, "", hash);
  closeInspector();
  disarm();
  $("questions").replaceChildren();
  showStep();
  log.show(run);
  timeline.show(run);
  if (seq !== null) log.follow = $("follow").checked = false;
  showRun();
  list.select(id);
  const drawn = graph.show(doc.workflow);
  shown.feed.read(response);
  await drawn;
  if (view === shown) timeline.show(run);  // now the order of the steps is known
}

function blank(text = "") {
  view = opening = null;
  document.title = "Workflows";
  $("run-title").textContent = text ? "Run not found" : "No run selected";
  for (const id of ["status", "elapsed", "summary", "time-note"]) $(id).textContent = "";
  for (const id of ["details", "cancel", "retry", "delete", "outcome", "run-id"]) $(id).hidden = true;
  $("questions").replaceChildren();
  closeInspector();
  disarm();
  showStep();
  log.show(null);
  timeline.show(null);
  list.select(null);
  $("no-events").textContent = text || "Start a run, or choose one on the left.";
  $("no-events").hidden = $("no-times").hidden = false;
  if ($("workflow").value) graph.show($("workflow").value);
}

function refused(shown, problem) {
  if (problem.status === 404) gone(shown);
  else notify(problem.message, "bad");
}

function gone(shown) {
  notify(`The run ${shown.run.id} has been removed.`);
  list.forget(shown.run.id);
  history.replaceState(null, "", location.pathname + location.search);
  blank();
}

/** Take what the stream said. */
function take(shown, kind, data, raw) {
  const { run } = shown;
  if (kind === "gap") run.takeGap(data);
  else if (kind === "end") {
    if (data) run.doc.status = data.status;
    shown.refresh();
    list.refresh();
  } else {
    const event = run.take(data, raw);
    if (event) shown.refresh();
    if (event?.stops) list.refresh();
  }
}

/** Ask how the run stands: its status, exact counts, open questions. */
async function refresh(shown) {
  if (shown !== view || shown.deleting || shown.asking) { shown.again = Boolean(shown.asking); return; }
  shown.asking = ask(shown);
  await shown.asking;
  shown.asking = null;
  if (shown.again) { shown.again = false; shown.refresh(); }
}

async function ask(shown) {
  const { run } = shown;
  try {
    const doc = await get(runPath(run.id));
    run.update(doc);
    list.put(doc);
    if (!run.active) run.close(run.ended ?? run.lastTime);
    if (shown !== view) return;
    showRun();
    await showQuestions(shown);
    if (shown.feed.ended && (run.active || doc.last_seq > shown.feed.cursor)) restart(shown);
  } catch (error) {
    if (error.status === 404 && shown === view) gone(shown);
  }
}

/** Follow a run that continues after its end: it was retried. */
function restart(shown) {
  const { feed } = shown;
  shown.feed = new Feed(feed.id, feed);
  shown.feed.cursor = feed.cursor;
  shown.feed.read();
}

/** The list may know more than the stream: that the run was retried, or removed, elsewhere. */
function noticeOthers() {
  const known = view && list.get(view.run.id);
  if (known && (known.status !== view.run.doc.status || known.questions !== view.run.doc.questions)) view.refresh();
}

function showRun() {
  const { run } = view, { doc } = run;
  document.title = `${doc.workflow}: ${words(doc.status)}`;
  $("run-title").textContent = doc.workflow;
  const status = doc.questions && run.active ? "waiting" : doc.status;
  if ($("status").dataset.status !== status || !$("status").textContent) $("status").textContent = words(status);
  $("status").dataset.status = status;
  $("run-id").hidden = false;
  $("run-id").textContent = doc.id;
  $("run-id").href = `#run/${encodeURIComponent(doc.id)}`;
  $("details").hidden = false;
  $("cancel").hidden = !run.active;
  $("retry").hidden = !["failed", "timed_out", "cancelled", "incompatible", "stuck"].includes(doc.status);
  $("delete").hidden = run.active;
  showOutcome(run);
  showSummary();
}

function showSummary() {
  const { run } = view;
  const facts = [plural(run.doc.last_seq, "event")];
  if (run.doc.log?.readers > 1) facts.push(plural(run.doc.log.readers, "reader"));
  const text = facts.join(" · ");
  if ($("summary").textContent !== text) $("summary").textContent = text;
  const executions = timeline.count ? plural(timeline.count, "execution") : "";
  if ($("time-note").textContent !== executions) $("time-note").textContent = executions;
  $("no-times").hidden = timeline.count > 0;
  $("no-times").textContent = run.active ? "Waiting for the first execution…" : "Nobody followed this run while it was executed, so there are no times.";
  $("no-events").hidden = log.count > 0;
  $("no-events").textContent = run.events.length ? "No event fits the filter." : "No events yet.";
}

function showOutcome(run) {
  const { doc } = run, place = $("outcome");
  const key = JSON.stringify([doc.status, doc.result, doc.error]);
  if (place.dataset.key === key) { place.hidden = run.active; return; }
  place.dataset.key = key;
  place.hidden = run.active;
  place.dataset.status = doc.status;
  place.replaceChildren();
  if (run.active) return;
  if (doc.error) {
    const { type, message, step, attempts, notes } = doc.error;
    const where = [step && `in step ${step}`, attempts > 1 && `after ${attempts} attempts`].filter(Boolean).join(", ");
    place.append(make("h2", { textContent: type }), make("p", { className: "message", textContent: message }));
    if (where) place.append(make("p", { className: "hint", textContent: where }));
    for (const note of notes ?? []) place.append(make("p", { className: "hint note", textContent: note }));
  } else place.append(make("h2", { textContent: "Result" }), resultElement(doc.result ?? null));
}

function resultElement(result) {
  if (typeof result === "string") return make("p", { className: "message", textContent: result });
  if (result && typeof result === "object" && !Array.isArray(result) && Object.keys(result).length) return factList(Object.entries(result));
  const pre = make("pre");
  showJson(pre, result);
  return pre;
}

// --- Questions ------------------------------------------------------------------------------------

async function showQuestions(shown) {
  const place = $("questions");
  if (!shown.run.doc.questions) {
    if (place.childElementCount) dropQuestions(shown, new Set());
    return;
  }
  const { questions } = await get(runPath(shown.run.id, "/questions"));
  if (shown !== view) return;
  dropQuestions(shown, new Set(questions.map(({ id }) => id)));
  const present = new Set([...place.children].map(one => one.dataset.question));
  for (const question of questions) if (!present.has(question.id)) place.append(questionForm(shown, question));
}

/** Remove the forms of what is answered; what the user has not sent from here, somebody else has. */
function dropQuestions(shown, open) {
  for (const one of [...$("questions").children]) {
    if (open.has(one.dataset.question)) continue;
    if (!one.sent && shown.run.active) notify(`The question of ${one.dataset.asker} has been answered.`);
    const focused = one.contains(document.activeElement);
    one.remove();
    if (focused) ($("questions").querySelector("input, textarea, select, button") ?? $("events")).focus();
  }
}

function questionForm(shown, question) {
  const fields = make("div", { className: "fields" });
  const fault = make("p", { className: "fault" });
  const element = make("form", { noValidate: true, className: "question", data: { question: question.id, asker: question.step } });
  const asked = question.question;
  const text = asked ? ["prefix", "text", "prompt", "question", "message", "msg"].map(name => asked.data?.[name]).find(one => typeof one === "string") : null;
  const heading = make("h2", {}, make("span", { className: "step", textContent: question.step }), ` waits for ${question.answer_type}`);
  element.append(heading);
  if (text) element.append(make("p", { className: "message", textContent: text }));
  const rest = asked ? Object.entries(asked.data ?? {}).filter(([, value]) => value !== text && value !== null) : [];
  if (rest.length) element.append(factList(rest));
  const button = make("button", { className: "primary", textContent: "Answer" });
  element.append(fields, fault, make("div", { className: "actions" }, button));
  const form = new SchemaForm(fields, question.schema, { prefix: "$.data", open: { response: "", ...question.requirements } });
  element.setAttribute("aria-label", `Answer ${question.step}`);
  fault.setAttribute("role", "alert");
  element.addEventListener("submit", async event => {
    event.preventDefault();
    fault.textContent = "";
    const data = form.read();
    if (!data || element.sent) return;
    try {
      element.sent = true;  // the button stays enabled: a disabled one would lose the focus
      await call(runPath(shown.run.id, `/questions/${encodeURIComponent(question.id)}`), { body: { data } });
      const open = new Set([...$("questions").children].map(one => one.dataset.question));
      open.delete(question.id);
      dropQuestions(shown, open);
      shown.refresh();
    } catch (error) {
      element.sent = false;
      if (error.status === 409 || error.status === 404) {
        element.sent = true;
        notify(`Somebody else was faster: the question of ${question.step} is answered already.`);
        shown.refresh();
      } else if (!form.blame(error.path, error.message)) fault.textContent = error.message;
    }
  });
  return element;
}

// --- Cancel, retry, delete ------------------------------------------------------------------------

$("details").addEventListener("click", () => {
  if (!view) return;
  log.unselect();
  timeline.unselect();
  inspect(`Run ${view.run.id}`, view.run.doc);
});

function action(id, act, confirmed = () => true) {
  $(id).addEventListener("click", async () => {
    if (!view || !confirmed()) return;
    const shown = view;
    $(id).disabled = true;
    try {
      await act(shown);
    } catch (error) {
      notify(error.message, "bad");
    } finally {
      $(id).disabled = false;
      if (shown === view) shown?.refresh();
      list.refresh();
    }
  });
}

action("cancel", ({ run }) => call(runPath(run.id, "/cancel?wait=10"), { method: "POST" }));
action("retry", ({ run }) => call(runPath(run.id, "/retry"), { method: "POST" }));
action("delete", async shown => {
  shown.deleting = true;  // ask no more about what is not there in a moment
  try {
    await shown.asking;
    await call(runPath(shown.run.id), { method: "DELETE" });
  } finally {
    shown.deleting = false;
  }
  shown.feed.stop();
  list.forget(shown.run.id);
  if (shown !== view) return;
  history.replaceState(null, "", location.pathname + location.search);
  blank();
}, () => {
  // The first click asks; a second one soon after is the answer.
  if (armed) { disarm(); return true; }
  $("delete").textContent = "Delete for good?";
  armed = setTimeout(disarm, 6000);
  return false;
});

let armed = 0;
function disarm() {
  clearTimeout(armed);
  armed = 0;
  $("delete").textContent = "Delete";
}

// --- Filters, details -----------------------------------------------------------------------------

function filterStep(step) {
  if (!view) return;
  view.step = step;
  showStep();
}

function showStep() {
  const step = view?.step ?? null;
  $("step-filter").hidden = step === null;
  $("step-filter").textContent = step === null ? "" : `step ${step} ×`;
  $("step-filter").setAttribute("aria-label", `Show the events of all steps, not only of ${step}`);
  graph.press(step);
  timeline.setStep(step);
  log.setStep(step, step === null ? undefined : graph.typesOf(step));
}

$("step-filter").addEventListener("click", () => { filterStep(null); $("filter").focus(); });
/** Have a control act: when it is used, and now, since browsers keep its state when the page is loaded again. */
function control(id, event, act) {
  $(id).addEventListener(event, act);
  act();
}
control("filter", "input", () => { log.text = $("filter").value; });
control("internal", "change", () => { log.internal = $("internal").checked; });
control("follow", "change", () => { log.follow = $("follow").checked; });
$("zoom-in").addEventListener("click", () => timeline.zoom(0.5));
$("zoom-out").addEventListener("click", () => timeline.zoom(2));
$("zoom-fit").addEventListener("click", () => timeline.zoom(0));
$("legend").addEventListener("click", () => $("legend").setAttribute("aria-pressed", String(graph.toggleLegend())));

function inspect(title, data) {
  inspected = data;
  $("inspector").hidden = false;
  $("inspector-title").textContent = title;
  showJson($("json"), data);
  $("json").scrollTop = 0;
}

function inspectRow(row) {
  timeline.unselect();
  let seq = row.seq;
  if (row.group) {
    const text = joinedText(row.group);
    seq = row.group[0].seq;
    const title = `${row.group[0].type} × ${row.group.length.toLocaleString("en")}, events ${seq} to ${row.group.at(-1).seq}`;
    inspect(title, text ?? row.group.map(({ data }) => data));
    if (text !== null) $("json").textContent = text;
  } else if (row.gap) inspect("Events that are gone", row.gap);
  else inspect(row.internal ? row.type : `${row.seq} ${row.type}`, row.data);
  if (!row.internal && view) history.replaceState(null, "", `#run/${encodeURIComponent(view.run.id)}/${seq}`);
}

function closeInspector() {
  $("inspector").hidden = true;
  inspected = null;
}
$("close").addEventListener("click", () => {
  closeInspector();
  log.unselect();
  timeline.unselect();
  if (view) history.replaceState(null, "", `#run/${encodeURIComponent(view.run.id)}`);
  $("events").focus();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(typeof inspected === "string" ? inspected : JSON.stringify(inspected, null, 2));
    notify("Copied.");
  } catch {
    getSelection().selectAllChildren($("json"));
    notify("The browser allows no copying here; the text is selected.");
  }
});

/** Choose an event as soon as it is there, whatever is filtered out. */
function chooseEvent(seq) {
  view.wanted = null;
  if (log.choose(seq)) return;
  $("filter").value = log.text = "";
  filterStep(null);
  if (!log.choose(seq)) view.wanted = seq;
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "/" && !typing) { $("filter").focus(); event.preventDefault(); }
  else if (event.key === "Escape" && event.target === $("filter")) { $("filter").value = log.text = ""; $("events").focus(); }
  else if (event.key === "Escape" && !typing && !$("inspector").hidden) $("close").click();
});

// --- Drawing, once per frame at most --------------------------------------------------------------

let lastFrame = 0;
function frame(time) {
  requestAnimationFrame(frame);
  if (!view) return;
  log.update();
  if (view.wanted !== null && view.run.events.at(-1)?.seq >= view.wanted) chooseEvent(view.wanted);
  if (time - lastFrame < (calm.matches ? 500 : 80)) return;
  lastFrame = time;
  const { run } = view;
  graph.light(run, run.active ? Date.now() : Infinity);
  timeline.draw();
  showSummary();
  const elapsed = duration((run.active ? Date.now() : run.ended ?? run.lastTime) - run.created);
  if ($("elapsed").textContent !== elapsed) $("elapsed").textContent = elapsed;
}
requestAnimationFrame(frame);

/** Show what the address says. */
function route() {
  const [, id, seq] = /^#run\/([^/]+)(?:\/(\d+))?$/.exec(location.hash) ?? [];
  if (id) open(decodeURIComponent(id), { seq: seq === undefined ? null : Number(seq) });
  else { view?.feed.stop(); blank(); }
}
addEventListener("hashchange", route);

// What another process executes is not in the stream of this one: look from time to time. The title of a tab
// that nobody looks at says how its run stands.
let rounds = 0;
setInterval(() => { if (view?.run.active && (!document.hidden || ++rounds % 5 === 0)) view.refresh(); }, 3000);

route();
control("status-filter", "change", () => { list.status = $("status-filter").value; });  // and so shows the list
loadWorkflows().then(showForm);
