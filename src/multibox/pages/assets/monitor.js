"use strict";
/* The live page over run folders: a table of runs, a card for each one ticked, curves, sample predictions, notes, settings. */
{
const { data, el, replace, section, contents, number, percent, count, colour, select, slider } = multibox;
const ACTIVE = ["starting", "training", "validating"];
const MOST_SHOWN = 8, FIRST_SHOWN = 4;
const EVERY = 400; // milliseconds between two drawings, at least
const SAVED = "multibox-monitor";

const runs = new Map(data.runs.map((run) => [run.id, run]));
const histories = new Map(), cursors = new Map();
/** Ticked runs and the number of their colour. */
const hues = new Map();
let clock = 0; // seconds that the server's clock is ahead of ours

const status = el("p", { class: "live", role: "status" }, "connecting");
const say = (text, kind) => { if (status.textContent !== text) status.textContent = text; status.className = `live ${kind}`; };
const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const isActive = (run) => ACTIVE.includes(run.state);
const short = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole < 600 && whole % 60 ? ` ${whole % 60} s` : ""}`;
  return whole < 172800 ? `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min` : `${Math.round(whole / 86400)} days`;
};
const ago = (time) => (time === null ? "–" : `${short(Math.max(0, Date.now() / 1000 + clock - time))} ago`);
const date = (time) => (time === null || time === undefined ? "–" : new Date(1000 * time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
const stepText = (run) => (run.step === null ? "–" : count(run.step) + (run.steps === null ? "" : ` of ${count(run.steps)}`));
const WORDS = { unknown: "no status file", newer: "newer version" };
function stateText(run) {
  if (run.stopping) return "stopping";
  if (run.state === "lost") return `no sign of life for ${short(Math.max(0, Date.now() / 1000 + clock - run.updated))}`;
  return WORDS[run.state] || run.state;
}

/* Which runs are shown */
const ordered = () => [...runs.values()].sort((a, b) => isActive(b) - isActive(a) || (b.started || b.updated || 0) - (a.started || a.updated || 0) || a.name.localeCompare(b.name));
function tick(id) {
  const taken = new Set(hues.values());
  hues.set(id, [...Array(MOST_SHOWN).keys()].find((place) => !taken.has(place)));
}
function recall() {
  let saved = [];
  try { saved = JSON.parse(sessionStorage.getItem(SAVED) || "[]").filter((id) => runs.has(id)); } catch { /* none */ }
  const first = ordered();
  const wanted = saved.length ? saved : [...first.filter(isActive).slice(0, FIRST_SHOWN).map((run) => run.id), ...(first.length ? [first[0].id] : [])];
  new Set(wanted.slice(0, MOST_SHOWN)).forEach(tick);
}
function toggle(id, on) {
  if (on && hues.size >= MOST_SHOWN) {
    say(`at most ${MOST_SHOWN} runs are shown at once; untick one first`, "");
    setTimeout(() => { if (source.readyState === EventSource.OPEN) say("live", "on"); }, 6000);
    rows.get(id).box.checked = false;
    return;
  }
  if (on) tick(id); else { hues.delete(id); histories.delete(id); cursors.delete(id); }
  try { sessionStorage.setItem(SAVED, JSON.stringify([...hues.keys()])); } catch { /* a private window */ }
  connect();
  draw();
  loadSettings();
}

/* The table of runs; rows are changed in place, so that focus and scrolling stay */
const COLUMNS = [["State", (run) => stateText(run)], ["Step", stepText, true], ["Time left", (run) => (isActive(run) ? short(run.seconds_left) : "–"), true],
  ["Best mAP", (run) => number(run.best), true], ["Last mAP", (run) => number(run.last), true], ["Loss", (run) => number(run.loss), true],
  ["Preset", (run) => run.preset || "–"], ["Started", (run) => date(run.started)]];
const rows = new Map();
const body = el("tbody");
const found = el("p", { class: "note" });
const filter = el("input", { type: "search", "aria-label": "Filter runs by name, state or preset", oninput: () => drawTable() });
const filterLabel = el("label", {}, el("span", {}, "Filter by name, state or preset"), filter);

function makeRow(run) {
  const box = el("input", { type: "checkbox", onchange: () => toggle(run.id, box.checked) });
  const swatch = el("span", { class: "swatch" });
  const name = el("span");
  const cells = COLUMNS.map(([, , right]) => el("td", { class: right ? "number" : null }));
  const label = el("label", { class: "check" }, box, swatch, name);
  return { line: el("tr", {}, el("td", { class: "name" }, label), cells), box, swatch, name, cells };
}

function drawTable() {
  const wanted = filter.value.trim().toLowerCase();
  const order = ordered().filter((run) => !wanted || `${run.name} ${stateText(run)} ${run.preset}`.toLowerCase().includes(wanted));
  for (const [id, row] of rows) if (!runs.has(id)) { row.line.remove(); rows.delete(id); }
  const lines = order.map((run) => {
    if (!rows.has(run.id)) rows.set(run.id, makeRow(run));
    const row = rows.get(run.id), hue = hues.get(run.id);
    setText(row.name, run.name);
    row.box.checked = hue !== undefined;
    row.swatch.style.background = hue === undefined ? "transparent" : colour(hue);
    row.line.className = hue === undefined ? "" : "shown";
    COLUMNS.forEach(([, value], place) => setText(row.cells[place], value(run)));
    row.cells[0].className = `state ${run.state}`;
    return row.line;
  });
  if (lines.length !== body.children.length || lines.some((line, place) => body.children[place] !== line)) {
    const focused = document.activeElement;
    body.replaceChildren(...lines);
    if (body.contains(focused)) focused.focus({ preventScroll: true });
  }
  const active = [...runs.values()].filter(isActive).length;
  setText(found, `${count(runs.size)} ${runs.size === 1 ? "run" : "runs"} below ${data.root}, ${active} at work${wanted ? `, ${order.length} match` : ""}. Tick up to ${MOST_SHOWN} to see them together.`);
  filterLabel.hidden = runs.size < 6;
  none.hidden = runs.size > 0;
  table.hidden = runs.size === 0;
}
const table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" }, el("table", {},
  el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Run"), COLUMNS.map(([name, , right]) => el("th", { scope: "col", class: right ? "number" : null }, name)))), body));
const none = el("p", { class: "empty" }, "No run is here yet. Start one with ", el("code", {}, "multibox train DATA"), "; it appears by itself.");

/* A card for each run that is shown */
const cards = new Map();
const now = el("div", { class: "now" });
const FACTS = [["Loss", (run) => number(run.loss)], ["Best mAP", (run) => number(run.best)], ["Last mAP", (run) => number(run.last)],
  ["Images/s", (run) => (isActive(run) && run.images_per_second !== null ? run.images_per_second.toFixed(1) : null)], ["Trained", (run) => (run.seconds === null ? null : short(run.seconds))],
  ["Processor", (run) => used(run, "cpu_percent", 0, "%")], ["Memory", (run) => used(run, "memory_gb", 1, "GB")],
  ["GPU", (run) => used(run, "gpu_percent", 0, "%")], ["GPU memory", (run) => used(run, "gpu_memory_gb", 1, "GB")],
  ["Device", (run) => run.device], ["Preset", (run) => run.preset], ["Host", (run) => run.host]];

const used = (run, name, digits, unit) => (isActive(run) && run.hardware[name] !== undefined ? `${run.hardware[name].toFixed(digits)} ${unit}` : null);

function makeCard(id) {
  const parts = { name: el("h3"), state: el("p", { class: "state" }), bar: el("progress", { max: 1, "aria-label": "Share of the steps done" }), left: el("p"), error: el("p", { class: "bad" }), command: el("code") };
  parts.facts = FACTS.map(([name]) => { const value = el("dd"); return { node: el("div", {}, el("dt", {}, name), value), value }; });
  parts.stop = el("button", { type: "button", class: "danger", onclick: () => askToStop(id, parts.stop) }, "Stop and save");
  parts.details = el("details", {}, el("summary", {}, "Command"), el("p", {}, parts.command));
  parts.node = el("article", { class: "run" }, parts.name, parts.state, parts.bar, parts.left, parts.error, el("dl", {}, parts.facts.map((fact) => fact.node)), parts.details, el("div", { class: "actions" }, parts.stop));
  return parts;
}

function drawCards() {
  for (const [id, card] of cards) if (!hues.has(id) || !runs.has(id)) { card.node.remove(); cards.delete(id); }
  for (const [id, hue] of hues) {
    const run = runs.get(id);
    if (!run) continue;
    if (!cards.has(id)) { cards.set(id, makeCard(id)); now.append(cards.get(id).node); }
    const card = cards.get(id);
    card.node.style.setProperty("--run", colour(hue));
    setText(card.name, run.name);
    setText(card.state, stateText(run) + (isActive(run) && Date.now() / 1000 + clock - run.updated > 30 ? `, silent for ${short(Date.now() / 1000 + clock - run.updated)}` : ""));
    card.state.className = `state ${run.state}`;
    const share = run.steps ? Math.min(1, (run.step || 0) / run.steps) : null;
    card.bar.hidden = share === null;
    if (share !== null) card.bar.value = share;
    setText(card.left, [`step ${stepText(run)}`, run.epoch === null ? "" : `epoch ${count(run.epoch)}`, isActive(run) && run.seconds_left !== null ? `${short(run.seconds_left)} left` : "", isActive(run) ? "" : `last sign ${ago(run.updated)}`].filter(Boolean).join(" · "));
    setText(card.error, run.error || "");
    card.error.hidden = !run.error;
    card.facts.forEach((fact, place) => { const value = FACTS[place][1](run); fact.node.hidden = value === null || value === undefined || value === "–"; setText(fact.value, value || ""); });
    card.details.hidden = !run.command;
    setText(card.command, run.command || "");
    card.stop.hidden = !isActive(run) || run.state === "starting";
    card.stop.disabled = Boolean(run.stopping);
    setText(card.stop, run.stopping ? "Asked to stop" : "Stop and save");
  }
  nothing.hidden = hues.size > 0;
}
const nothing = el("p", { class: "empty" }, "No run is ticked in the table above.");

/* Stopping: asks first */
const question = el("p"), trouble = el("p", { class: "bad", role: "alert" });
const yes = el("button", { type: "button", class: "danger" }, "Save and stop");
const dialog = el("dialog", { "aria-labelledby": "stop-question" }, question, trouble,
  el("div", { class: "actions" }, yes, el("button", { type: "button", onclick: () => dialog.close() }, "Go on training")));
question.id = "stop-question";
function askToStop(id, from) {
  question.textContent = `Stop ${runs.get(id).name}? It finishes its step, saves, and ends. multibox train --resume goes on from there.`;
  trouble.textContent = "";
  yes.onclick = async () => {
    trouble.textContent = await sendStop(id);
    if (!trouble.textContent) dialog.close();
  };
  dialog.onclose = () => from.focus();
  dialog.showModal();
}
async function sendStop(id) {
  try {
    const answer = await fetch("stop", { method: "POST", headers: { "Content-Type": "application/json", "X-Multibox": "1" }, body: JSON.stringify({ run: id }) });
    if (answer.ok) return "";
    const what = await answer.json().catch(() => ({}));
    return `The run was not asked: ${what.error || answer.statusText || answer.status}.`;
  } catch { return "The run was not asked: the monitor does not answer."; }
}

/* Sample predictions */
const sample = { run: "", place: null, key: "" };
const shownImage = el("img", { alt: "" }), imageLink = el("a", { target: "_blank", rel: "noopener" }, shownImage), caption = el("figcaption");
const sampleControls = el("div", { class: "controls" }), sampleFigure = el("figure", {}, imageLink, caption);
const noSamples = el("p", { class: "empty" }, "No sample predictions yet: they come with each validation.");
function drawSamples(shown) {
  const some = shown.filter(({ history }) => history.validations.some((one) => one.sample));
  const one = some.find(({ run }) => run.id === sample.run) || some[0];
  const list = one ? one.history.validations.filter((each) => each.sample) : [];
  noSamples.hidden = list.length > 0;
  sampleFigure.hidden = sampleControls.hidden = list.length === 0;
  if (!one) { sample.key = ""; return; }
  const key = JSON.stringify([one.run.id, some.map(({ run }) => run.id), list.length]);
  if (key !== sample.key) {
    const focused = sampleControls.contains(document.activeElement) ? document.activeElement.tagName : "";
    sample.key = key;
    const last = list.length - 1;
    const place = sample.place === null ? last : Math.min(sample.place, last);
    replace(sampleControls,
      some.length > 1 && select("Run", some.map(({ run }) => [run.id, run.name]), one.run.id, (value) => { sample.run = value; sample.place = null; draw(); }),
      list.length > 1 && slider("Validation", { min: 1, max: list.length, step: 1, digits: 0, value: place + 1, oninput: (value) => { sample.place = value - 1 === last ? null : value - 1; draw(); } }));
    if (focused) sampleControls.querySelector(focused.toLowerCase())?.focus();
  }
  const validation = list[sample.place === null ? list.length - 1 : Math.min(sample.place, list.length - 1)];
  const address = `image?run=${one.run.id}&name=${validation.sample}`;
  if (shownImage.getAttribute("src") !== address) { shownImage.src = address; imageLink.href = address; }
  shownImage.alt = `Predictions of ${one.run.name} on validation images after step ${validation.step}`;
  setText(caption, `${one.run.name}, step ${count(validation.step)}, mAP ${number(validation.val_map50)}. Click to see it in full size.`);
}

/* Notes */
const notes = el("ol");
const noNotes = el("p", { class: "empty" }, "No notes.");
let noted = "";
function drawNotes(shown) {
  const all = shown.flatMap(({ run, history }) => history.notes.map((note) => ({ ...note, run })));
  all.sort((a, b) => (b.time || 0) - (a.time || 0));
  const key = JSON.stringify([shown.map(({ run }) => run.id), all.length]);
  noNotes.hidden = all.length > 0;
  if (key === noted) return;
  noted = key;
  replace(notes, all.slice(0, 300).map((note) => el("li", {}, el("small", {}, [shown.length > 1 ? note.run.name : "", note.step === null ? "" : `step ${count(note.step)}`, date(note.time)].filter(Boolean).join(" · ")), note.lines.map((line) => el("div", {}, line)))));
}

/* In which settings the shown runs differ */
const settings = el("div");
let asked = 0;
async function loadSettings() {
  const ids = [...hues.keys()].filter((id) => runs.has(id));
  const mine = ++asked;
  if (ids.length < 2) { replace(settings, el("p", { class: "empty" }, "Tick two runs or more to see in which settings they differ.")); return; }
  try {
    const answer = await (await fetch(`settings?${ids.map((id) => `run=${id}`).join("&")}`)).json();
    if (mine !== asked) return;
    const names = answer.runs.map((id) => runs.get(id)?.name || id);
    replace(settings, answer.rows.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Setting"), names.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, answer.rows.map((row) => el("tr", {}, el("th", { scope: "row" }, row.key), row.values.map((value) => el("td", {}, value === null ? "–" : value))))))) : null,
    el("p", { class: "note" }, answer.rows.length ? `${count(answer.same)} other settings are the same.` : `All ${count(answer.same)} settings are the same.`));
  } catch { if (mine === asked) replace(settings, el("p", { class: "empty" }, "The settings could not be read.")); }
}

/* What the server sends */
let source = null, again = 0;
function connect() {
  source?.close();
  clearTimeout(again);
  const show = [...hues.keys()].map((id) => `${id}:${cursors.get(id) || ""}`).join("~");
  source = new EventSource(`events?show=${encodeURIComponent(show)}`);
  source.onopen = () => say("live", "on");
  source.onmessage = (event) => {
    for (const part of event.lastEventId.split("~")) { const [id, cursor] = part.split(":"); if (cursor !== undefined && hues.has(id)) cursors.set(id, cursor); }
    take(JSON.parse(event.data));
  };
  source.addEventListener("bye", () => say("the monitor has ended; this is the last it told. Start it again with multibox monitor", "off"));
  source.onerror = () => {
    // The browser gives up after a refusal: a new token, or too many pages
    const refused = source.readyState === EventSource.CLOSED;
    if (refused) say("the monitor refuses this page: open the address that it printed, or close other pages", "off");
    else if (!status.textContent.startsWith("the monitor has ended")) say("no connection to the monitor; trying again", "off");
    if (refused) again = setTimeout(connect, 5000);
  };
}
function take(news) {
  clock = news.now - Date.now() / 1000;
  const before = hues.size, known = runs.size;
  for (const id of news.gone) { runs.delete(id); hues.delete(id); histories.delete(id); cursors.delete(id); }
  for (const run of news.runs) runs.set(run.id, run);
  if (!known && runs.size) { recall(); connect(); loadSettings(); }
  for (const [id, more] of Object.entries(news.histories)) {
    if (!hues.has(id)) continue;
    if (more.anew || !histories.has(id)) { histories.set(id, more); continue; }
    const history = histories.get(id);
    for (const name of ["steps", "epochs"]) for (const column of Object.keys(more[name])) history[name][column].push(...more[name][column]);
    history.validations.push(...more.validations);
    history.notes.push(...more.notes);
  }
  if (hues.size !== before) loadSettings();
  draw();
}

/* Drawing, at most every so often and not behind another tab */
let drawn = -Infinity, due = 0;
function draw() {
  if (due || document.hidden) return;
  due = setTimeout(() => { due = 0; drawn = performance.now(); drawAll(); }, Math.max(0, drawn + EVERY - performance.now()));
}
function drawAll() {
  const shown = [...hues].filter(([id]) => runs.has(id) && histories.has(id)).map(([id, hue]) => ({ run: runs.get(id), history: histories.get(id), hue: colour(hue) }));
  drawTable();
  drawCards();
  monitorCharts.draw(shown);
  drawSamples(shown);
  drawNotes(shown);
  const first = [...hues.keys()].map((id) => runs.get(id)).find((run) => run && isActive(run));
  document.title = first ? `${first.steps ? `${percent(Math.min(1, (first.step || 0) / first.steps))} · ` : ""}${first.name} · multibox monitor` : "multibox monitor";
}
document.addEventListener("visibilitychange", draw);
window.addEventListener("resize", draw);
setInterval(draw, 5000); // ages grow without news

if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);
recall();
document.getElementById("monitor").append(status, contents([["runs", "Runs"], ["now", "Now"], ["curves", "Curves"], ["samples", "Samples"], ["notes", "Notes"], ["settings", "Settings"]]),
  el("div", { class: "runs" }, section("runs", "Runs", "All runs below the folder, those at work first. Tick the ones to look at.", found, el("div", { class: "controls" }, filterLabel), none, table)),
  section("now", "Now", "How the ticked runs stand. A run that gives no sign of life was killed or its machine is off: multibox train --resume goes on from its last save.", nothing, now),
  monitorCharts.make(draw),
  el("div", { class: "samples" }, section("samples", "Sample predictions", "The same validation images after each validation. Move the slider to see them get better.", noSamples, sampleControls, sampleFigure)),
  el("div", { class: "notes" }, section("notes", "Notes", "What the runs had to say, the newest first.", noNotes, notes)),
  section("settings", "Settings that differ", "Why one run may be better than another.", settings), dialog);
drawAll();
connect();
loadSettings();
}
