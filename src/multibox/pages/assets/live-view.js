"use strict";
/* The image or the camera's picture with boxes over it. Boxes are buttons, placed in percent, so they fit every size of the window. */
multibox.view = (onchoose) => {
  const { el } = multibox, { say, colour, named } = multibox.parts;
  const MANY = 40; // boxes above which labels show only at the box that is pointed at
  const WANTED = 0.6, CLOSEST = 8; // share of the frame that a box takes when zoomed in, and the largest scale
  const layer = el("div", { class: "boxes", role: "group" });
  const inner = el("div", { class: "inner" });
  const frame = el("div", { class: "frame" }, inner);
  const nodes = new Map();
  let shown = [], entry = null, chosen = null, zoomed = false;
  named(layer, "aria-label", "crops");

  /** Put an image, a video or nothing under the boxes. */
  function show(media, width, height) {
    nodes.clear();
    layer.replaceChildren();
    inner.replaceChildren(...(media ? [media] : []), layer);
    frame.classList.toggle("blind", !media);
    shape(width, height);
    zoom(false);
  }

  function shape(width, height) {
    frame.style.setProperty("--ratio", width / height);
  }

  /** Draw the detections `places` of an image. */
  function draw(next, places, at) {
    if (next !== entry) { nodes.clear(); layer.replaceChildren(); entry = next; }
    shown = places;
    chosen = at;
    const wanted = new Set(places), fresh = [];
    for (const [place, node] of nodes) node.hidden = !wanted.has(place);
    for (const place of places) if (!nodes.has(place)) { nodes.set(place, make(place)); fresh.push(place); }
    // Small boxes above large ones, so that each can be clicked
    if (fresh.length) [...nodes.keys()].sort((a, b) => area(b) - area(a)).forEach((place) => layer.append(nodes.get(place)));
    const stop = places.includes(chosen) ? chosen : places[0];
    for (const [place, node] of nodes) {
      node.tabIndex = place === stop ? 0 : -1;
      node.setAttribute("aria-pressed", String(place === chosen));
    }
    layer.classList.toggle("many", places.length > MANY);
    layer.classList.toggle("dim", places.includes(chosen));
    if (zoomed && places.includes(chosen)) aim(); else if (zoomed) zoom(false);
  }

  const area = (place) => { const [x1, y1, x2, y2] = entry.candidates[place].box; return (x2 - x1) * (y2 - y1); };

  function make(place) {
    const { name, score, label, box: [x1, y1, x2, y2] } = entry.candidates[place], { width, height } = entry;
    const across = (value) => `${100 * value / width}%`, down = (value) => `${100 * value / height}%`;
    const node = el("button", { type: "button", class: "box", "data-place": place, "aria-label": `${name} ${score.toFixed(2)}`, onclick: () => onchoose(place, "box"),
      style: { left: across(x1), top: down(y1), width: across(x2 - x1), height: down(y2 - y1) } },
    el("span", { class: `tag${y1 < 0.06 * height ? " inside" : ""}${x1 > 0.75 * width ? " right" : ""}` }, name, el("small", {}, score.toFixed(2))));
    node.style.setProperty("--box", colour(label));
    return node;
  }

  layer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const now = shown.indexOf(Number(event.target.dataset.place));
    const next = step ? shown[(now + step + shown.length) % shown.length] : event.key === "Home" ? shown[0] : event.key === "End" ? shown.at(-1) : undefined;
    if (next === undefined) return;
    event.preventDefault();
    onchoose(next, "keys");
    nodes.get(next)?.focus({ preventScroll: true });
  });

  function zoom(on) {
    zoomed = on && chosen !== null;
    frame.classList.toggle("zoomed", zoomed);
    if (zoomed) aim(); else { inner.style.transform = ""; inner.style.setProperty("--zoom", 1); }
  }

  /** Move the image so that the chosen box fills the frame. */
  function aim() {
    const { width, height } = entry, [x1, y1, x2, y2] = entry.candidates[chosen].box;
    const scale = Math.max(1, Math.min(CLOSEST, WANTED / Math.max((x2 - x1) / width, (y2 - y1) / height)));
    const shift = (centre) => 100 * Math.min(0, Math.max(1 - scale, 0.5 - scale * centre));
    inner.style.transform = `translate(${shift((x1 + x2) / 2 / width)}%, ${shift((y1 + y2) / 2 / height)}%) scale(${scale})`;
    inner.style.setProperty("--zoom", scale);
  }

  return { node: frame, show, shape, draw, zoom, say, isZoomed: () => zoomed, focus: (place) => nodes.get(place)?.focus({ preventScroll: true }) };
};
