"use strict";
/* Parts of the live page: its language, which detections are shown, crops, sliders, copying and saving. */
multibox.parts = (() => {
  const { el, suppress } = multibox;
  const SAVED = "multibox-language";
  const SCORE_DIGITS = 5, BOX_DIGITS = 2; // as in the server's answers
  const COLOURS = 10;

  /* ---- Language ---- */
  const stored = () => { try { return localStorage.getItem(SAVED); } catch { return null; } };
  const wanted = stored() || navigator.language || "en";
  let language = wanted.startsWith("zh") ? "zh" : "en";
  const fixed = [];

  const say = (key, ...values) => { const text = multibox.words[language][key]; return typeof text === "function" ? text(...values) : text; };
  /** A text node in the page's language; it changes with it. Only for what stays on the page. */
  function word(key, ...values) {
    const node = document.createTextNode("");
    onLanguage(() => { node.data = say(key, ...values); });
    return node;
  }
  /** Give a node an attribute in the page's language. */
  function named(node, attribute, key, ...values) {
    onLanguage(() => node.setAttribute(attribute, say(key, ...values)));
    return node;
  }
  function onLanguage(act) { fixed.push(act); act(); }
  function setLanguage(next) {
    language = next;
    try { localStorage.setItem(SAVED, next); } catch { /* a private window */ }
    apply();
  }
  function apply() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    fixed.forEach((act) => act());
  }
  function languageSwitch() {
    const node = el("select", { onchange: () => setLanguage(node.value) }, [["en", "English"], ["zh", "中文"]].map(([value, name]) => el("option", { value, lang: value, selected: value === language }, name)));
    return named(node, "aria-label", "language");
  }

  /* ---- Detections ---- */
  const id = ({ label, score, box }) => `${label} ${score} ${box}`;

  /** Which candidates suppression keeps, by position. At the model's own overlap the server's own result counts: it compared boxes before they were cut at the border. */
  function kept(entry, { nms }, model) {
    if (entry.keptAt !== nms) {
      if (nms === model.nms && entry.kept) {
        const left = new Map();
        for (const one of entry.kept) left.set(id(one), (left.get(id(one)) ?? 0) + 1);
        entry.keeps = entry.candidates.map((one) => { const count = left.get(id(one)) ?? 0; left.set(id(one), count - 1); return count > 0; });
      } else entry.keeps = suppress(entry.candidates, { score: -1, nms, inclusive: model.inclusive }).map((fate) => fate === -1);
      entry.keptAt = nms;
    }
    return entry.keeps;
  }

  /** Positions of the detections at settings {score: a number, or null for the model's own; nms}, best first. */
  function detections(entry, settings, model) {
    const keeps = kept(entry, settings, model), result = [];
    for (let place = 0; place < keeps.length && result.length < model.most; place += 1) {
      const one = entry.candidates[place];
      // Scores are float32 on the other side
      if (keeps[place] && Math.fround(one.score) >= Math.fround(settings.score ?? model.thresholds[one.label])) result.push(place);
    }
    return result;
  }

  /** The detections as `multibox predict --json` writes them. */
  function asJson(entry, places) {
    const round = (value, digits) => Number(value.toFixed(digits));
    const rows = places.map((place) => entry.candidates[place]).map(({ label, name, score, box }) =>
      ({ label, name, score: round(score, SCORE_DIGITS), box: box.map((side) => round(side, BOX_DIGITS)) }));
    return JSON.stringify({ file: entry.name, width: entry.width, height: entry.height, detections: rows }, null, 2);
  }

  /** Classes have colours in the order in which they appear, so that the first ten differ. */
  const seen = new Map();
  function colour(label) {
    if (!seen.has(label)) seen.set(label, seen.size);
    return `var(--b${seen.get(label) % COLOURS})`;
  }

  /* ---- Pixels ---- */
  /** Width and height of an image (upright, whatever its EXIF orientation) or a canvas. */
  const size = (media) => (media instanceof HTMLImageElement ? [media.naturalWidth, media.naturalHeight] : [media.width, media.height]);

  /** The part of an image in a box as a canvas, at most `side` pixels long; null where the browser cannot show the image. */
  function crop(entry, box, side = Infinity) {
    if (!entry.media) return null;
    const [across, down] = size(entry.media), x = across / entry.width, y = down / entry.height;
    const left = Math.max(0, Math.floor(box[0] * x)), top = Math.max(0, Math.floor(box[1] * y));
    const width = Math.max(1, Math.min(across, Math.ceil(box[2] * x)) - left), height = Math.max(1, Math.min(down, Math.ceil(box[3] * y)) - top);
    const scale = Math.min(1, side / Math.max(width, height));
    const canvas = el("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
    canvas.getContext("2d").drawImage(entry.media, left, top, width, height, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  /** The image with its boxes and labels as a canvas. */
  function drawn(entry, places) {
    const [width, height] = size(entry.media);
    const canvas = el("canvas", { width, height }), pen = canvas.getContext("2d");
    const line = Math.max(2, Math.round(Math.max(width, height) / 350)), letters = 6 * line + 2;
    const x = width / entry.width, y = height / entry.height;
    const shades = getComputedStyle(document.documentElement);
    pen.drawImage(entry.media, 0, 0);
    Object.assign(pen, { lineWidth: line, font: `${letters}px system-ui, sans-serif`, textBaseline: "middle" });
    // The best on top
    for (const { name, score, label, box: [x1, y1, x2, y2] } of places.map((place) => entry.candidates[place]).reverse()) {
      const text = `${name} ${score.toFixed(2)}`, high = 1.4 * letters, top = y1 * y >= high ? y1 * y - high : y1 * y;
      pen.strokeStyle = pen.fillStyle = shades.getPropertyValue(colour(label).slice(4, -1));
      pen.strokeRect(x1 * x, y1 * y, (x2 - x1) * x, (y2 - y1) * y);
      pen.fillRect(x1 * x - line / 2, top, pen.measureText(text).width + letters, high);
      pen.fillStyle = "#111";
      pen.fillText(text, x1 * x + letters / 2, top + high / 2);
    }
    return canvas;
  }

  const toBlob = (canvas, type = "image/png", quality = undefined) => new Promise((resolve) => canvas.toBlob(resolve, type, quality));

  function save(blob, name) {
    const href = URL.createObjectURL(blob);
    el("a", { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  }
  const stem = (name) => name.replace(/\.[^.]*$/, "") || "image";

  /* ---- Controls ---- */
  /** A slider in the page's language; `node.set(value, text)` moves it, `text` stands for the number. */
  function slider(key, noteKey, { min, max, step = 0.01, oninput }) {
    const shown = el("output", {});
    const input = el("input", { type: "range", min, max, step, oninput: () => { shown.textContent = Number(input.value).toFixed(2); input.removeAttribute("aria-valuetext"); oninput(Number(input.value)); } });
    named(input, "aria-label", key);
    const node = el("label", { class: "slider" }, el("span", { class: "line" }, el("b", {}, word(key)), shown), input, el("small", { class: "note" }, word(noteKey)));
    node.set = (value, text = value.toFixed(2)) => { input.value = value; shown.textContent = text; input.setAttribute("aria-valuetext", text); };
    return node;
  }

  /** The item to which a key goes from one of a list; undefined for other keys. */
  function neighbour(list, from, key) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
    if (key === "Home") return list[0];
    if (key === "End") return list.at(-1);
    return step && list[(list.indexOf(from) + step + list.length) % list.length];
  }

  const button = (key, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, word(key));

  /** Copy text; return whether the browser allowed it. Plain HTTP pages have no `navigator.clipboard`. */
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* the older way */ }
    const area = el("textarea", { class: "aside", "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch { /* not allowed */ }
    area.remove();
    focused?.focus?.({ preventScroll: true });
    return done;
  }

  return { say, word, named, onLanguage, languageSwitch, apply, kept, detections, asJson, colour, size, crop, drawn, toBlob, save, stem, slider, neighbour, button, copy };
})();
