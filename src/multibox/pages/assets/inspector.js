"use strict";
/* The page of `multibox inspect`: images with their objects, anchors and boxes at thresholds that the reader moves. */
{
const { data, el, replace, number, percent, count, section, contents, card, table, slider, checkbox, select, lineChart, picture } = multibox;
const { judge, tally, counts, OUTCOMES } = judging;

const MATCHERS = {
  bipartite: "bipartite: each object first takes the anchor that overlaps it most, however little (forced); then every other anchor whose overlap reaches the threshold takes the object that it overlaps most. All others are background.",
  dual_max: "dual_max: every anchor whose overlap reaches the threshold takes the object that it overlaps most, and each object takes the anchor that overlaps it most (forced). Anchors between the two thresholds are ignored; the others are background.",
  atss: "atss: each object looks at the anchors nearest to its centre on every level, and takes those whose overlap is above the mean of these by one standard deviation, and whose centre lies inside it. There is no fixed threshold.",
  simota: "simota: each object takes the anchors near its centre whose predictions cost least (class loss and overlap of the predicted box); the overlaps of the best predictions decide how many. It follows what the network predicts now.",
  task_aligned: "task_aligned: each object takes the anchors inside it whose predictions are best in score and overlap together; these also weigh what each of them learns. It follows what the network predicts now.",
};
const TERMS = [
  ["Anchor", "A box of fixed size and place that the network starts from. It predicts for each anchor a class and how to move the box."],
  ["Level", "A feature map. Coarse levels (few cells) see large objects, fine ones small objects. Each cell has several anchors of different shape."],
  ["Positive", "An anchor that learns an object: its class, and the way from the anchor to the object's box."],
  ["Forced", "A positive that overlaps its object by less than the threshold. It is the object's best anchor, and without it nothing would learn the object."],
  ["Hard negative", "An anchor without an object that the network takes for one. Training learns the worst of these as background, a few for each positive."],
  ["Ignore zone", "Anchors too close to an object to be background, but not close enough to learn it. They take part in no class loss."],
  ["IoU", "Overlap of two boxes: the area they share over the area they cover together. 1 is the same box, 0 is no overlap."],
  ["Suppression", "Of boxes of one class that overlap more than the threshold, only the one with the best score is kept (non-maximum suppression)."],
  ["Receptive field", "The part of the image that can change a cell's output at all. An object larger than it is not seen as a whole."],
  ["Saliency", "Where the score of a detection comes from: bright parts change it most."],
];
const LAYERS = [
  ["gt", "Ground truth, missed or found", "var(--box-found)", ""], ["positives", "Positives, forced ones dashed", "var(--l0)", ""],
  ["ignored", "Ignore zone", "var(--box-ignored)", "dotted"], ["negatives", "Hard negatives", "var(--box-negative)", "dotted"],
  ["candidates", "Boxes not reported", "var(--box-weak)", "thin"], ["kept", "Detections", "var(--box-kept)", ""],
];

const images = data.images;
const state = { at: 0, layers: { gt: true, kept: true }, level: "all", score: null, nms: 0.45, chosen: null, heat: 0.65 };
const parsed = new Map();
let image, verdict, view, lines = {};

/** The whole description of an image, parsed when it is first looked at. */
function load(place) {
  if (!parsed.has(place)) parsed.set(place, JSON.parse(document.getElementById(`image-${place}`).textContent));
  return parsed.get(place);
}

const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
const levelColour = (level) => `var(--l${level % 8})`;
const levelName = (level) => { const { rows, columns } = image.levels[level]; return `${level} (${columns} x ${rows} cells)`; };
const size = (box) => `${Math.round(box[2] - box[0])} x ${Math.round(box[3] - box[1])} px`;
/** Text about a score below a threshold, with so many digits that they differ. */
function below(value, limit) {
  const digits = [2, 3, 4].find((n) => value.toFixed(n) !== limit.toFixed(n));
  return digits ? `${value.toFixed(digits)}, below the threshold of ${limit.toFixed(digits)}` : `${value.toFixed(4)}, just below the threshold`;
}
const scoreText = (value) => (value >= 0.0095 ? value.toFixed(2) : value.toPrecision(1));
const missed = (index) => verdict.outcomes[index].name !== "found" && counts(image.gt[index]);
const own = () => state.score === null && state.nms === image.thresholds.nms;
const swatch = (colour, kind = "") => el("span", { class: `key ${kind}`, style: { borderColor: colour } });

/* ---- The image and what is drawn on it ---- */

const strip = el("div", { class: "strip", role: "group", "aria-label": "Images" });
const title = el("h3", { id: "shown" });
const holder = el("div", { class: "view" });
const panel = el("div", { class: "panel", tabindex: "-1", "aria-live": "polite", role: "region", "aria-label": "What is selected" });
const layerBox = el("fieldset", { class: "layers" });
const levelBox = el("span"), levelKeys = el("ul", { class: "legend" });
const objectBox = el("div"), detectionBox = el("div"), levelsBox = el("div"), chartBox = el("div");
const ownNote = el("p", { class: "note" });
const scoreSlider = slider("Lowest score reported", { min: 0, max: 1, step: 0.01, value: 0.3, oninput: (value) => { state.score = value; judged(); } });
const nmsSlider = slider("Overlap that suppresses", { min: 0.05, max: 0.95, step: 0.01, value: 0.45, oninput: (value) => { state.nms = value; judged(); } });
const back = el("button", { type: "button", onclick: () => { state.score = null; state.nms = image.thresholds.nms; setSliders(); judged(); } }, "Original thresholds");

function setSliders() {
  const values = Object.values(image.thresholds.score);
  scoreSlider.set(state.score ?? values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length));
  nmsSlider.set(state.nms);
}

