"use strict";
/* The live page: images or the camera go in, boxes come out; all that follows happens in the page.
   `multibox.live({ names, thresholds, nms, most, ..., detect })`, where `detect(Blob | HTMLCanvasElement)` gives
   `{ width, height, candidates: [{ label, name, score, box }] }`: candidates before suppression, best first. */
multibox.live = (model) => {
  const { el, replace } = multibox;
  const { say, word, named, onLanguage, button, slider } = multibox.parts;
  const MOST_KEPT = 24; // images of the history
  const MOST_BYTES = 250e6; // of their files together
  const MOST_CROPS = 48;
  const MOST_TOLD = 4; // lines about files that were refused
  const NAMED = 4; // classes that the empty page names
  const CROP = 176, THUMB = 120, CHOSEN = 480; // longest sides in pixels
  const TRIES = 5; // while the server is busy
  const CALM = 2500; // milliseconds between two announcements of a live picture
  const SOON = 150; // milliseconds after the last move of a slider, when the history is counted
  const FRAME = 640; // longest side of a camera's frame

  const settings = { score: null, nms: model.nms };
  const hidden = new Set(); // labels that the filter takes away
  const entries = []; // the history, newest first
  const queue = [];
  let entry = null; // what is shown: an image of the history or a frame of the camera
  let chosen = null, busy = false, everyCrop = false, announced = 0, message = null;

  /* ---- What is shown ---- */
  const view = multibox.view((place, how) => { if (how === "box" && place === chosen) view.zoom(!view.isZoomed()); choose(place, how); });
  const places = () => (entry?.candidates ? multibox.parts.detections(entry, settings, model) : []);
  const visible = () => places().filter((place) => !hidden.has(entry.candidates[place].label));
  const isLive = () => entry !== null && entry.live === true;

  function render() {
    const all = places(), shown = all.filter((place) => !hidden.has(entry.candidates[place].label));
    if (chosen !== null && !shown.includes(chosen)) chosen = null;
    main.classList.toggle("filled", entry !== null);
    view.draw(entry ?? NOTHING, shown, chosen);
    drawFound(all, shown);
    drawClasses(all);
    drawCrops(shown);
    drawChosen(shown);
    saveImageButton.hidden = !entry?.media;
  }
  const NOTHING = { candidates: [], width: 1, height: 1 };

  function choose(place, how = "") {
    chosen = place;
    if (place === null) view.zoom(false);
    render();
    if (how === "crop") view.node.scrollIntoView({ block: "nearest" });
  }

  /* ---- Counts and messages ---- */
  const found = el("p", { class: "found" });
  const spoken = el("p", { class: "aside", role: "status" });
  const more = el("p", { class: "note" });
  function drawFound(all, shown) {
    const known = Boolean(entry?.candidates);
    const text = known ? say("found", shown.length) : "";
    found.textContent = text;
    // A screen reader would speak without end about a camera
    if (spoken.textContent !== text && (!isLive() || Date.now() - announced > CALM)) { spoken.textContent = text; announced = Date.now(); }
    const notes = known ? [all.length > shown.length && say("hiddenByClass", all.length - shown.length), entry.candidates.length > all.length && say("foundNote", entry.candidates.length),
      !isLive() && entry.milliseconds && say("took", Math.round(entry.milliseconds))] : [];
    more.textContent = notes.filter(Boolean).join(" · ");
    hint.hidden = !(known && !isLive() && !all.length && entry.candidates.length);
  }
  const hint = el("p", { class: "note", hidden: true }, word("noneNote"));

  const notice = el("div", { class: "notice", role: "alert", hidden: true });
  /** Tell something: a word of the page with its values, or an error. `act` adds a button. */
  function tell(what, ...values) { message = { lines: [[what, ...values]], act: null }; drawMessage(); }
  function tellAgain(what, act) { const refusals = message?.refusals ?? []; message = { lines: [...refusals, [what]], refusals, act }; drawMessage(); }
  /** Tell which files were refused; what is told of the other files of the same choice comes below it. */
  function tellRefused(refused) {
    const refusals = refused.length > MOST_TOLD ? [...refused.slice(0, MOST_TOLD - 1), ["moreRefused", refused.length - MOST_TOLD + 1]] : refused;
    message = { lines: refusals, refusals, act: null };
    drawMessage();
  }
  function quiet() { if (message) { message = null; drawMessage(); } }
  function drawMessage() {
    notice.hidden = message === null;
    if (!message) { notice.replaceChildren(); return; }
    const { lines, act } = message;
    const text = ([what, ...values]) => (typeof what === "string" ? say(what, ...values) : what.key ? say(what.key) : what.message);
    replace(notice, ...lines.map((line) => el("p", {}, text(line))), el("div", { class: "actions" },
      act ? el("button", { type: "button", onclick: () => { quiet(); act(); } }, say("again")) : null, el("button", { type: "button", onclick: quiet }, say("close"))));
  }

  const wait = el("div", { class: "wait", hidden: true });
  function waiting(text) {
    wait.hidden = text === null;
    view.node.classList.toggle("busy", text !== null);
    view.node.setAttribute("aria-busy", String(text !== null));
    if (text !== null) replace(wait, el("span", { class: "spin", "aria-hidden": "true" }), text, queue.length ? ` (${say("queued", queue.length)})` : null);
  }

  /* ---- Images in ---- */
  const IMAGE_NAMES = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i;
  function take(files) {
    const refused = [];
    quiet();
    for (const file of files) {
      if (file.type.startsWith("video/")) refused.push(["video", file.name]);
      else if (file.type.startsWith("image/") || (!file.type && IMAGE_NAMES.test(file.name))) queue.push(file);
      else refused.push(["notImage", file.name]);
    }
    if (refused.length) tellRefused(refused);
    if (queue.length) camera.stop();
    if (!busy) work();
  }

  async function work() {
    busy = true;
    while (queue.length) await look(queue.shift());
    busy = false;
  }

  async function look(blob) {
    const one = { name: blob.name || "image", url: URL.createObjectURL(blob), bytes: blob.size, candidates: null };
    one.media = await decode(one);
    [one.width, one.height] = one.media ? multibox.parts.size(one.media) : [4, 3];
    open(one);
    waiting(say("looking"));
    try {
      const began = performance.now();
      Object.assign(one, await patient(blob));
      one.milliseconds = performance.now() - began;
      keep(one);
      if (entry === one) { view.shape(one.width, one.height); if (!one.media) tellAgain("blind", null); }
    } catch (error) {
      if (entry === one) open(null);
      URL.revokeObjectURL(one.url);
      if (error.token) askToken(() => take([blob])); else tellAgain(error, () => take([blob]));
    }
    waiting(null);
    render();
  }

  /** Detect, and ask again while the server is busy. */
  async function patient(blob) {
    const onprogress = (share) => waiting(share < 1 ? say("sending", Math.round(100 * share)) : say("looking"));
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await model.detect(blob, { onprogress });
      } catch (error) {
        if (!error.wait || attempt === TRIES) throw error;
        waiting(say("busy", error.wait));
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.wait));
      }
    }
  }

  async function decode({ url, name }) {
    const image = el("img", { src: url, alt: name, draggable: "false" });
    try { await image.decode(); return image; } catch { return null; }
  }

  /** Show an image of the history, or nothing. */
  function open(one) {
    entry = one;
    chosen = null;
    everyCrop = false;
    if (one) view.show(one.media, one.width, one.height); else view.show(null, 4, 3);
    view.node.classList.remove("mirror");
    render();
    drawHistory();
  }

  /* ---- Camera ---- */
  const rate = el("p", { class: "note rate" });
  let frozen = null; // the last frame that was answered
  const camera = multibox.camera({
    side: FRAME, detect: model.detect,
    onframe(result, canvas, { rate: frames, milliseconds }) {
      frozen = { canvas, result };
      const first = !isLive();
      if (first) { entry = { live: true }; view.show(camera.video, result.width, result.height); view.node.classList.toggle("mirror", camera.mirrored()); }
      entry = { ...result, live: true, name: "camera", media: canvas };
      rate.textContent = frames === null ? "" : say("rate", frames.toFixed(1), Math.round(milliseconds));
      render();
    },
    onproblem(what, ...values) { if (what instanceof Error) { if (what.token) askToken(() => camera.start()); else tellAgain(what, () => camera.start()); } else tell(what, ...values); },
    onstate(state) {
      main.dataset.camera = state;
      if (state === "starting") { quiet(); frozen = null; rate.textContent = say("starting"); open(null); }
      if (state === "paused") rate.textContent = say("paused");
      if (state === "on") { rate.textContent = ""; entry = { live: true }; view.show(camera.video, camera.video.videoWidth || 4, camera.video.videoHeight || 3); listCameras(); }
      if (state === "off") { rate.textContent = ""; if (isLive() || !entry) open(entries[0] ?? null); }
      drawButtons();
    },
  });

  const whichCamera = named(el("select", { onchange: () => camera.start(whichCamera.value) }), "aria-label", "whichCamera");
  async function listCameras() {
    const devices = await camera.devices();
    whichCamera.hidden = devices.length < 2;
    replace(whichCamera, devices.map((one, place) => el("option", { value: one.deviceId, selected: one.deviceId === camera.current() }, one.label || say("cameraName", place + 1))));
  }

  async function freeze() {
    if (!frozen) return;
    const { canvas, result } = frozen;
    const blob = await multibox.parts.toBlob(canvas, "image/jpeg", 0.92);
    camera.stop();
    const name = `camera-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.jpg`;
    const one = { name, url: URL.createObjectURL(blob), bytes: blob.size, ...result };
    one.media = await decode(one);
    keep(one);
    open(one);
    cameraButton.focus();
  }

  /* ---- History ---- */
  const strip = el("ul", { class: "strip" });
  function keep(one) {
    entries.unshift(one);
    let bytes = 0;
    const last = entries.findIndex((each, place) => { bytes += each.bytes; return place >= MOST_KEPT || (place > 0 && bytes > MOST_BYTES); });
    if (last > 0) entries.splice(last).forEach(forget);
    one.thumb = one.media ? multibox.parts.crop(one, [0, 0, one.width, one.height], THUMB) : null;
    drawHistory();
  }
  function forget(one) { if (one !== entry) URL.revokeObjectURL(one.url); }
  function clear() {
    const gone = entries.splice(0);
    if (!isLive()) open(null); else drawHistory();
    gone.forEach(forget);
    chooseButton.focus();
  }
  function drawHistory() {
    history.hidden = entries.length === 0;
    const at = strip.contains(document.activeElement) ? [...strip.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    replace(strip, entries.map((one) => {
      const count = multibox.parts.detections(one, settings, model).filter((place) => !hidden.has(one.candidates[place].label)).length;
      return el("li", {}, el("button", { type: "button", "aria-current": one === entry ? "true" : null, "aria-label": `${one.name} ${say("objects", count)}`, title: one.name, onclick: () => { camera.stop(); quiet(); open(one); } },
        one.thumb ?? el("span", { class: "blank" }), el("span", { class: "name" }, one.name), " ", el("small", {}, say("objects", count))));
    }));
    if (at >= 0) strip.querySelectorAll("button")[at]?.focus({ preventScroll: true });
  }

  /* ---- Controls ---- */
  let later = null;
  function changed() {
    back.hidden = settings.score === null && settings.nms === model.nms;
    render();
    // Counting in every image of the history takes longer than a slider may
    clearTimeout(later);
    later = setTimeout(drawHistory, SOON);
  }
  const scoreSlider = slider("score", new Set(model.thresholds).size > 1 ? "scoreNote" : "scoreNoteOne", { min: model.lowest, max: 1, oninput: (value) => { settings.score = value; changed(); } });
  const nmsSlider = slider("nms", "nmsNote", { min: 0, max: 1, oninput: (value) => { settings.nms = value; changed(); } });
  const back = button("back", () => { settings.score = null; settings.nms = model.nms; setSliders(); changed(); }, { class: "link", hidden: true });
  function setSliders() {
    const own = [...model.thresholds].sort((a, b) => a - b), middle = own[Math.floor(own.length / 2)] ?? 0.3;
    if (settings.score === null) scoreSlider.set(middle, own[0] === own.at(-1) ? middle.toFixed(2) : `${own[0].toFixed(2)}–${own.at(-1).toFixed(2)}`);
    if (settings.nms === model.nms) nmsSlider.set(model.nms);
  }

  const chips = new Map(); // by label; made once, so that a click meets the same node although a camera goes on
  const chipBox = el("div", { class: "chips" });
  const classes = el("fieldset", { class: "classes" }, el("legend", {}, word("classes")), chipBox, el("div", { class: "links" },
    button("all", () => { hidden.clear(); changed(); }, { class: "link" }), button("none", () => { chips.forEach((_, label) => hidden.add(label)); changed(); }, { class: "link" })));
  function chip(label) {
    const input = el("input", { type: "checkbox", onchange: () => { if (input.checked) hidden.delete(label); else hidden.add(label); changed(); } });
    const count = el("small");
    return { input, count, node: el("label", { class: "chip" }, input, el("span", { class: "swatch", style: { background: multibox.parts.colour(label) } }), el("span", {}, model.names[label]), " ", count) };
  }
  function drawClasses(all) {
    const counts = new Map();
    for (const place of all) { const { label } = entry.candidates[place]; counts.set(label, (counts.get(label) ?? 0) + 1); }
    // What a camera showed a moment ago stays, so that nothing jumps
    if (isLive()) for (const each of chipBox.children) counts.set(each.label, counts.get(each.label) ?? 0);
    const order = [...counts].sort((a, b) => (isLive() ? 0 : b[1] - a[1]) || a[0] - b[0]);
    classes.hidden = order.length === 0 || (order.length < 2 && !order.some(([label]) => hidden.has(label)));
    const nodes = order.map(([label, count]) => {
      if (!chips.has(label)) { chips.set(label, chip(label)); chips.get(label).node.label = label; }
      const each = chips.get(label);
      each.input.checked = !hidden.has(label);
      each.count.textContent = String(count);
      return each.node;
    });
    if (nodes.length === chipBox.children.length && nodes.every((node, place) => chipBox.children[place] === node)) return;
    const focused = document.activeElement;
    chipBox.replaceChildren(...nodes);
    if (chipBox.contains(focused)) focused.focus({ preventScroll: true });
  }

  /* ---- Crops and the chosen object ---- */
  const gallery = el("ul", { class: "crops" });
  const showAll = el("button", { type: "button", onclick: () => { everyCrop = true; render(); } });
  function drawCrops(shown) {
    crops.hidden = isLive() || shown.length === 0;
    if (crops.hidden) { gallery.replaceChildren(); return; }
    const listed = everyCrop ? shown : shown.slice(0, MOST_CROPS);
    entry.tiles ??= new Map();
    const tiles = listed.map((place) => {
      if (!entry.tiles.has(place)) entry.tiles.set(place, tile(entry, place));
      const node = entry.tiles.get(place);
      node.firstChild.setAttribute("aria-pressed", String(place === chosen));
      return node;
    });
    const focused = document.activeElement;
    if (tiles.length !== gallery.children.length || tiles.some((node, place) => gallery.children[place] !== node)) {
      gallery.replaceChildren(...tiles);
      if (gallery.contains(focused)) focused.focus({ preventScroll: true });
    }
    showAll.hidden = listed.length === shown.length;
    showAll.textContent = say("showAll", shown.length);
  }
  function tile(one, place) {
    const { name, score, label, box } = one.candidates[place];
    const node = el("button", { type: "button", class: "crop", "data-place": place, "aria-label": `${name} ${score.toFixed(2)}`, onclick: () => choose(place === chosen ? null : place, "crop") },
      multibox.parts.crop(one, box, CROP) ?? el("span", { class: "blank" }), el("span", { class: "name" }, name), " ", el("small", {}, score.toFixed(2)));
    node.style.setProperty("--box", multibox.parts.colour(label));
    return el("li", {}, node);
  }
  gallery.addEventListener("keydown", (event) => {
    const buttons = [...gallery.querySelectorAll("button")];
    const next = multibox.parts.neighbour(buttons, event.target, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
    choose(Number(next.dataset.place), "keys");
  });

  const card = el("section", { class: "chosen-card", hidden: true });
  named(card, "aria-label", "chosen");
  function drawChosen(shown) {
    card.hidden = chosen === null || isLive();
    if (card.hidden) { card.replaceChildren(); return; }
    const one = entry, { name, score, label, box: [x1, y1, x2, y2] } = one.candidates[chosen];
    const focused = card.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const act = (key, word, onclick) => el("button", { type: "button", "data-key": key, onclick }, say(word));
    const step = (by) => choose(shown[(shown.indexOf(chosen) + by + shown.length) % shown.length]);
    const place = chosen;
    replace(card, multibox.parts.crop(one, one.candidates[chosen].box, CHOSEN),
      el("h2", {}, el("span", { class: "swatch", style: { background: multibox.parts.colour(label) } }), el("span", {}, name), el("small", {}, score.toFixed(3))),
      el("p", { class: "note" }, `${say("place", shown.indexOf(chosen) + 1, shown.length)} · ${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} ${say("pixels")}`),
      el("p", { class: "note" }, `${say("box")} ${[x1, y1, x2, y2].map((side) => side.toFixed(1)).join(", ")}`),
      el("div", { class: "actions" }, act("previous", "previous", () => step(-1)), act("next", "next", () => step(1)),
        model.names.length > 1 ? act("only", "only", () => { model.names.forEach((_, other) => { if (other !== label) hidden.add(other); }); changed(); }) : null,
        act("zoom", view.isZoomed() ? "unzoom" : "zoom", () => { view.zoom(!view.isZoomed()); drawChosen(shown); }),
        one.media ? act("save", "saveCrop", async () => multibox.parts.save(await multibox.parts.toBlob(multibox.parts.crop(one, one.candidates[place].box)), `${multibox.parts.stem(one.name)}-${name}-${place + 1}.png`)) : null));
    if (focused) card.querySelector(`[data-key="${focused}"]`)?.focus({ preventScroll: true });
  }

  /* ---- Results out ---- */
  const copied = el("span", { class: "good", role: "status" });
  const byHand = el("textarea", { class: "by-hand", readonly: true, rows: 6, hidden: true });
  named(byHand, "aria-label", "cannotCopy");
  async function copyJson() {
    const text = multibox.parts.asJson(entry, visible());
    const done = await multibox.parts.copy(text);
    copied.textContent = say(done ? "copied" : "cannotCopy");
    byHand.hidden = done;
    if (!done) { byHand.value = text; byHand.select(); }
    setTimeout(() => { if (done) copied.textContent = ""; }, 2500);
  }
  const saveJson = () => multibox.parts.save(new Blob([multibox.parts.asJson(entry, visible())], { type: "application/json" }), `${multibox.parts.stem(entry.name)}.json`);
  async function saveImage() {
    const canvas = multibox.parts.drawn(entry, visible());
    multibox.parts.save(await multibox.parts.toBlob(canvas, "image/jpeg", 0.92), `${multibox.parts.stem(entry.name)}-boxes.jpg`);
  }
  const saveImageButton = button("saveImage", saveImage);
  const results = el("div", { class: "actions results" }, button("copy", copyJson), button("saveJson", saveJson), saveImageButton, copied);

  /* ---- Token ---- */
  const tokenBox = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const tokenForm = el("form", { class: "notice", hidden: true });
  let afterToken = null;
  function askToken(act) { afterToken = act; tokenForm.hidden = false; tokenBox.focus(); }
  tokenForm.addEventListener("submit", (event) => {
    event.preventDefault();
    tokenForm.hidden = true;
    model.setToken?.(tokenBox.value.trim());
    afterToken?.();
  });
  tokenForm.append(el("label", { for: "token" }, el("b", {}, word("token"))), el("small", { class: "note" }, word("tokenNote")), el("div", { class: "actions" }, tokenBox, el("button", {}, word("enter"))));

  /* ---- The page ---- */
  const picker = (attributes) => { const input = el("input", { type: "file", accept: "image/*", class: "aside", tabindex: "-1", "aria-hidden": "true", ...attributes, onchange: () => { take([...input.files]); input.value = ""; } }); return input; };
  const files = picker({ multiple: true, id: "files" }), photo = picker({ capture: "environment", id: "photo" });
  const chooseButton = button("choose", () => files.click(), { class: "main" });
  const photoButton = button("photo", () => photo.click());
  const cameraButton = button("camera", () => (camera.running() ? camera.stop() : camera.start()));
  const stopButton = button("stop", () => camera.stop()), freezeButton = button("freeze", freeze, { class: "main" });
  const insecure = el("p", { class: "note" }, word("insecure"));
  const touch = matchMedia("(pointer: coarse)").matches;
  function drawButtons() {
    const state = main.dataset.camera, on = state === "on" || state === "paused" || state === "starting";
    chooseButton.hidden = on;
    photoButton.hidden = on || (camera.available() && !touch);
    cameraButton.hidden = on || !camera.available();
    insecure.hidden = camera.available();
    stopButton.hidden = !on;
    freezeButton.hidden = state !== "on";
    if (!on) whichCamera.hidden = true;
  }

  const icon = multibox.svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, multibox.svg("rect", { x: 3, y: 4, width: 18, height: 16, rx: 2.5 }), multibox.svg("circle", { cx: 9, cy: 9.5, r: 1.8 }), multibox.svg("path", { d: "M3.5 17.5 9 13l3.5 3 4-4.5 4.5 5" }));
  const kinds = multibox.known(model.names), few = kinds.slice(0, NAMED).join(", ");
  const empty = el("div", { class: "empty" }, icon, el("h2", {}, word(touch ? "emptyTouch" : "empty")), el("p", { class: "note" }, kinds.length > NAMED ? word("finds", few, kinds.length - NAMED) : word("findsAll", few)));
  const privacy = model.api ? el("p", { class: "note privacy" }, word("privacy", location.host)) : null;
  const stage = named(el("section", { class: "stage" }, empty, view.node, wait), "aria-label", "stage");
  const bar = el("div", { class: "bar" }, chooseButton, photoButton, cameraButton, freezeButton, stopButton, whichCamera, rate);
  const panel = el("aside", { class: "panel" }, el("div", { class: "summary" }, found, more, hint), el("div", { class: "sliders" }, scoreSlider, nmsSlider, back), classes, card, results, byHand);
  const crops = el("section", { class: "part", hidden: true, "aria-labelledby": "crops-heading" }, el("h2", { id: "crops-heading" }, word("crops")), el("p", { class: "note" }, word("cropsNote")), gallery, showAll);
  const history = el("section", { class: "part", hidden: true, "aria-labelledby": "history-heading" }, el("h2", { id: "history-heading" }, word("history")), el("p", { class: "note" }, word("historyNote", MOST_KEPT)), strip, button("clear", clear));
  const main = el("div", { class: "work", "data-camera": "off" }, el("div", { class: "left" }, stage, el("p", { class: "drop-hint", "aria-hidden": "true" }, word("drop")), bar, insecure, notice, tokenForm, privacy, model.note ?? null), panel);
  document.getElementById("live").append(spoken, main, crops, history, ...multibox.about(model), files, photo);
  document.querySelector("header").append(...multibox.heading(model));
  onLanguage(() => { setSliders(); drawMessage(); drawButtons(); render(); drawHistory(); });

  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea")) return;
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (pasted.length) take(pasted); else tell("nothingPasted");
  });
  let inside = 0;
  const dropping = (on) => document.body.classList.toggle("dropping", on);
  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragenter", (event) => { if (holdsFiles(event)) { inside += 1; dropping(true); } });
  document.addEventListener("dragleave", () => { inside = Math.max(0, inside - 1); if (!inside) dropping(false); });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); inside = 0; dropping(false); if (event.dataTransfer?.files.length) take([...event.dataTransfer.files]); else tell("nothingDropped"); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && chosen !== null) { const place = chosen; if (view.isZoomed()) { view.zoom(false); render(); } else choose(null); view.focus(place); } });
  addEventListener("pagehide", () => camera.stop());

  multibox.parts.apply();
  return { take, settings, detections: () => visible().map((place) => entry.candidates[place]), state: () => ({ entry, chosen, entries }) };
};
