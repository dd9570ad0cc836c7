"use strict";
/* The image or the camera's picture with boxes over it. Boxes are buttons, placed in percent, so they fit every size of the window. */
multibox.view = (onchoose) => {
  const { el } = multibox, { colour, named, neighbour } = multibox.parts;
  const LETTER = 12.8, ROW = 18; // of a label, in pixels
  const WANTED = 0.6, CLOSEST = 8; // share of the frame that a box takes when zoomed in, and the largest scale
  const layer = el("div", { class: "boxes", role: "group" });
  const inner = el("div", { class: "inner" });
  const frame = el("div", { class: "frame" }, inner);
  const nodes = new Map();
  let shown = [], entry = null, chosen = null, zoomed = false, magnified = 1;
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
    (frame.closest(".work") ?? frame).style.setProperty("--ratio", width / height);
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
    layer.classList.toggle("passing", next.live === true);
    for (const [place, node] of nodes) {
      // Boxes of a camera are gone with the next frame
      node.tabIndex = place === stop && !next.live ? 0 : -1;
      node.setAttribute("aria-pressed", String(place === chosen));
    }
    layer.classList.toggle("dim", places.includes(chosen));
    thin();
    if (zoomed && places.includes(chosen)) aim(); else if (zoomed) zoom(false);
  }

  /** Put each label above its box or inside, and leave out those that would cover another one; they show when pointed at. */
  function thin() {
    const taken = [], wide = frame.clientWidth * magnified, high = frame.clientHeight * magnified;
    if (!wide) return;
    for (const place of shown) {
      const node = nodes.get(place), tag = node.lastChild, { name, box } = entry.candidates[place];
      const [x1, y1, x2] = box.map((side, at) => (at % 2 ? side / entry.height * high : side / entry.width * wide));
      const length = Math.min(16 * LETTER, LETTER * 0.58 * (name.length + 7)), right = x1 + length > wide, inside = y1 < ROW;
      const left = right ? Math.max(0, x2 - length) : x1, top = inside ? y1 : y1 - ROW;
      const free = taken.every(([x, y, end]) => Math.abs(y - top) >= ROW || x >= left + length || end <= left);
      if (free) taken.push([left, top, left + length]);
      node.classList.toggle("quiet", !free);
      tag.classList.toggle("inside", inside);
      tag.classList.toggle("right", right);
    }
  }
  new ResizeObserver(thin).observe(frame);

  const area = (place) => { const [x1, y1, x2, y2] = entry.candidates[place].box; return (x2 - x1) * (y2 - y1); };

  function make(place) {
    const { name, score, label, box: [x1, y1, x2, y2] } = entry.candidates[place], { width, height } = entry;
    const across = (value) => `${100 * value / width}%`, down = (value) => `${100 * value / height}%`;
    const node = el("button", { type: "button", class: "box", "data-place": place, "aria-label": `${name} ${score.toFixed(2)}`, onclick: () => onchoose(place, "box"),
      style: { left: across(x1), top: down(y1), width: across(x2 - x1), height: down(y2 - y1) } },
    el("span", { class: "tag" }, el("span", {}, name), " ", el("small", {}, score.toFixed(2))));
    node.style.setProperty("--box", colour(label));
    return node;
  }

  layer.addEventListener("keydown", (event) => {
    const next = neighbour(shown, Number(event.target.dataset.place), event.key);
    if (next === undefined) return;
    event.preventDefault();
    onchoose(next, "keys");
    nodes.get(next)?.focus({ preventScroll: true });
  });

  function zoom(on) {
    zoomed = on && chosen !== null;
    frame.classList.toggle("zoomed", zoomed);
    if (zoomed) aim(); else fit(1, 0, 0);
  }

  /** Move the image so that the chosen box fills the frame. */
  function aim() {
    const { width, height } = entry, [x1, y1, x2, y2] = entry.candidates[chosen].box;
    const scale = Math.max(1, Math.min(CLOSEST, WANTED / Math.max((x2 - x1) / width, (y2 - y1) / height)));
    const shift = (centre) => 100 * Math.min(0, Math.max(1 - scale, 0.5 - scale * centre));
    fit(scale, shift((x1 + x2) / 2 / width), shift((y1 + y2) / 2 / height));
  }

  /** Scale the image by its size, not by a transform, which would scale lines and letters, too. */
  function fit(scale, left, top) {
    Object.assign(inner.style, { width: `${100 * scale}%`, height: `${100 * scale}%`, left: `${left}%`, top: `${top}%` });
    if (magnified !== scale) { magnified = scale; if (entry) thin(); }
  }

  return { node: frame, show, shape, draw, zoom, isZoomed: () => zoomed, focus: (place) => nodes.get(place)?.focus({ preventScroll: true }) };
};