function show(place, key = null) {
  const first = image === undefined;
  state.at = (place + images.length) % images.length;
  image = load(state.at);
  if (first) state.nms = image.thresholds.nms;
  state.chosen = null;
  view = picture({ src: image.src, width: image.width, height: image.height, alt: `Image ${image.file}` });
  view.style.maxWidth = `calc(78vh * ${image.width / image.height})`;
  replace(holder, view);
  title.textContent = `${image.file}, ${image.width} x ${image.height} pixels (image ${state.at + 1} of ${images.length})`;
  [...strip.children].forEach((node, index) => {
    if (index === state.at) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
  });
  const thumb = strip.children[state.at];
  if (thumb.offsetLeft < strip.scrollLeft || thumb.offsetLeft + thumb.offsetWidth > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = thumb.offsetLeft - strip.clientWidth / 3;
  if (state.level !== "all" && Number(state.level) >= image.levels.length) state.level = "all";
  setSliders();
  replace(levelBox, select("Level", [["all", "all levels"], ...image.levels.map((_, level) => [String(level), `level ${levelName(level)}`])], state.level, (value) => { state.level = value; draw(); }));
  showLevels();
  judged(key);
}

/** Judge again after a threshold moved, and show what changed. */
function judged(key = state.chosen) {
  verdict = judge(image, state);
  const { score } = image.thresholds;
  ownNote.textContent = own() ? `Original thresholds (the model's, unless --threshold gave one): ${Object.entries(score).slice(0, 6).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ")}${Object.keys(score).length > 6 ? " ..." : ""}; overlap ${image.thresholds.nms}.`
    : "Changed: the boxes, objects and tables below follow. The list of images keeps the counts at the original thresholds.";
  if (image.candidates_above !== null && image.gt.concat(image.candidates).some((one) => verdict.limit(one.name) <= image.candidates_above)) ownNote.append(` Not exact: of ${plural(image.candidates_total, "box", "boxes")} only those above a score of ${scoreText(image.candidates_above)} are all listed, so at a lower threshold some may be missing. multibox inspect --threshold lists more.`);
  back.disabled = own();
  showLayers();
  showObjects();
  showDetections();
  choose(key, false);
}

function showLayers() {
  const forced = image.positives.filter((one) => one.how === "forced").length;
  const lost = image.gt.filter((_, index) => missed(index)).length;
  const shown = verdict.reported.filter(Boolean).length;
  const listed = (list, total) => (total > list.length ? `first ${list.length} of ${count(total)}` : count(total));
  const totals = {
    gt: `${image.gt.length}, ${lost} missed`, positives: `${image.positives.length}, ${forced} forced`, kept: shown,
    ignored: listed(image.ignored, image.ignored_total), negatives: listed(image.negatives, image.negatives_total), candidates: image.candidates_above === null ? count(image.candidates.length - shown) : `${count(image.candidates.length - shown)} of ${count(image.candidates_total - shown)}`,
  };
  replace(layerBox, el("legend", {}, "Layers"), LAYERS.map(([name, text, colour, kind]) => {
    const box = checkbox(`${text} (${totals[name]})`, Boolean(state.layers[name]), (on) => { state.layers[name] = on; choose(null); });
    box.querySelector("input").after(swatch(colour, kind));
    if (name === "gt") box.querySelector("input").after(swatch("var(--box-missed)", kind));
    return box;
  }));
  replace(levelKeys, "Levels: ", image.levels.map((_, level) => el("li", {}, swatch(levelColour(level)), `${levelName(level)}`)));
}

const key = (kind, index) => `${kind}:${index}`;
const split = (text) => { const [kind, index] = text.split(":"); return [kind, Number(index)]; };
const middle = ([x1, y1, x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];

/** The box of one entry of a layer. */
function shape(kind, index, more = {}) {
  const id = key(kind, index), chosen = state.chosen === id;
  const base = { key: id, chosen, onclick: (event) => pick(event, id), skip: true };
  if (kind === "gt") {
    const one = image.gt[index], { name } = verdict.outcomes[index];
    return { ...base, box: one.box, skip: false, kind: "thick", below: true, colour: !counts(one) ? "var(--box-ignored)" : name === "found" ? "var(--box-found)" : "var(--box-missed)",
      title: `Object ${index}: ${one.name}, ${OUTCOMES[name][0]}`, ...more };
  }
  if (kind === "candidate") {
    const one = image.candidates[index], reported = verdict.reported[index];
    return { ...base, box: one.box, skip: !reported, kind: reported ? "" : "thin", colour: reported ? "var(--box-kept)" : "var(--box-weak)",
      title: `${one.name} ${scoreText(one.score)}, ${fateText(index)}`, ...more };
  }
  const one = image[kind === "positive" ? "positives" : "negatives"][index];
  if (kind === "positive") return { ...base, box: one.box, colour: levelColour(one.level), dashed: one.how === "forced", kind: "thin",
    title: `Positive of object ${one.gt}, level ${one.level}, IoU ${number(one.iou, 2)}${one.how === "forced" ? ", forced" : ""}`, ...more };
  return { ...base, box: one.box, colour: "var(--box-negative)", kind: "dotted", title: `Hard negative, level ${one.level}, loss ${number(one.loss, 2)}`, ...more };
}

const fateText = (index) => {
  if (verdict.reported[index]) return "reported";
  if (verdict.fate[index] >= 0) return "suppressed";
  return verdict.kept[index] ? "score too low" : "left out";
};
const atLevel = (one) => state.level === "all" || one.level === Number(state.level);
const indices = (list, test) => list.map((_, index) => index).filter((index) => test(list[index], index));

function draw() {
  const { gt, candidates, positives, negatives, ignored } = image;
  if (state.chosen) { drawChosen(); return; }
  const on = state.layers, boxes = [];
  const kept = indices(candidates, (one, index) => verdict.reported[index] && atLevel(one));
  if (on.ignored) boxes.push(...ignored.filter(atLevel).map((one) => ({ box: one.box, colour: "var(--box-ignored)", kind: "dotted inert", faint: true })));
  if (on.candidates) boxes.push(...indices(candidates, (one, index) => !verdict.reported[index] && atLevel(one)).reverse().map((index) => shape("candidate", index, { faint: true })));
  if (on.negatives) boxes.push(...indices(negatives, atLevel).map((index) => shape("negative", index)));
  if (on.positives) boxes.push(...indices(positives, atLevel).map((index) => shape("positive", index)));
  if (on.gt) boxes.push(...gt.map((one, index) => shape("gt", index, { text: gt.length <= 40 ? `${index} ${one.name}` : null })));
  if (on.kept) boxes.push(...kept.map((index) => shape("candidate", index, { text: kept.length <= 40 ? `${candidates[index].name} ${scoreText(candidates[index].score)}` : null })));
  view.heat(null);
  view.draw(boxes);
}

/** Draw the selected thing with what belongs to it, and the rest faintly. */
function drawChosen() {
  const [kind, index] = split(state.chosen), links = [];
  const boxes = image.gt.map((_, place) => key("gt", place) === state.chosen ? null : shape("gt", place, { faint: true, kind: "thin" })).filter(Boolean);
  const link = (from, to, colour, text) => links.push({ from: middle(from), to: middle(to), colour, title: text });
  if (kind === "gt") {
    const object = image.gt[index], place = verdict.outcomes[index].detection;
    boxes.push(...object.anchors.filter((each) => atLevel(image.positives[each])).map((each) => shape("positive", each)), shape("gt", index, { text: `${index} ${object.name}` }));
    if (place !== null) boxes.push(...withSuppressor(place, link));
  } else if (kind === "candidate") {
    const one = image.candidates[index];
    const effective = explanationOf(index)?.effective;
    if (effective) boxes.push({ box: effective, colour: "var(--box-field)", kind: "inert dotted", text: "looks at", below: true });
    boxes.push(field(one, explanationOf(index)?.receptive_field), { box: one.anchor_box, colour: levelColour(one.level), kind: "inert", text: "anchor", below: true });
    boxes.push(...indices(image.candidates, (_, place) => verdict.fate[place] === index).map((place) => shape("candidate", place, { faint: true })));
    boxes.push(...withSuppressor(index, link));
    link(one.anchor_box, one.box, levelColour(one.level), "from the anchor to the box");
  } else if (kind === "positive") {
    const one = image.positives[index];
    boxes.push(field(one), shape("gt", one.gt, { text: `${one.gt} ${image.gt[one.gt].name}` }), shape("positive", index, { text: "anchor", kind: "thick" }),
      { box: one.predicted, colour: "var(--box-kept)", kind: "inert", text: `predicted, ${scoreText(one.score)}`, below: true });
    link(one.box, one.predicted, levelColour(one.level), "from the anchor to the box it predicts");
  } else boxes.push(field(image.negatives[index]), shape("negative", index, { text: `background taken for ${image.negatives[index].name}`, kind: "" }));
  view.heat(kind === "candidate" ? explanationOf(index)?.heat : null);
  setHeat();
  view.draw(boxes, links);
}

const explanationOf = (index) => image.explanations?.find((one) => one.candidate === index);
const setHeat = () => { const layer = view.querySelector(".heat"); if (layer) layer.style.opacity = state.heat; };

/** A box and the one that suppressed it, joined by a line. */
function withSuppressor(place, link) {
  const one = image.candidates[place], by = verdict.fate[place];
  const text = `${one.name} ${scoreText(one.score)}`;
  if (by < 0) return [shape("candidate", place, { text, kind: "" })];
  const other = image.candidates[by];
  link(one.box, other.box, "var(--box-kept)", "suppressed by");
  return [shape("candidate", place, { text: `${text}, suppressed`, below: true, kind: "" }), shape("candidate", by, { text: `by ${other.name} ${scoreText(other.score)}`, kind: "" })];
}

/** The receptive field of an anchor's cell; what lies outside of the image is drawn at its border. */
function field(one, known) {
  const level = image.levels[one.level], box = one.anchor_box ?? one.box, [x, y] = middle(box), [width, height] = level.receptive_field;
  const cut = (value, most) => Math.min(most, Math.max(0, value));
  return { box: known ?? [cut(x - width / 2, image.width), cut(y - height / 2, image.height), cut(x + width / 2, image.width), cut(y + height / 2, image.height)],
    colour: "var(--box-field)", dashed: true, kind: "inert thin", text: "receptive field" };
}

/** Take what was clicked; on boxes that lie upon each other a further click takes the next one below. */
function pick(event, id) {
  if (event.clientX === undefined || event.detail === 0) { choose(id); return; }
  const area = (node) => node.width.baseVal.value * node.height.baseVal.value;
  // Smallest first, and not in the order of drawing, which changes with the selection
  const under = document.elementsFromPoint(event.clientX, event.clientY).filter((node) => node.dataset?.key)
    .sort((a, b) => area(a) - area(b) || a.dataset.key.localeCompare(b.dataset.key)).map((node) => node.dataset.key);
  const place = under.indexOf(state.chosen);
  choose(under.length ? under[(place + 1) % under.length] : id);
}

/* ---- The panel: what is selected ---- */

function choose(id, tell = true) {
  state.chosen = id;
  draw();
  const [kind, index] = id ? split(id) : [null, null];
  for (const [name, line] of Object.entries(lines)) line.classList.toggle("chosen", name === id);
  const parts = kind === "gt" ? aboutObject(index) : kind === "candidate" ? aboutCandidate(index) : kind === "positive" ? aboutPositive(index) : kind === "negative" ? aboutNegative(index) : aboutImage();
  replace(panel, parts, id ? el("div", { class: "actions" }, el("button", { type: "button", onclick: () => { choose(null); panel.focus(); } }, "Deselect (Esc)")) : null);
  if (tell && !id) holder.querySelector("svg")?.focus?.();
}

const facts = (rows) => el("dl", {}, rows.filter(Boolean).map(([name, ...value]) => [el("dt", {}, name), el("dd", {}, ...value)]));
const goTo = (id, text) => el("button", { type: "button", class: "link", onclick: () => { choose(id); panel.focus({ preventScroll: true }); } }, text);

function aboutImage() {
  const lost = {};
  image.gt.forEach((_, index) => { if (missed(index)) lost[verdict.outcomes[index].name] = (lost[verdict.outcomes[index].name] ?? 0) + 1; });
  const objects = image.gt.filter(counts).length, wrong = indices(verdict.roles, (role) => role === "false" || role === "duplicate").length;
  const reasons = Object.entries(lost).map(([name, n]) => `${n} ${OUTCOMES[name][0]}`).join(", ");
  const shown = verdict.reported.filter(Boolean).length;
  const best = image.candidates[0];
  return [el("h3", {}, "This image"),
    el("p", {}, objects ? `${plural(objects, "object")}: ${objects - Object.values(lost).reduce((a, b) => a + b, 0)} found${reasons ? `, ${reasons}` : ""}.`
      : "This image has no objects that count: every anchor is background, and every detection is false."),
    el("p", {}, shown ? `${plural(shown, "detection")}, ${wrong} of them false.`
      : best ? `No detections: the best of ${plural(image.candidates_total, "box", "boxes")} is ${best.name} with score ${scoreText(best.score)}.`
        : `No detections: no box scores above ${image.thresholds.score_threshold}, the lowest score that enters suppression.`),
    el("p", { class: "note" }, "Select an object or a box: click it in the image (click again for the one below it), or use the tables. The arrow keys go to the next image.")];
}

function aboutObject(index) {
  const object = image.gt[index], { name, detection } = verdict.outcomes[index], [text] = OUTCOMES[name];
  const anchors = object.anchors.map((place) => image.positives[place]);
  const levels = [...new Set(anchors.map((one) => one.level))];
  const sum = (field) => number(anchors.reduce((total, one) => total + one[field], 0), 2);
  const [, detectedAs] = detection === null ? [] : [0, image.candidates[detection]];
  const by = detection === null ? -1 : verdict.fate[detection];
  return [el("h3", {}, `Object ${index}: ${object.name} `, el("span", { class: name === "found" ? "good" : counts(object) ? "bad" : "" }, counts(object) ? text : `${text} (does not count: ${object.crowd ? "crowd" : "difficult"})`)),
    el("p", {}, why(index)),
    facts([
      ["Size", size(object.box)],
      ["Best IoU of any anchor", `${number(object.best_iou, 2)} (threshold ${image.thresholds.match})`],
      ["Anchors that learn it", anchors.length ? `${anchors.length}${anchors.some((one) => one.how === "forced") ? `, ${anchors.filter((one) => one.how === "forced").length} forced` : ""}` : "none"],
      levels.length ? ["On", levels.map((level) => `level ${level}: ${anchors.filter((one) => one.level === level).length}`).join(", ")] : null,
      anchors.length ? ["Best score of these", scoreText(Math.max(...anchors.map((one) => one.score)))] : null,
      anchors.length ? ["Loss of these", `class ${sum("class_loss")}, box ${sum("box_loss")}`] : null,
    ]),
    el("div", { class: "actions" },
      detection === null ? null : goTo(key("candidate", detection), name === "found" ? `The detection that found it (${scoreText(detectedAs.score)})` : `The box: ${detectedAs.name} ${scoreText(detectedAs.score)}`),
      by >= 0 ? goTo(key("candidate", by), `What suppressed it: ${image.candidates[by].name} ${scoreText(image.candidates[by].score)}`) : null),
    anchors.length ? el("details", {}, el("summary", {}, "Its anchors"), table([
      { name: "Level", value: ({ one }) => one.level, digits: 0, number: true, show: ({ one, place }) => goTo(key("positive", place), String(one.level)) },
      { name: "IoU", value: ({ one }) => one.iou, digits: 2, number: true }, { name: "How", value: ({ one }) => one.how },
      { name: "Score", value: ({ one }) => one.score, digits: 2, number: true },
    ], object.anchors.map((place) => ({ one: image.positives[place], place })), { caption: "Anchors that learn this object; select one to see what it predicts." })) : null];
}

/** Why an object has its outcome: the model's sentence, or a shorter one at other thresholds. */
function why(index) {
  const object = image.gt[index], { name, detection } = verdict.outcomes[index];
  if (own() || (name === object.outcome && !["low-score", "suppressed"].includes(name) && detection === object.detection)) return sentence(object.why);
  const one = image.candidates[detection], by = verdict.fate[detection];
  const box = one ? `${one.name} with score ${scoreText(one.score)}` : "";
  if (name === "found") return `At these thresholds it is found by ${box}.`;
  if (name === "low-score") return one ? `At these thresholds its best box scores ${below(one.score, verdict.limit(object.name))}.` : sentence(object.outcome === name ? object.why : OUTCOMES[name][1]);
  if (name === "suppressed") return by >= 0 ? `At these thresholds its best box (score ${scoreText(one.score)}) is suppressed by ${image.candidates[by].name} with score ${scoreText(image.candidates[by].score)}: they overlap by ${number(shared(detection), 2)}, and at most ${state.nms} is allowed.` : "At these thresholds its best box is left out, because only so many are kept.";
  return `At these thresholds: ${OUTCOMES[name][1]}${box ? ` The box is ${box}.` : ""}`;
}

const shared = (place) => multibox.overlap(image.candidates[place].unclipped, image.candidates[verdict.fate[place]].unclipped);

function place(one) {
  const { receptive_field: [width, height] } = image.levels[one.level], box = one.anchor_box ?? one.box;
  return [["Level", swatch(levelColour(one.level)), ` ${levelName(one.level)}`], one.row === undefined ? null : ["Cell", `row ${one.row}, column ${one.column}, shape ${one.shape}`],
    ["Anchor", `${one.anchor}, ${size(box)}`], ["Receptive field", `${Math.round(width)} x ${Math.round(height)} px${width >= image.width && height >= image.height ? ", larger than the image" : ""}`]];
}

function aboutCandidate(index) {
  const one = image.candidates[index], role = verdict.roles[index], by = verdict.fate[index];
  const suppressed = verdict.fate.filter((each) => each === index).length;
  const near = one.gt === null ? null : image.gt[one.gt];
  const says = { found: `It finds object ${one.gt}.`, duplicate: `It is a second detection of object ${one.gt}, which counts as false.`,
    ignored: `It lies on object ${one.gt}, which does not count, so it is neither right nor false.`,
    false: near && one.gt_iou > 0 ? `It is false: the nearest ${one.name} is object ${one.gt}, which it overlaps by ${number(one.gt_iou, 2)}; above 0.5 it would be right.` : `It is false: no ${one.name} is labelled here. If you see one, a label is missing.` };
  const text = role ? says[role] : by >= 0 ? `It is suppressed: ${image.candidates[by].name} with score ${scoreText(image.candidates[by].score)} overlaps it by ${number(shared(index), 2)}, and at most ${state.nms} is allowed.`
    : verdict.kept[index] ? `It scores ${below(one.score, verdict.limit(one.name))}, so it is not reported.` : "It is left out: only so many boxes are kept.";
  return [el("h3", {}, `Box: ${one.name} ${scoreText(one.score)} `, el("span", { class: role === "found" ? "good" : role && role !== "ignored" ? "bad" : "" }, role === "found" ? "right" : role ?? fateText(index))),
    el("p", {}, text),
    facts([["Size", size(one.box)], ...place(one), ["IoU with ground truth", near && one.gt_iou > 0 ? `${number(one.gt_iou, 2)} (object ${one.gt})` : "none of its class"], ["Suppressed by it", plural(suppressed, "box", "boxes")]]),
    el("div", { class: "actions" },
      by >= 0 ? goTo(key("candidate", by), `What suppressed it: ${image.candidates[by].name} ${scoreText(image.candidates[by].score)}`) : null,
      near && one.gt_iou > 0 ? goTo(key("gt", one.gt), `Object ${one.gt}: ${near.name}`) : null),
    explanation(index)];
}

/** The saliency map and the nearest training objects of a detection, where they were computed. */
function explanation(index) {
  const one = explanationOf(index);
  if (!one) return el("p", { class: "note" }, data.explained ? "Not explained: only a few are, first false detections and boxes on missed objects." : "For a saliency map and the most similar training objects run inspect with --explain.");
  const { similar, similar_of: among } = one;
  return [el("h3", {}, "What it looks at"),
    el("p", { class: "note" }, one.method === "occlusion" ? "Red is where covering the image lowers the score most (occlusion)." : "Red is where a change of the image changes the score most (gradient).",
      ` Nine tenths of what counts lies within ${size(one.effective)} (dotted), of all that it could see (dashed).`),
    el("div", { class: "controls" }, slider("Strength of the saliency map", { value: state.heat, oninput: (value) => { state.heat = value; setHeat(); } })),
    el("h3", {}, "Most similar training objects"),
    el("p", { class: "note" }, !among ? "The training data is not known, or not where it was: give it with --training."
      : !similar.length ? "The training data has no object to compare."
        : `Of ${plural(among.objects, "object")} in ${plural(among.images, "training image")} of ${count(among.of)}, by the network's features; 0 is the same, 1 unrelated. Another class here hints at a wrong label.`),
    el("ul", { class: "gallery" }, similar.map((each) => el("li", {}, el("figure", {}, each.crop ? cropped(each) : el("p", { class: "note" }, `${each.file} cannot be read`),
      el("figcaption", { class: "note" }, `${each.name}, distance ${number(each.distance, 2)}`)))))];
}

function cropped({ crop, file, name }) {
  const node = picture({ src: crop.src, width: crop.width, height: crop.height, alt: `${name} in ${file}` });
  node.draw([{ box: crop.box, colour: "var(--box-found)", title: file }]);
  return node;
}

function aboutPositive(index) {
  const one = image.positives[index], object = image.gt[one.gt];
  const how = { forced: `It overlaps the object by less than ${image.thresholds.match}; as the object's best anchor it was forced to learn it.`, threshold: `Its overlap reaches the threshold of ${image.thresholds.match}.`, matcher: `${image.matcher} chose it.` };
  return [el("h3", {}, `Positive anchor of object ${one.gt}: ${object.name}`), el("p", {}, how[one.how]),
    facts([...place(one), ["IoU with the object", number(one.iou, 2)], ["Score for its class", scoreText(one.score)], ["Loss", `class ${number(one.class_loss, 2)}, box ${number(one.box_loss, 2)}`], ["Weight", number(one.weight, 2)],
      ["IoU of its box", number(multibox.overlap(one.predicted, object.box), 2)]]),
    el("div", { class: "actions" }, goTo(key("gt", one.gt), `Object ${one.gt}: ${object.name}`))];
}

function aboutNegative(index) {
  const one = image.negatives[index];
  return [el("h3", {}, `Hard negative ${index + 1} of ${count(image.negatives_total)}`),
    el("p", {}, `Training learns this anchor as background, but the network says ${one.name} with score ${scoreText(one.score)}. ${one.iou >= 0.3 ? "It lies close to an object." : one.score >= 0.5 ? "If you see an object here, a label is missing." : ""}`),
    facts([...place(one), ["Class loss", number(one.loss, 2)], ["Largest IoU with an object", number(one.iou, 2)]]),
    el("div", { class: "actions" }, index + 1 < image.negatives.length ? goTo(key("negative", index + 1), "The next one") : null)];
}

/* ---- The tables ---- */

function showObjects() {
  lines = {};
  const rows = image.gt.map((object, index) => ({ object, index }));
  const mark = (kind) => (line, row) => { const id = key(kind, row.index); lines[id] = line; line.className = id === state.chosen ? "pick chosen" : "pick"; line.addEventListener("click", (event) => { if (!event.target.closest("button")) reveal(id); }); };
  replace(objectBox, rows.length ? table([
    { name: "Object", value: ({ index }) => index, show: ({ index, object }) => el("button", { type: "button", class: "link", onclick: () => reveal(key("gt", index)) }, `${index} ${object.name}`) },
    { name: "Outcome", value: ({ index }) => OUTCOMES[verdict.outcomes[index].name][0], show: ({ index }) => el("span", { class: verdict.outcomes[index].name === "found" ? "good" : missed(index) ? "bad" : "" }, OUTCOMES[verdict.outcomes[index].name][0]) },
    { name: "Best IoU", value: ({ object }) => object.best_iou, digits: 2, number: true },
    { name: "Anchors", value: ({ object }) => object.anchors.length, digits: 0, number: true },
    { name: "Size", value: ({ object: { box } }) => (box[2] - box[0]) * (box[3] - box[1]), number: true, show: ({ object }) => size(object.box) },
    { name: "Why", show: ({ index }) => why(index) },
  ], rows, { caption: "Objects", onRow: mark("gt") })
    : el("p", {}, "This image has no objects."));
}

function showDetections() {
  const rows = indices(image.candidates, (_, index) => verdict.reported[index]).map((index) => ({ one: image.candidates[index], index }));
  const names = { found: "right", duplicate: "second on one object", false: "false", ignored: "does not count" };
  replace(detectionBox, rows.length ? table([
    { name: "Detection", value: ({ index }) => index, show: ({ one, index }) => el("button", { type: "button", class: "link", onclick: () => reveal(key("candidate", index)) }, `${one.name} ${scoreText(one.score)}`) },
    { name: "Is", value: ({ index }) => names[verdict.roles[index]], show: ({ index }) => el("span", { class: verdict.roles[index] === "found" ? "good" : verdict.roles[index] === "ignored" ? "" : "bad" }, names[verdict.roles[index]]) },
    { name: "IoU", value: ({ one }) => one.gt_iou, digits: 2, number: true }, { name: "Object", value: ({ one }) => one.gt, digits: 0, number: true },
    { name: "Level", value: ({ one }) => one.level, digits: 0, number: true },
    { name: "Suppressed", value: ({ index }) => verdict.fate.filter((by) => by === index).length, digits: 0, number: true },
  ], rows, { caption: "Detections",
    onRow: (line, row) => { const id = key("candidate", row.index); lines[id] = line; line.className = id === state.chosen ? "pick chosen" : "pick"; line.addEventListener("click", (event) => { if (!event.target.closest("button")) reveal(id); }); } })
    : el("p", {}, "No box is reported at these thresholds. Lower the score, or show the layer of boxes not reported."));
}

function showLevels() {
  const objects = (level) => [...new Set(image.positives.filter((one) => one.level === level).map((one) => one.gt))];
  const most = (level) => objects(level).reduce((best, index) => { const [x1, y1, x2, y2] = image.gt[index].box; return Math.max(best, x2 - x1, y2 - y1); }, 0);
  replace(levelsBox, el("div", { class: "cards" }, card("Loss", number(image.losses.total, 2), "of this image, without regularisation"), card("Class loss", number(image.losses.classification, 2)), card("Box loss", number(image.losses.localization, 2))),
    table([
      { name: "Level", value: ({ level }) => level, digits: 0, show: ({ level }) => el("span", {}, swatch(levelColour(level)), ` ${levelName(level)}`) },
      { name: "Anchors", value: ({ one }) => one.anchors, number: true, show: ({ one }) => count(one.anchors) }, { name: "Positives", value: ({ one }) => one.positives, digits: 0, number: true },
      { name: "Ignored", value: ({ one }) => one.ignored, digits: 0, number: true }, { name: "Negatives", value: ({ one }) => one.negatives, digits: 0, number: true },
      { name: "Stride", value: ({ one }) => one.stride[0], number: true, show: ({ one }) => `${one.stride.map((each) => Number(each.toFixed(1))).join(" x ")} px` },
      { name: "Receptive field", value: ({ one }) => one.receptive_field[0], number: true, show: ({ one }) => `${one.receptive_field.map(Math.round).join(" x ")} px` },
      { name: "Largest object", value: ({ level }) => most(level), number: true, show: ({ level }) => (most(level) ? `${Math.round(most(level))} px` : "–") },
      { name: "Objects", value: ({ level }) => objects(level).length, show: ({ level }) => { const list = objects(level); return list.length ? `${list.slice(0, 12).join(", ")}${list.length > 12 ? " ..." : ""}` : "–"; } },
    ], image.levels.map((one, level) => ({ one, level })), { caption: "Levels" }),
    listing("Positives of this image", "positive", image.positives, [
      { name: "Object", value: ({ one }) => one.gt, show: ({ one }) => `${one.gt} ${image.gt[one.gt].name}` }, { name: "How", value: ({ one }) => one.how },
      { name: "IoU", value: ({ one }) => one.iou, digits: 2, number: true }, { name: "Score", value: ({ one }) => one.score, number: true, show: ({ one }) => scoreText(one.score) },
      { name: "Class loss", value: ({ one }) => one.class_loss, digits: 2, number: true }, { name: "Box loss", value: ({ one }) => one.box_loss, digits: 2, number: true }]),
    listing("Hard negatives of this image", "negative", image.negatives, [
      { name: "Taken for", value: ({ one }) => one.name }, { name: "Score", value: ({ one }) => one.score, number: true, show: ({ one }) => scoreText(one.score) },
      { name: "Loss", value: ({ one }) => one.loss, digits: 2, number: true }, { name: "Largest IoU", value: ({ one }) => one.iou, digits: 2, number: true }], image.negatives_total));
}

/** A table of anchors that opens on demand; selecting one shows it in the image. */
function listing(name, kind, list, columns, total = list.length) {
  if (!list.length) return null;
  const box = el("details", {}, el("summary", {}, `${name}: ${total > list.length ? `first ${list.length} of ` : ""}${count(total)}`));
  box.addEventListener("toggle", () => {
    if (box.children.length > 1) return;
    const first = { name: "Anchor", value: ({ one }) => one.anchor, show: ({ one, index }) => el("button", { type: "button", class: "link", onclick: () => reveal(key(kind, index)) }, String(one.anchor)) };
    const level = { name: "Level", value: ({ one }) => one.level, digits: 0, number: true };
    box.append(table([first, level, ...columns], list.map((one, index) => ({ one, index })), { label: name }));
  });
  return box;
}

/** How the matcher of these images works, with its thresholds. */
function aboutMatcher() {
  const { matcher, thresholds: { match, ignore } } = image;
  const numbers = matcher === "bipartite" ? ` The threshold is ${match}.` : matcher === "dual_max" ? ` The thresholds are ${ignore} and ${match}${ignore === match ? ", so that nothing lies between them" : ""}.` : "";
  return `The matcher is ${MATCHERS[matcher] ?? matcher}${numbers}`;
}

/** Scores at which the curve is computed, rising: every 40th, and up to 80 of the boxes' own, where it has its steps. */
function curveScores(floor) {
  const own = [...new Set(images.flatMap((_, index) => load(index).candidates.map((one) => one.score)))].sort((a, b) => a - b);
  const every = Math.max(1, own.length / 80);
  const some = Array.from({ length: Math.ceil(own.length / every) }, (_, place) => own[Math.floor(place * every)]);
  return [...new Set([...Array.from({ length: 39 }, (_, step) => (step + 1) / 40), ...some])].filter((score) => score > floor).sort((a, b) => a - b);
}

let charted = false;
function showChart() {
  if (charted) return;
  charted = true;
  // Below this score some boxes may not be listed
  const floor = Math.max(0, ...images.map((_, index) => load(index).candidates_above ?? 0));
  const scores = curveScores(floor);
  const render = () => {
    const rows = tally(images.map((_, index) => load(index)), scores, state.nms);
    const mean = Object.values(image.thresholds.score).reduce((sum, value) => sum + value, 0) / Math.max(1, Object.keys(image.thresholds.score).length);
    const share = (part, whole) => (whole ? part / whole : null);
    const f1 = rows.map((row) => share(2 * row.found, row.objects + row.found + row.wrong)), best = f1.reduce((top, value, index) => (value !== null && value > (f1[top] ?? -1) ? index : top), 0);
    replace(chartBox, lineChart({ label: "Objects found and detections that are right, over the score", xLabel: "lowest score reported", yLabel: "share", xRange: [0, 1], yRange: [0, 1],
      series: [{ name: "objects found (recall)", x: scores, y: rows.map((row) => share(row.found, row.objects)) }, { name: "detections that are right (precision)", x: scores, y: rows.map((row) => share(row.found, row.found + row.wrong)), dashed: true }],
      lines: [{ x: mean, name: "the original threshold (mean of the classes)" }] }),
    el("p", {}, f1[best] === null || f1[best] === undefined ? "These images have no objects, so no threshold is best." : `Best balance (F1 ${number(f1[best], 2)}) at a score of ${scoreText(scores[best])}; the original one is ${mean.toFixed(2)} (dotted line). Suppression at ${state.nms}.`),
    el("div", { class: "actions" }, el("button", { type: "button", onclick: () => { state.score = scores[best]; setSliders(); judged(); reveal(state.chosen); } }, `Show the images at ${scoreText(scores[best])}`), " ", el("button", { type: "button", onclick: render }, "Compute again")));
  };
  render();
}

/* ---- The page ---- */

/** Show something in the image, scroll to it and put the focus on what is said about it. */
function reveal(id) {
  choose(id);
  document.getElementById("stage").scrollIntoView({ block: "start" });
  panel.focus({ preventScroll: true });
}

/** Go on to the next thing of a kind, image after image; `list` gives the keys of the image at hand. */
function seek(list, none, layers = {}) {
  Object.assign(state.layers, layers);
  const from = state.at, chosen = state.chosen;
  for (let step = 0; step <= images.length; step += 1) {
    const at = (from + step) % images.length;
    const here = { image: load(at) };
    here.verdict = judge(here.image, state);
    const keys = list(here);
    const next = step === 0 && keys.includes(chosen) ? keys.slice(keys.indexOf(chosen) + 1) : keys;
    if (!next.length) continue;
    if (at !== state.at) show(at);
    showLayers();
    reveal(next[0]);
    return;
  }
  choose(null);
  panel.prepend(el("p", { role: "status", class: "warn" }, none));
  document.getElementById("stage").scrollIntoView({ block: "start" });
  panel.focus({ preventScroll: true });
}

const jump = (id, before = () => {}) => () => { before(); document.getElementById(id).scrollIntoView({ block: "start" }); };
const QUESTIONS = [
  ["Why is this object missed?", () => seek(({ image: { gt }, verdict: v }) => indices(gt, (one, i) => counts(one) && v.outcomes[i].name !== "found").map((i) => key("gt", i)), "No object of these images is missed at these thresholds.")],
  ["Which anchor answered for this detection?", () => seek(({ verdict: v }) => indices(v.reported, (one) => one).map((i) => key("candidate", i)), "There is no detection at these thresholds.")],
  ["What suppressed this box?", () => seek(({ image: { candidates }, verdict: v }) => indices(candidates, (one, i) => v.fate[i] >= 0 && Math.fround(one.score) >= v.limit(one.name)).map((i) => key("candidate", i)), "No box that scores high enough is suppressed.")],
  ["Is the score threshold right?", jump("thresholds", showChart)],
  ["Which level sees which object, and is its receptive field large enough?", jump("levels")],
  ["What did training see as background, though the network sees an object?", () => seek(({ image: { negatives } }) => negatives.map((_, i) => key("negative", i)), "No negatives were mined in these images.", { negatives: true, ignored: true })],
  ["Why is something detected where nothing is?", () => seek(({ verdict: v }) => indices(v.roles, (role) => role === "false" || role === "duplicate").map((i) => key("candidate", i)), "No detection of these images is false at these thresholds.")],
  ["Does any anchor fit this object?", () => seek(({ image: { gt } }) => indices(gt, () => true).sort((a, b) => gt[a].best_iou - gt[b].best_iou).map((i) => key("gt", i)), "These images have no objects.")],
  ["Which anchors were forced to learn an object that they hardly overlap?", () => seek(({ image: { positives } }) => indices(positives, (one) => one.how === "forced").map((i) => key("positive", i)), "No anchor of these images was forced.", { positives: true })],
  ["What does the network look at, and what has it learnt that from?", () => seek(({ image: { explanations } }) => (explanations ?? []).map((one) => key("candidate", one.candidate)), data.explained ? "No box of these images was explained." : "Nothing was explained: run multibox inspect with --explain.")],
];

function stripButton(one, index) {
  const lost = Object.values(one.missed).reduce((a, b) => a + b, 0);
  const text = one.objects ? (lost ? `${lost} of ${one.objects} missed` : `all ${one.objects} found`) : "no objects";
  return el("button", { type: "button", title: one.file, "aria-label": `${one.file}: ${text}, ${one.false} false`, onclick: () => show(index) },
    el("img", { class: "thumb", src: one.thumb, alt: "", loading: "lazy", decoding: "async" }), el("span", { class: "name" }, el("bdi", {}, one.file)),
    el("span", { class: lost ? "bad" : one.objects ? "good" : "tally" }, text), el("span", { class: "tally" }, `${one.false} false`));
}

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, .scroll")) return;
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") { event.preventDefault(); show(state.at + (event.key === "ArrowRight" ? 1 : -1)); }
  if (event.key === "Escape" && state.chosen) choose(null);
});

