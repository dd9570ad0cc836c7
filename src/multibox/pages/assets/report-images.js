"use strict";
/* Sections of a report that show images: confusion, error kinds, worst images, mistakes, label suspects, duplicates. */
(() => {
  const { data, el, replace, number, percent, count, section, table, select, checkbox, barChart } = multibox;
  const parts = multibox.report, { report, background, className, growing, thumbnail, crop, legend, note, whenNear, KINDS } = parts;
  const plural = (many, one, more = `${one}s`) => `${count(many)} ${many === 1 ? one : more}`;

  function cellTitle(gt, predicted, many) {
    if (gt === background) return `${className(predicted)} detected where no object is: ${plural(many, "time")}`;
    if (predicted === background) return `${className(gt)} missed: ${plural(many, "time")}`;
    return gt === predicted ? `${className(gt)} found: ${plural(many, "time")}` : `${className(gt)} taken for ${className(predicted)}: ${plural(many, "time")}`;
  }

  function confusion() {
    const intro = "Rows are the labelled classes, columns what was detected with a score from the model's thresholds on. Blue is right, orange is wrong; the last column counts missed objects, the last row boxes where no object is. Press a cell to see its images.";
    const matrix = report.confusion;
    if (!matrix?.counts?.length) return section("confusion", "Confusion matrix", intro, note("There is no confusion matrix."));
    const { names, counts } = matrix, size = names.length;
    const cells = new Map((matrix.cells || []).map((cell) => [cell.gt * size + cell.predicted, cell]));
    const panel = el("div", { class: "cell-images", role: "region", "aria-label": "Images of the chosen cell", tabindex: "-1" });
    // Rows and columns of classes that occur; of 90 classes a data set may have 20
    const rowSums = counts.map((row) => row.reduce((a, b) => a + b, 0)), columnSums = names.map((_, column) => counts.reduce((sum, row) => sum + row[column], 0));
    const occurring = names.map((_, place) => place).filter((place) => place === background || rowSums[place] || columnSums[place]);
    const across = occurring.length, buttons = [];
    let shares = false, chosen = null, current = 0;
    const mostWrong = Math.max(1, ...counts.map((row, gt) => Math.max(0, ...row.filter((_, predicted) => predicted !== gt))));
    const shown = (gt, predicted) => { const many = counts[gt][predicted]; return !many ? "" : shares ? (many / rowSums[gt]).toFixed(2) : count(many); };
    const heat = (gt, predicted) => { const many = counts[gt][predicted]; return !many ? 0 : shares || gt === predicted ? many / rowSums[gt] : Math.sqrt(many / mostWrong); };
    const paint = () => buttons.forEach((button) => {
      const { gt, predicted } = button.place;
      button.textContent = shown(gt, predicted);
      button.style.setProperty("--share", heat(gt, predicted).toFixed(3));
    });
    const show = (button) => {
      const { gt, predicted } = button.place, many = counts[gt][predicted], cell = cells.get(gt * size + predicted);
      chosen?.removeAttribute("aria-pressed");
      chosen = button;
      button.setAttribute("aria-pressed", "true");
      const images = cell?.images || [], rest = (cell?.total ?? images.length) - images.length;
      replace(panel, el("h3", {}, cellTitle(gt, predicted, many)), many ? [legend(gt === background ? ["wrong"] : predicted === background ? ["missed"] : gt === predicted ? ["right", "found"] : ["wrong", "missed"]),
        images.length ? growing(images, (image) => thumbnail(image, data.files[image].file, { cell: [gt, predicted] })) : null,
        rest > 0 ? el("details", {}, el("summary", {}, `${images.length ? "and " : ""}${plural(rest, "more image")} without a thumbnail here`), el("p", { class: "note" }, (cell.more || []).join(", "), rest > (cell.more || []).length ? " …" : "")) : null]
        : note("No case."));
      panel.focus({ preventScroll: true });
      panel.scrollIntoView({ block: "nearest" });
    };
    panel.addEventListener("keydown", (event) => { if (event.key === "Escape" && chosen) chosen.focus(); });
    const go = (to) => { buttons[current].tabIndex = -1; current = to; buttons[to].tabIndex = 0; buttons[to].focus(); };
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const onkeydown = (event) => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const row = Math.min(across - 1, Math.max(0, Math.floor(current / across) + step[0])), column = Math.min(across - 1, Math.max(0, current % across + step[1]));
      if (row * across + column < buttons.length) go(row * across + column);
    };
    const cellOf = (gt, predicted) => {
      // No case can be background on both sides; it is the last cell
      if (gt === background && predicted === background) return el("td");
      const place = buttons.length, title = counts[gt][predicted] ? cellTitle(gt, predicted, counts[gt][predicted]) : null;
      const button = el("button", { type: "button", tabindex: place ? "-1" : "0", class: gt === predicted ? "right" : "wrong", title, "aria-label": title, onclick: () => { go(place); show(button); } });
      button.place = { gt, predicted };
      buttons.push(button);
      return el("td", {}, button);
    };
    const body = el("tbody");
    // 80 classes are 6,500 cells: they are made when they come near the window
    const build = () => {
      if (buttons.length) return;
      body.append(...occurring.map((gt) => el("tr", {}, el("th", { scope: "row" }, el("span", {}, names[gt])), occurring.map((predicted) => cellOf(gt, predicted)))));
      paint();
      box.style.minHeight = null;
    };
    const swaps = counts.flatMap((row, gt) => row.map((many, predicted) => ({ gt, predicted, many }))).filter(({ gt, predicted, many }) => many && gt !== predicted && gt !== background && predicted !== background)
      .sort((a, b) => b.many - a.many).slice(0, 8);
    const reveal = ({ gt, predicted }) => { build(); buttons.find(({ place }) => place.gt === gt && place.predicted === predicted).click(); };
    const left = size - across;
    const box = el("div", { class: "scroll matrix" }, el("table", { onkeydown }, el("caption", { class: "note" }, "Arrow keys move between cells; Enter shows the images, Escape returns."),
        el("thead", {}, el("tr", {}, el("td", { class: "corner" }, "label ↓ detected →"), occurring.map((place) => el("th", { scope: "col" }, el("span", {}, names[place]))))), body));
    if (across <= 12) build();
    else { box.style.minHeight = "85vh"; whenNear(box, build); }
    return section("confusion", "Confusion matrix", intro,
      swaps.length ? el("p", { class: "swaps" }, "Classes that are confused most: ", swaps.map((swap, place) => [place ? ", " : "", el("button", { type: "button", class: "link", onclick: () => reveal(swap) }, `${className(swap.gt)} taken for ${className(swap.predicted)} (${count(swap.many)})`)])) : null,
      el("div", { class: "controls" }, checkbox("Shares of each row instead of counts", false, (on) => { shares = on; paint(); })),
      box,
      left ? note(`${plural(left, "class is", "classes are")} left out: neither labelled nor detected in these images.`) : null, panel);
  }

  const LINES = { wrong: { ...KINDS.wrong }, label: { ...KINDS.missed, dash: "5 4" } };

  /** How the boxes of a mistake look: the detection, then the object. */
  function mistakeLines(one) {
    const lines = [];
    if (one.box) lines.push({ ...LINES.wrong, title: `detected: ${one.name}` });
    if (one.gt_box) lines.push({ ...LINES.label, title: `labelled: ${one.gt_name}` });
    return lines;
  }

  function mistake(position) {
    const one = report.mistakes[position], lines = mistakeLines(one);
    const extra = [one.box, one.gt_box].filter(Boolean).map((box, place) => ({ box, ...lines[place] }));
    const what = one.score === null || one.score === undefined ? `${one.gt_name ?? one.name} missed` : `${one.name} ${number(one.score, 2)}`;
    const label = one.gt_name && one.score !== null && one.score !== undefined ? `, label ${one.gt_name}${one.iou !== null && one.iou !== undefined ? ` (IoU ${number(one.iou, 2)})` : ""}` : "";
    const file = data.files[one.file];
    return crop("mistakes", position, lines, [el("b", {}, what), label, el("br"), `${one.kind} · ${file?.file ?? ""}`], { image: file ? one.file : null, extra, alt: `${what}${label}` });
  }

  function errors() {
    const intro = "Each kind of error and the AP50 that would be gained if it alone were mended (TIDE, ECCV 2020). Detections count down to a score of 0 here, not only from the model's thresholds as elsewhere on this page: an object is missed only if no detection of any score finds it. Begin with the longest bar.";
    const one = report.errors || {}, kinds = one.kinds || [];
    if (!kinds.length) return section("errors", "Errors and what they cost", intro, note("There are no errors to divide."));
    const examples = el("div", { "aria-live": "polite" });
    const show = (kind) => {
      rows.forEach((button, name) => button.setAttribute("aria-pressed", String(name === kind.kind)));
      replace(examples, el("h3", {}, `Examples: ${kind.kind}`), kind.examples?.length ? [el("ul", { class: "legend" }, legendOf("wrong", "detected"), legendOf("missed", "labelled")), growing(kind.examples, mistake, { first: 12 })] : note(kind.count ? "No example is among the most certain mistakes below." : "No case."));
    };
    const rows = new Map(kinds.map((kind) => [kind.kind, el("button", { type: "button", class: "kind", title: `Examples of ${kind.kind}`, onclick: () => show(kind) }, kind.kind)]));
    const summed = (kind) => ["false-positives", "false-negatives"].includes(kind.kind);
    const worst = [...kinds].filter((kind) => !summed(kind)).sort((a, b) => (b.ap_cost || 0) - (a.ap_cost || 0))[0];
    const bars = (some) => barChart(some.map((kind) => ({ name: rows.get(kind.kind), value: kind.ap_cost, text: `${number(kind.ap_cost)} · ${count(kind.count)}×`, colour: summed(kind) ? "var(--c7)" : kind === worst ? "var(--bad)" : null })), { most: Math.max(...kinds.map((kind) => kind.ap_cost || 0), 1e-9) });
    const node = section("errors", "Errors and what they cost", intro, note(`AP50 is ${number(one.ap50)}. A bar shows what it would gain, and how many cases there are down to a score of 0.`),
      bars(kinds.filter((kind) => !summed(kind))), el("h3", {}, "All of them together"), bars(kinds.filter(summed)),
      el("details", {}, el("summary", {}, "What the kinds mean"), el("dl", {}, kinds.map((kind) => [el("dt", {}, kind.kind), el("dd", {}, kind.meaning || "")]))), examples);
    show(worst || kinds[0]);
    return node;
  }

  const legendOf = (kind, name) => { const item = legend([kind]).firstChild; item.lastChild.textContent = name; return item; };

  function worst() {
    const intro = "The images with most missed objects and false boxes, at the model's thresholds. Press one: it says of each missed object and each false box why.";
    const images = report.worst || [];
    return section("worst", "Worst images", intro, images.length ? legend() : null, growing(images, (image) => {
      const file = data.files[image];
      return thumbnail(image, [el("b", {}, `${plural(file.missed, "missed", "missed")}, ${plural(file.false, "false", "false")}`), el("br"), file.file]);
    }, { empty: "No image has an error: every object is found and no box is false." }));
  }

  function mistakes() {
    const intro = "Wrong boxes that the model is most certain of, the most certain first, and missed objects. Where the label is wrong rather than the model, mend the label.";
    const all = (report.mistakes || []).map((_, position) => position), list = el("div");
    const kinds = [...new Set((report.mistakes || []).map((one) => one.kind))];
    const show = (kind) => replace(list, growing(all.filter((position) => kind === "all" || report.mistakes[position].kind === kind), mistake, { empty: "No mistake." }));
    show("all");
    return section("mistakes", "Most certain mistakes", intro, all.length ? [el("ul", { class: "legend" }, legendOf("wrong", "detected"), legendOf("missed", "labelled")),
      kinds.length > 1 ? el("div", { class: "controls" }, select("Kind of mistake", [["all", "all kinds"], ...kinds.map((kind) => [kind, kind])], "all", show)) : null] : null, list);
  }

  /* Label suspects: what a person decides stays in this browser, and can be copied or saved. */
  const SUSPECTS = { missing: "label missing", location: "label badly placed", class: "label of the wrong class" };
  const MANY = { missing: "missing", location: "badly placed", class: "of the wrong class" };
  const CHOICES = [["label", "label is wrong"], ["model", "model is wrong"], ["unsure", "unsure"]];
  const STORE = `multibox-report ${data.key}`;
  let decided = {};
  try { decided = JSON.parse(localStorage.getItem(STORE)) || {}; } catch { /* no storage for this page: decisions last until it is closed */ }
  const keyOf = (one) => `${one.file} ${one.kind} ${(one.box || one.suggested_box || []).map((side) => Math.round(side)).join(" ")}`;

  function decide(one, choice) {
    decided[keyOf(one)] = choice;
    try { localStorage.setItem(STORE, JSON.stringify(decided)); } catch { /* as above */ }
  }

  const decisions = () => (report.suspects || []).filter((one) => decided[keyOf(one)]).map((one) => ({ file: one.file, kind: one.kind, decision: decided[keyOf(one)], box: one.box, name: one.name, suggested_box: one.suggested_box, suggested_name: one.suggested_name, rank: one.rank }));

  function asCsv(rows) {
    // A cell that begins like a formula would be run by a spreadsheet
    const cell = (value) => { const text = String(value ?? ""), safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe; };
    const corners = (box) => (box ? box.map((side) => Math.round(side * 10) / 10) : ["", "", "", ""]);
    const head = ["file", "kind", "decision", "rank", "name", "x1", "y1", "x2", "y2", "suggested_name", "suggested_x1", "suggested_y1", "suggested_x2", "suggested_y2"];
    return `${[head, ...rows.map((row) => [row.file, row.kind, row.decision, row.rank, row.name, ...corners(row.box), row.suggested_name, ...corners(row.suggested_box)])].map((row) => row.map((value) => (typeof value === "number" ? value : cell(value))).join(",")).join("\n")}\n`;
  }

  function suspect(position, changed) {
    const one = report.suspects[position], image = one.position ?? null;
    const lines = [one.box ? { ...LINES.label, text: one.suggested_name && one.suggested_name !== one.name ? `${one.name} → ${one.suggested_name}` : one.name, title: `label: ${one.name}` } : null, one.suggested_box ? { ...KINDS.right, text: one.box ? null : one.suggested_name, title: `suggested: ${one.suggested_name}` } : null].filter(Boolean);
    const extra = [one.box, one.suggested_box].filter(Boolean).map((box, place) => ({ box, ...lines[place] }));
    const figure = crop("suspects", position, lines, [el("b", {}, `${one.rank}. ${SUSPECTS[one.kind] ?? one.kind}`), el("br"), one.why || "", el("br"), el("span", {}, `${one.file}${one.evidence?.length ? ` · seen in ${one.evidence.join(" and ")}` : ""}`)],
      { image: image !== null && data.files[image] ? image : null, extra, alt: `suspect ${one.rank}, ${one.kind}` });
    const choices = el("fieldset", { class: "decision" }, el("legend", {}, `Decision on suspect ${one.rank}`), CHOICES.map(([value, name]) => {
      const input = el("input", { type: "radio", name: `suspect-${position}`, value, onchange: () => { decide(one, value); changed(); } });
      input.checked = decided[keyOf(one)] === value;
      return el("label", {}, input, name);
    }));
    return el("div", { class: "suspect" }, figure, choices);
  }

  function suspects() {
    const intro = "Labels that the model or its training contradicts, the most suspect first. Look at each: if the label is wrong, mend it in your labelling tool; if the model is wrong, the image is a good one to learn from. Missing labels are found least often (in a test a third to a half of the deleted ones, but 9 in 10 of those moved or of another class), and a weak model finds few of them.";
    const all = report.suspects;
    if (!all) return section("suspects", "Label suspects", intro, note("Labels were not examined."));
    if (!all.length) return section("suspects", "Label suspects", intro, note("No label looks wrong."));
    const positions = all.map((_, position) => position).slice(0, data.suspects_shown), list = el("div"), status = el("span", { class: "note", "aria-live": "polite" });
    const changed = () => { const many = decisions().length; status.textContent = many ? `${plural(many, "decision")} made` : "No decision made yet"; };
    const show = (kind) => replace(list, growing(positions.filter((position) => kind === "all" || all[position].kind === kind), (position) => suspect(position, changed), { empty: "No suspect of this kind." }));
    const kinds = Object.keys(SUSPECTS).map((kind) => [kind, all.filter((one) => one.kind === kind).length]).filter(([, many]) => many);
    show("all");
    changed();
    const copy = async () => { status.textContent = (await parts.toClipboard(asCsv(decisions()))) ? "Copied as CSV" : "Copying is not allowed here; download the list instead"; };
    return section("suspects", "Label suspects", intro,
      el("p", {}, `${plural(all.length, "suspect")}: ${kinds.map(([kind, many]) => `${count(many)} ${MANY[kind]}`).join(", ")}.`,
        report.relabel ? [" The whole list, for your labelling tool, is in ", el("code", {}, `${report.relabel.folder ?? "relabel"}/`), " beside this page", report.relabel.files?.length ? ` (${report.relabel.files.join(", ")})` : "", "."] : null),
      el("ul", { class: "legend" }, legendOf("missed", "label as it is"), legendOf("right", "suggested box")),
      el("div", { class: "controls" }, select("Kind of suspect", [["all", "all kinds"], ...kinds.map(([kind, many]) => [kind, `${SUSPECTS[kind]} (${many})`])], "all", show),
        el("button", { type: "button", onclick: copy }, "Copy decisions"),
        el("button", { type: "button", onclick: () => parts.download("decisions.csv", asCsv(decisions()), "text/csv") }, "Download CSV"),
        el("button", { type: "button", onclick: () => parts.download("decisions.json", JSON.stringify(decisions(), null, 1), "application/json") }, "Download JSON"), status),
      list, all.length > positions.length ? note(`and ${plural(all.length - positions.length, "more suspect")}, less suspect than these, in the relabel list.`) : null);
  }

  function duplicates() {
    const intro = "Images that stand in training and in this split make every metric too good; images that stand twice count twice.";
    const all = report.duplicates || [];
    if (!all.length) return section("duplicates", "Duplicates and leaks", intro, el("p", { class: "good" }, "None was found."));
    return section("duplicates", "Duplicates and leaks", intro, table([{ name: "Kind", value: (row) => row.kind }, { name: "What", value: (row) => row.what, show: (row) => parts.prose(row.what) }, { name: "What to do", value: (row) => row.fix, show: (row) => parts.prose(row.fix) }, { name: "Where", value: (row) => row.where || "–" }, { name: "File", value: (row) => row.file }],
      all.slice(0, 200), { caption: "Findings of multibox doctor" }), all.length > 200 ? note(`and ${plural(all.length - 200, "more finding")}: multibox doctor lists all.`) : null);
  }

  Object.assign(parts, { sections: { ...parts.sections, confusion, errors, worst, mistakes, suspects, duplicates } });
})();
