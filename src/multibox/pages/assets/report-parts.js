"use strict";
/* What the sections of a report share, as `multibox.report`: its data, images parsed when needed, lists that grow, the large view of an image. */
multibox.report = (() => {
  const { data, el, svg, replace, picture, count, checkbox } = multibox;
  const report = data.report, background = report.classes.length;

  // The attached chunks stand behind the scripts: none can be read before the page is parsed to its end
  const loaded = new Promise((done) => (document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", done, { once: true }) : done()));
  const parsed = new Map();

  /** Return {src, boxes ...} of one entry of "images", "mistakes" or "suspects"; null where the page holds none. */
  async function attached(group, place, key) {
    await loaded;
    const id = `${group}-${Math.floor(place / data.chunk)}`;
    if (!parsed.has(id)) parsed.set(id, JSON.parse(document.getElementById(id)?.textContent ?? "{}"));
    return parsed.get(id)[key] ?? null;
  }

  const places = new Map(data.shown.map((image, place) => [image, place]));
  const hasImage = (image) => places.has(image);
  const imageOf = (image) => (hasImage(image) ? attached("images", places.get(image), image) : Promise.resolve(null));
  const cropOf = (group, position) => attached(group, position, position);

  const near = "IntersectionObserver" in window ? new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    near.unobserve(entry.target);
    entry.target.onnear();
  }), { rootMargin: "600px" }) : null;

  /** Call `run` once, when `node` comes near the window. */
  function whenNear(node, run) {
    if (!near) { run(); return; }
    node.onnear = run;
    near.observe(node);
  }

  /** A gallery of `items` that shows some at first and the rest as one scrolls, once asked for more. */
  function growing(items, render, { first = 12, step = 24, empty = "Nothing to show." } = {}) {
    if (!items.length) return el("p", { class: "note" }, empty);
    const list = el("ul", { class: "gallery" });
    const status = el("span", { class: "note" });
    let made = 0;
    const grow = (more) => {
      const at = made;
      list.append(...items.slice(made, made + more).map((item, place) => el("li", {}, render(item, made + place))));
      made = Math.min(items.length, made + more);
      status.textContent = `${count(made)} of ${count(items.length)} shown`;
      foot.hidden = made >= items.length;
      return list.children[at];
    };
    const button = el("button", { type: "button", onclick: () => {
      grow(step)?.querySelector("button, input")?.focus();
      const again = () => { if (made < items.length) { grow(step); whenNear(status, again); } };
      whenNear(status, again);
    } }, "Show more");
    const foot = el("p", { class: "controls" }, button, status);
    grow(first);
    return el("div", {}, list, foot);
  }

  /* Four kinds of boxes, told apart by line and by text as well as by colour. */
  const KINDS = {
    found: { name: "label, found", colour: "#8ab4f8", dash: "2 4" },
    right: { name: "right detection", colour: "#2da44e", dash: null },
    missed: { name: "label, missed", colour: "#e8b100", dash: "9 5" },
    wrong: { name: "false detection", colour: "#ff5a5f", dash: "10 3 2 3" },
    ignored: { name: "label that does not count (difficult, crowd)", colour: "#9aa4ae", dash: "1 5" },
  };
  const className = (label) => (label === background ? "background" : report.classes[label] ?? "?");

  /** Turn a box of the data into words: what it is, and why. */
  function describe([x1, y1, x2, y2, side, gt, predicted, score, why, outcome]) {
    const label = side ? predicted : gt >= 0 ? gt : predicted;
    const kind = outcome < 0 ? "ignored" : outcome ? (side ? "right" : "found") : (side ? "wrong" : "missed");
    return { box: [x1, y1, x2, y2], side, gt, predicted, score, why, kind, name: className(label) };
  }

  function drawn(one, { faint = false, chosen = false, words = true } = {}) {
    // An object taken for another class has its text at the detection
    const is = one.gt >= 0 && one.gt !== background && one.gt !== one.predicted ? ` (is ${className(one.gt)})` : "";
    const text = !words ? null : one.kind === "wrong" ? `✕ ${one.name} ${one.score.toFixed(2)}${is}` : one.kind === "missed" && (one.predicted === background || one.predicted === one.gt) ? `? ${one.name}` : null;
    const score = one.score === null ? "" : ` ${one.score.toFixed(2)}`;
    return { ...KINDS[one.kind], box: one.box, faint, chosen, text: faint ? null : text, title: `${KINDS[one.kind].name}: ${one.name}${score}${one.why ? `; ${one.why}` : ""}` };
  }

  const sample = (kind) => svg("svg", { class: "line", viewBox: "0 0 34 12", "aria-hidden": "true" }, svg("rect", { x: 2, y: 2, width: 30, height: 8, fill: "none",
    stroke: KINDS[kind].colour, "stroke-width": 2.5, "stroke-dasharray": KINDS[kind].dash }));
  const legend = (kinds = ["right", "wrong", "missed", "found"]) => el("ul", { class: "legend" }, kinds.map((kind) => el("li", {}, sample(kind), KINDS[kind].name)));

  const broken = (why) => el("p", { class: "note broken" }, why);

  /** A thumbnail that opens the large view. `cell`: [gt, predicted], whose boxes stand out. */
  function thumbnail(image, caption, { cell = null, extra = [] } = {}) {
    const file = data.files[image];
    const frame = el("button", { type: "button", class: "frame", "aria-label": `Open ${file.file}`, onclick: () => open(image, { cell, extra }) });
    frame.style.aspectRatio = `${file.width || 4} / ${file.height || 3}`;
    whenNear(frame, async () => {
      const held = await imageOf(image);
      if (!held?.src) { replace(frame, broken(held?.error ?? "No thumbnail of it is on this page.")); return; }
      const view = picture({ src: held.src, width: held.width, height: held.height, alt: file.file });
      frame.style.aspectRatio = null;
      replace(frame, view);
      view.draw(held.boxes.map(describe).map((one) => drawn(inCell(one, cell), { ...emphasis(one, cell), words: false })));
    });
    return el("figure", {}, frame, el("figcaption", {}, caption));
  }

  // On images of a cell a box looks as the cell counts it, which now and then is not what COCO's matching says
  const inCell = (one, cell) => (cell === null || one.gt < 0 ? one : { ...one, kind: one.gt === one.predicted ? (one.side ? "right" : "found") : (one.side ? "wrong" : "missed") });
  const emphasis = (one, cell) => (cell === null ? {} : one.gt === cell[0] && one.predicted === cell[1] ? { chosen: true } : { faint: true });

  /** A crop. `lines`: how each of its boxes looks; `image`: what opens. */
  function crop(group, position, lines, caption, { image = null, extra = [], alt = "" } = {}) {
    const frame = el(image === null ? "div" : "button", { class: "frame crop", ...(image === null ? {} : { type: "button", "aria-label": `Open ${data.files[image].file}: ${alt}`, onclick: () => open(image, { extra }) }) });
    whenNear(frame, async () => {
      const held = await cropOf(group, position);
      if (!held?.src) { replace(frame, broken(held?.error ?? "No crop of it is on this page.")); return; }
      const view = picture({ src: held.src, width: held.width, height: held.height, alt });
      replace(frame, view);
      // The second box lies below, so that the pattern of the first shows where both are the same
      view.draw(held.boxes.map((box, place) => ({ box, ...lines[place] })).reverse());
    });
    return el("figure", {}, frame, el("figcaption", {}, caption));
  }

  /* The large view: one dialog for all images. */
  const dialog = el("dialog", { "aria-labelledby": "large-name" });
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  async function open(image, { cell = null, extra = [] } = {}) {
    const file = data.files[image], held = await imageOf(image);
    const close = el("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close");
    const head = el("div", { class: "large-head" }, el("h2", { id: "large-name" }, file.file), close);
    const command = inspectCommand(file.file);
    const tail = [el("h3", {}, "See the anchors that should have found it"), copied(command)];
    if (!held?.src) { replace(dialog, head, broken(held?.error ?? "No thumbnail of this image is on the page."), ...tail); dialog.showModal(); return; }
    const boxes = held.boxes.map(describe), hidden = new Set(cell || extra.length ? [] : ["found"]);
    const view = picture({ src: held.src, width: held.width, height: held.height, alt: file.file });
    let marked = null;
    const redraw = () => view.draw([...boxes.filter((one) => !hidden.has(one.kind)).map((one) => drawn(one, marked === null ? (extra.length ? { faint: true } : emphasis(one, cell)) : marked === one ? { chosen: true } : { faint: true })), ...(marked === null ? extra : [])]);
    const wrong = boxes.filter((one) => one.kind === "missed" || one.kind === "wrong");
    const reasons = el("ol", { class: "reasons" }, wrong.map((one) => el("li", {}, el("button", { type: "button", class: "reason", onclick: () => { marked = marked === one ? null : one; redraw(); } },
      sample(one.kind), el("span", {}, el("b", {}, one.kind === "missed" ? `${one.name} is missed: ` : `${one.name} ${one.score.toFixed(2)} is false: `), one.why ?? "")))));
    replace(dialog, head,
      el("div", { class: "controls" }, Object.keys(KINDS).filter((kind) => boxes.some((one) => one.kind === kind)).map((kind) => {
        const box = checkbox(KINDS[kind].name, !hidden.has(kind), (on) => { if (on) hidden.delete(kind); else hidden.add(kind); redraw(); });
        box.insertBefore(sample(kind), box.lastChild);
        return box;
      })),
      el("div", { class: "large", style: { maxWidth: `min(100%, calc(62vh * ${held.width / held.height}))` } }, view),
      wrong.length ? el("h3", {}, "Why? Press a line to see its box alone.") : el("p", {}, "Every object is found and every detection is right."), reasons,
      el("p", { class: "note" }, `${file.path || file.file}, ${file.width} × ${file.height} pixels`), ...tail);
    dialog.showModal();
    redraw();
  }

  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
  const inspectCommand = (file) => `multibox inspect ${[report.model, ...report.data].map((word) => quoted(String(word))).join(" ")}${report.split ? ` --split ${quoted(report.split)}` : ""} --image ${quoted(file)}`;

  /** Text that a button copies. */
  function copied(text) {
    const button = el("button", { type: "button", onclick: async () => { button.textContent = (await toClipboard(text)) ? "Copied" : "Select and copy it by hand"; setTimeout(() => { button.textContent = "Copy"; }, 2000); } }, "Copy");
    return el("div", { class: "copied" }, el("pre", { tabindex: "0" }, text), button);
  }

  async function toClipboard(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed here: the old way */ }
    const area = el("textarea", { style: { position: "fixed", opacity: "0" } });
    area.value = text;
    (dialog.open ? dialog : document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }

  /** Save text as a file on the reader's computer. */
  function download(name, text, type) {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  const note = (text) => el("p", { class: "note" }, text);

  /** A sentence whose commands stand between backticks. */
  const prose = (text) => String(text ?? "").split("`").map((piece, place) => (place % 2 ? el("code", {}, piece) : piece));

  return { report, background, className, hasImage, whenNear, growing, thumbnail, crop, open, legend, describe, copied, toClipboard, download, inspectCommand, note, prose, KINDS };
})();