strip.append(...images.map(stripButton));
const stage = el("div", { class: "stage", id: "stage" },
  el("div", { class: "bar" }, title, el("button", { type: "button", onclick: () => show(state.at - 1) }, "← Previous"), el("button", { type: "button", onclick: () => show(state.at + 1) }, "Next →")),
  holder, panel, el("div", { class: "tools" }, layerBox, levelKeys, el("div", { class: "controls" }, levelBox, scoreSlider, nmsSlider, back), ownNote));
document.getElementById("main").append(
  contents([["questions", "Questions"], ["image", "Image"], ["objects", "Objects"], ["detections", "Detections"], ["levels", "Levels and losses"], ["thresholds", "Thresholds"], ["terms", "Terms"]]),
  section("questions", "Questions", "Each of these goes to the next case among the images and shows the reason. Press again for the case after it.",
    el("ol", { class: "questions" }, QUESTIONS.map(([text, act]) => el("li", {}, el("a", { href: "#image", onclick: (event) => { event.preventDefault(); act(); } }, text))))),
  section("image", "Image", "What training and prediction made of each image. Choose layers, move the thresholds, and select a box to learn about it.", strip, stage),
  section("objects", "Objects of this image", "What became of each object, and why; select one to see its anchors in the image. Missed objects say what to mend: anchors, thresholds, labels or more training.", objectBox),
  section("detections", "Detections of this image", "What is reported at these thresholds, best first, and whether it is right. IoU is that with the object of its class that it overlaps most.", detectionBox),
  section("levels", "Levels and losses of this image", "Which feature maps learn which objects. A level without positives has nothing to learn here; many forced anchors say that sizes do not fit.", levelsBox, el("p", { class: "note" }, "Negatives are those that training learns from. An object larger than the receptive field is not seen as a whole."), el("p", { id: "matcher" })),
  section("thresholds", "Is the threshold right?", "Objects found and false detections of all images of this page, over the score. multibox report draws the curves of a whole split, class by class.", chartBox),
  section("terms", "Terms", "", el("dl", { class: "terms" }, TERMS.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    data.command ? el("p", { class: "note" }, "This page was made by ", el("code", {}, data.command), ".") : null));
show(0);
document.getElementById("matcher").textContent = aboutMatcher();
// Every image is needed for the chart, so it waits until someone looks
new IntersectionObserver((entries, watcher) => { if (entries.some((entry) => entry.isIntersecting)) { watcher.disconnect(); showChart(); } }).observe(chartBox);
}
