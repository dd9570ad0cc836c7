"use strict";
/* Widgets that all pages share, as `multibox.NAME`. Text goes into the page as text nodes, so names need no escaping. */
const multibox = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const element = document.getElementById("data");
  const data = element ? JSON.parse(element.textContent) : {};

  /** Make an element. Attributes starting with "on" are listeners; null and false leave an attribute out. */
  function el(name, attributes = {}, ...children) {
    return fill(document.createElement(name), attributes, children);
  }

  function svg(name, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, name), attributes, children);
  }

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style") Object.assign(node.style, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  const replace = (node, ...children) => { node.replaceChildren(...children.flat(3).filter((child) => child)); return node; };

  /** Text of a number; a dash where it does not exist. */
  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const percent = (value, digits = 0) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
  const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  const colour = (index) => `var(--c${((index % 8) + 8) % 8})`;

  /** A part of the page under a heading; `intro` says what it shows and what to do about it. */
  function section(id, heading, intro, ...children) {
    return el("section", { id, "aria-labelledby": `${id}-heading` },
      el("h2", { id: `${id}-heading` }, heading), intro ? el("p", { class: "intro" }, intro) : null, ...children);
  }

  /** Links to the sections of the page, which stay at its top. */
  const contents = (entries) => el("nav", { class: "contents", "aria-label": "Sections" },
    entries.map(([id, name]) => el("a", { href: `#${id}` }, name)));

  const card = (name, value, note = "", kind = "") => el("div", { class: "card" },
    el("span", {}, name), el("b", { class: kind }, value), note ? el("small", { class: "note" }, note) : null);

  /** A table whose columns sort on click. `columns`: {name, value: row => sortable, show: row => node or text, number}. */
  function table(columns, rows, { caption = "", label = "", onRow = null } = {}) {
    const body = el("tbody");
    let sorted = null;
    let down = true;
    function render() {
      const order = sorted === null ? rows : [...rows].sort((a, b) => compare(sorted.value(a), sorted.value(b)) * (down ? -1 : 1));
      replace(body, order.map((row) => el("tr", {}, columns.map((column) =>
        el("td", { class: column.number ? "number" : null }, column.show ? column.show(row) : text(column, row))))));
      if (onRow) [...body.children].forEach((line, place) => onRow(line, order[place]));
    }
    const text = (column, row) => { const value = column.value(row); return typeof value === "number" ? number(value, column.digits ?? 3) : value ?? "–"; };
    const heads = columns.map((column) => el("th", { class: column.number ? "number" : null, scope: "col" },
      column.value ? el("button", { type: "button", onclick: () => { down = sorted === column ? !down : Boolean(column.number); sorted = column; mark(); render(); } }, column.name) : column.name));
    const mark = () => heads.forEach((head, place) => columns[place] === sorted ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    render();
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label || caption || "Table" },
      el("table", {}, caption ? el("caption", { class: "note" }, caption) : null, el("thead", {}, el("tr", {}, heads)), body));
  }

  function compare(a, b) {
    const none = (value) => value === null || value === undefined;
    if (none(a) || none(b)) return none(a) - none(b) ? (none(a) ? -1 : 1) : 0;
    return typeof a === "number" ? a - b : String(a).localeCompare(String(b));
  }

  /** A slider with its label and value; `oninput` gets the number. */
  function slider(label, { min = 0, max = 1, step = 0.01, value, digits = 2, oninput }) {
    const shown = el("output", {}, Number(value).toFixed(digits));
    const input = el("input", { type: "range", min, max, step, value, "aria-label": label });
    input.addEventListener("input", () => { shown.textContent = Number(input.value).toFixed(digits); oninput(Number(input.value)); });
    const node = el("label", {}, el("span", {}, `${label}: `, shown), input);
    node.set = (next) => { input.value = next; shown.textContent = Number(next).toFixed(digits); };
    return node;
  }

  function checkbox(label, checked, onchange, swatch = null) {
    const input = el("input", { type: "checkbox", checked, onchange: () => onchange(input.checked) });
    return el("label", { class: "check" }, input, swatch ? el("span", { class: "swatch", style: { background: swatch } }) : null, label);
  }

  function select(label, options, value, onchange) {
    const node = el("select", { "aria-label": label, onchange: () => onchange(node.value) },
      options.map(([key, name]) => el("option", { value: key, selected: key === value }, name)));
    return el("label", {}, el("span", {}, label), node);
  }

  /** Ticks at round numbers between two ends. */
  function ticks(low, high, wanted = 5) {
    const span = high - low || 1;
    const power = 10 ** Math.floor(Math.log10(span / wanted));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => span / each <= wanted) || span;
    const result = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) result.push(Number(tick.toPrecision(12)));
    return result;
  }

  const short = (value) => (Math.abs(value) >= 10000 ? `${Number((value / 1000).toPrecision(3))}k`
    : value && Math.abs(value) < 0.001 ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(4))));

  /** Position of the point of a curve that is nearest to `x`; null where it has none. */
  function nearest(one, x) {
    let best = null;
    one.x.forEach((value, i) => {
      if (value !== null && one.y[i] !== null && Number.isFinite(one.y[i]) && (best === null || Math.abs(value - x) < Math.abs(one.x[best] - x))) best = i;
    });
    return best;
  }

  /** A chart of curves; the values under the pointer stand in its corner. `series`: {name, x, y, colour, dashed, dots, faint}, a faint one without a name below; `lines`: {x or y, name} marks; null values leave gaps. */
  function lineChart({ series, xLabel, yLabel, xRange = null, yRange = null, lines = [], label = "", widest = 640 }) {
    // On a phone, or in a narrow column, fewer units across, so that letters stay readable
    const width = Math.max(340, Math.min(widest, window.innerWidth - 40)), height = Math.round(120 + 0.375 * width), bottom = 46, top = 14, right = 14;
    const finite = (axis) => series.flatMap((one) => one[axis]).filter((value) => value !== null && Number.isFinite(value));
    const range = (given, axis) => {
      if (given) return given;
      const values = finite(axis);
      if (!values.length) return [0, 1];
      const [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
      return low === high ? [low - 0.5, high + 0.5] : [low, high];
    };
    const [x0, x1] = range(xRange, "x"), [y0, y1] = range(yRange, "y");
    // Room for the longest number beside the axis
    const left = 30 + 7 * Math.max(3, ...ticks(y0, y1).map((tick) => short(tick).length));
    const px = (value) => left + (value - x0) / (x1 - x0) * (width - left - right);
    const py = (value) => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
    const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label || `${yLabel} over ${xLabel}` });
    for (const tick of ticks(x0, x1)) chart.append(svg("line", { class: "grid", x1: px(tick), x2: px(tick), y1: top, y2: height - bottom }),
      svg("text", { x: px(tick), y: height - bottom + 17, "text-anchor": "middle" }, short(tick)));
    for (const tick of ticks(y0, y1)) chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) }),
      svg("text", { x: left - 7, y: py(tick) + 4, "text-anchor": "end" }, short(tick)));
    chart.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel),
      svg("text", { x: -(top + height - bottom) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle" }, yLabel));
    for (const line of lines) {
      const at = line.x !== undefined ? { x1: px(line.x), x2: px(line.x), y1: top, y2: height - bottom } : { x1: left, x2: width - right, y1: py(line.y), y2: py(line.y) };
      chart.append(svg("line", { ...at, stroke: "var(--soft)", "stroke-dasharray": "3 4" }, svg("title", {}, line.name)));
    }
    series.forEach((one, place) => {
      const stroke = one.colour || colour(place);
      let path = "", pen = "M";
      one.x.forEach((x, i) => {
        const y = one.y[i];
        if (y === null || x === null || !Number.isFinite(y)) { pen = "M"; return; }
        path += `${pen}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
        pen = "L";
        if (one.dots) chart.append(svg("circle", { cx: px(x), cy: py(y), r: 3, fill: stroke }, svg("title", {}, `${one.name}: ${short(x)}, ${short(y)}`)));
      });
      chart.append(svg("path", { class: "curve", d: path, stroke, "stroke-dasharray": one.dashed ? "6 4" : null, opacity: one.faint ? 0.25 : null }, svg("title", {}, one.name)));
    });
    const named = series.length > 1 || lines.some((line) => line.name);
    const readout = el("div", { class: "readout", "aria-hidden": "true", hidden: true });
    const mark = svg("line", { stroke: "var(--soft)", y1: top, y2: height - bottom, visibility: "hidden" });
    chart.append(mark);
    chart.addEventListener("pointermove", (event) => {
      const place = chart.getBoundingClientRect();
      const x = x0 + ((event.clientX - place.left) / place.width * width - left) / (width - left - right) * (x1 - x0);
      const near = series.filter((one) => !one.faint).map((one) => [one, nearest(one, x)]).filter(([one, at]) => at !== null && Math.abs(one.x[at] - x) <= 0.07 * (x1 - x0));
      readout.hidden = !near.length || x < x0 - 0.02 * (x1 - x0);
      mark.setAttribute("visibility", readout.hidden ? "hidden" : "visible");
      if (readout.hidden) return;
      const [closest, at] = near.reduce((a, b) => (Math.abs(b[0].x[b[1]] - x) < Math.abs(a[0].x[a[1]] - x) ? b : a));
      mark.setAttribute("x1", px(closest.x[at]));
      mark.setAttribute("x2", px(closest.x[at]));
      replace(readout, el("div", {}, `${xLabel} ${short(closest.x[at])}`), near.map(([one, i]) => el("div", {}, series.length > 1 ? `${one.name}: ` : "", el("b", {}, short(one.y[i])))));
    });
    chart.addEventListener("pointerleave", () => { readout.hidden = true; mark.setAttribute("visibility", "hidden"); });
    return el("figure", { class: "curves" }, chart, readout, named ? el("ul", { class: "legend" }, series.map((one, place) => !one.faint && el("li", {},
      el("span", { class: "swatch", style: { background: one.colour || colour(place) } }), one.name))) : null);
  }

  /** Horizontal bars. `bars`: {name, value, text, colour}. */
  function barChart(bars, { most = Math.max(...bars.map((bar) => bar.value || 0), 1e-9) } = {}) {
    return el("div", { class: "bars" }, bars.map((bar) => [el("span", {}, bar.name),
      el("span", {}, el("div", { class: "bar", style: { width: `${100 * Math.max(0, bar.value || 0) / most}%`, background: bar.colour || null } })),
      el("span", {}, bar.text ?? number(bar.value))]));
  }

  /** An image with boxes over it. `draw` takes {box: xyxy in pixels of width x height, colour, dashed or dash (a pattern of SVG), text, below, title, onclick, chosen, faint, key, skip, kind} and
      lines {from, to: [x, y], colour, title}. `below` puts the text under the box, `skip` leaves the box out of the tab order, and after a redraw the box of the same `key` has the focus again. */
  function picture({ src, width, height, alt }) {
    const layer = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
    const node = el("div", { class: "picture", style: { aspectRatio: `${width} / ${height}` } },
      el("img", { src, alt, loading: "lazy", decoding: "async", width, height }), layer);
    node.draw = (boxes, lines = []) => {
      const focused = layer.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
      layer.replaceChildren();
      // At least 12 pixels on the screen, also on a phone
      const letters = Math.max(Math.max(width, height) / 34, 12 * width / (node.clientWidth || Infinity)), taken = [];
      // Labels after all boxes, so that no box covers one
      for (const one of boxes) {
        const [x1, y1, x2, y2] = one.box;
        const role = one.skip ? {} : { role: "button", tabindex: "0", "aria-label": one.title || one.text || "box",
          onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); one.onclick(event); } } };
        layer.append(svg("rect", { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1), stroke: one.colour || "var(--c0)", "data-key": one.key,
          "stroke-dasharray": one.dash || (one.dashed ? "6 4" : null), opacity: one.faint ? 0.45 : null, class: [one.chosen ? "chosen" : "", one.kind || ""].join(" ").trim() || null,
          ...(one.onclick ? { onclick: one.onclick, ...role } : {}) },
        one.title ? svg("title", {}, one.title) : null));
      }
      for (const { from, to, colour: stroke, title } of lines) layer.append(
        svg("line", { x1: from[0], y1: from[1], x2: to[0], y2: to[1], stroke, "pointer-events": "none" }, title ? svg("title", {}, title) : null),
        svg("circle", { cx: to[0], cy: to[1], r: letters / 4, fill: stroke, "pointer-events": "none" }));
      for (const one of boxes) if (one.text) layer.append(label(one, letters, taken));
      if (focused !== undefined) [...layer.querySelectorAll("[tabindex]")].find((each) => each.dataset.key === focused)?.focus();
    };
    /** Text at a box: above or below it, a row further where other text stands already. */
    function label({ box: [x1, y1, x2, y2], text, below }, letters, taken) {
      const wide = 0.6 * letters * (text.length + 1), start = Math.max(0, Math.min(x1 + letters / 8, width - wide));
      const first = below ? (y2 + letters < height ? y2 + letters : y2 - letters / 5) : y1 > letters ? y1 - letters / 5 : y1 + letters;
      const free = (y) => y >= letters && y <= height && taken.every(([left, row, right]) => Math.abs(row - y) >= letters || left > start + wide || right < start);
      const y = [0, 1, -1, 2, -2].map((rows) => first + 1.1 * rows * letters * (below ? 1 : -1)).find(free) ?? first;
      taken.push([start, y, start + wide]);
      return svg("text", { x: start, y, "font-size": letters, "pointer-events": "none" }, text);
    }
    node.heat = (uri) => { node.querySelector(".heat")?.remove(); if (uri) layer.before(el("img", { class: "heat", src: uri, alt: "" })); };
    return node;
  }

  function overlap(a, b) {
    const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]), height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    if (width <= 0 || height <= 0) return 0;
    const shared = width * height, area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
    return shared / (area(a) + area(b) - shared);
  }

  /** Suppress per class, best first, as postprocess.py does. `candidates` {box, score, label} stand best first. Returns [kept by position or -1 if kept or null if below `score`]. */
  function suppress(candidates, { score, nms, inclusive = false, most = Infinity }) {
    const kept = [], keptOf = new Map(), fate = candidates.map(() => null);
    candidates.forEach((one, place) => {
      if (!(one.score > score)) return;
      if (!keptOf.has(one.label)) keptOf.set(one.label, []);
      const rivals = keptOf.get(one.label);
      const by = rivals.find((other) => {
        const iou = overlap(candidates[other].box, one.box);
        return inclusive ? iou >= nms : iou > nms;
      });
      fate[place] = by === undefined ? -1 : by;
      if (by === undefined) { kept.push(place); rivals.push(place); }
    });
    kept.slice(most).forEach((place) => { fate[place] = null; });
    return fate;
  }

  return { data, el, svg, replace, number, percent, count, colour, section, contents, card, table, slider, checkbox, select, lineChart, barChart, picture, overlap, suppress };
})();
