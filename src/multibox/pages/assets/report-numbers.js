"use strict";
/* Sections of a report that show numbers: metrics, curves, thresholds, slices, calibration, training, origin. */
(() => {
  const { data, el, replace, number, percent, count, section, card, table, slider, select, lineChart } = multibox;
  const parts = multibox.report, { report, note, copied } = parts;
  const curves = Object.entries(report.curves || {}).filter(([, curve]) => curve.objects || curve.scores.length), ALL = "all classes";

  // A detector of 90 classes may meet 20 of them in a data set: the others have nothing to show
  const objectsOf = (name) => report.curves?.[name]?.objects ?? 0;
  const occurring = report.classes.filter((name) => !report.curves || objectsOf(name) || !report.curves[name]);
  const ofInterest = occurring.length > 12 ? [...occurring].sort((a, b) => objectsOf(b) - objectsOf(a)) : occurring;
  const others = report.classes.length - occurring.length;
  const leftOut = others ? note(`${count(others)} ${others === 1 ? "class" : "classes"} of the model without an object in these images ${others === 1 ? "is" : "are"} left out.`) : null;

  const interval = (ends) => (ends ? `${number(ends[0])} to ${number(ends[1])}` : "–");

  function metrics() {
    const { coco = {}, voc07 = {}, voc12 = {}, intervals = {} } = report.metrics || {};
    const named = [["AP", "AP", "mean over IoU 0.50 to 0.95"], ["AP50", "AP50", "IoU 0.5 is enough"], ["AP75", "AP75", "IoU 0.75 is needed"], ["APs", "AP small", "under 32 × 32 pixels"],
      ["APm", "AP medium", "up to 96 × 96 pixels"], ["APl", "AP large", "larger ones"], ["AR100", "AR", "recall with up to 100 detections"]];
    const rows = named.map(([key, name, meaning]) => ({ name, meaning, value: coco[key], ends: intervals.coco?.[key] }));
    rows.push({ name: "VOC07 mAP", meaning: "IoU 0.5, eleven points", value: voc07.mAP }, { name: "VOC12 mAP", meaning: "IoU 0.5, area below the curve", value: voc12.mAP, ends: intervals.voc12?.mAP });
    const perClass = ofInterest.map((name) => ({ name, ...(coco.per_class?.[name] || {}), ends: intervals.per_class?.[name]?.AP, voc: voc12.per_class?.[name], objects: report.curves?.[name]?.objects, best: report.thresholds?.[name] }));
    const anyEnds = perClass.some((row) => row.ends);
    return section("metrics", "Metrics", "All metrics, from 0 to 1, higher is better. The interval says where a metric would lie with other images of the same kind (95 %, bootstrap); a difference inside it may be chance. Click a column to sort.",
      table([
        { name: "Metric", value: (row) => row.name }, { name: "Value", value: (row) => row.value ?? null, number: true },
        ...(intervals.coco ? [{ name: "95 % interval", value: (row) => row.ends?.[0] ?? null, show: (row) => interval(row.ends), number: true }] : []), { name: "Meaning", value: (row) => row.meaning },
      ], rows, { caption: "Metrics of all classes" }),
      el("h3", {}, "Each class"),
      table([
        { name: "Class", value: (row) => row.name }, { name: "Objects", value: (row) => row.objects ?? null, show: (row) => count(row.objects), number: true },
        { name: "AP", value: (row) => row.AP ?? null, number: true }, ...(anyEnds ? [{ name: "95 % interval", value: (row) => row.ends?.[0] ?? null, show: (row) => interval(row.ends), number: true }] : []),
        { name: "AP50", value: (row) => row.AP50 ?? null, number: true }, { name: "VOC12", value: (row) => row.voc ?? null, number: true },
        { name: "Best F1", value: (row) => row.best?.f1 ?? null, number: true }, { name: "at score", value: (row) => row.best?.threshold ?? null, number: true, digits: 2 },
      ], perClass, { caption: "The weakest class has most to gain: more images of it help most" }), leftOut);
  }

  /** Precision, recall and F1 of the detections of at least `score`, from a thinned curve. */
  function atScore(curve, score) {
    let last = -1;
    while (last + 1 < curve.scores.length && curve.scores[last + 1] >= score) last += 1;
    if (last < 0) return { right: 0, detections: 0, objects: curve.objects };
    const right = curve.recall[last] * curve.objects;
    return { right, detections: curve.detections?.[last] ?? (curve.precision[last] > 0 ? right / curve.precision[last] : last + 1), objects: curve.objects };
  }

  function rates({ right, detections, objects }) {
    const precision = detections ? right / detections : null, recall = objects ? right / objects : null;
    return { precision, recall, f1: detections + objects ? 2 * right / (detections + objects) : null, right: Math.round(right), wrong: Math.round(detections - right), missed: Math.round(objects - right) };
  }

  function sum(chosen, score) {
    return rates(chosen.map(([, curve]) => atScore(curve, score)).reduce((a, b) => ({ right: a.right + b.right, detections: a.detections + b.detections, objects: a.objects + b.objects }), { right: 0, detections: 0, objects: 0 }));
  }

  const GRID = Array.from({ length: 101 }, (_, place) => place / 100);
  const chosenCurves = (name) => (name === ALL ? curves : curves.filter(([key]) => key === name));
  const overScore = (name) => {
    const values = GRID.map((score) => sum(chosenCurves(name), score));
    return { precision: values.map((one) => one.precision), recall: values.map((one) => one.recall), f1: values.map((one) => one.f1) };
  };
  const classes = () => [...(curves.length > 1 ? [[ALL, ALL]] : []), ...curves.map(([name]) => [name, name])];

  function curveSection() {
    const intro = "Precision over recall shows what a model can do at any threshold: the nearer to the upper right corner, the better. F1 over the score shows where the threshold should be; a flat top means that it hardly matters.";
    const real = curves.filter(([, curve]) => curve.scores.length && curve.objects);
    if (!real.length) return section("curves", "Curves", intro, note("There are no curves: no class has both objects and detections."));
    const charts = el("div", { class: "columns" });
    const show = (name) => {
      const frequent = [...real].sort((a, b) => b[1].objects - a[1].objects).slice(0, 8);
      const some = name === ALL ? frequent : real.filter(([key]) => key === name);
      const both = overScore(name);
      replace(charts,
        el("div", {}, el("h3", {}, "Precision over recall"),
          lineChart({ series: some.map(([key, curve], place) => ({ name: key, x: curve.recall, y: curve.precision, dashed: place % 2 === 1 })), xLabel: "recall", yLabel: "precision", widest: 400, xRange: [0, 1], yRange: [0, 1], label: `Precision over recall of ${name}` })),
        el("div", {}, el("h3", {}, "F1 over score"),
          lineChart({ series: some.map(([key, curve], place) => ({ name: key, x: curve.scores, y: curve.f1.map((value) => (value < 0 ? null : value)), dashed: place % 2 === 1 })), xLabel: "score", yLabel: "F1", widest: 400, xRange: [0, 1], yRange: [0, 1], label: `F1 over score of ${name}` })),
        el("div", {}, el("h3", {}, "Precision and recall over score"),
          lineChart({ series: [{ name: "precision", x: GRID, y: both.precision }, { name: "recall", x: GRID, y: both.recall, dashed: true }], xLabel: "score", yLabel: "share", widest: 400, xRange: [0, 1], yRange: [0, 1], label: `Precision and recall over score of ${name}` })));
    };
    const first = classes()[0][0];
    show(first);
    return section("curves", "Curves", intro, el("div", { class: "controls" }, select("Class of the curves", classes(), first, show)), real.length > 8 ? note("For all classes, the 8 most frequent ones have a curve each; the last chart counts all.") : null, charts);
  }

  function thresholds() {
    const intro = "Detections below the threshold are not reported. A higher one makes fewer false boxes and misses more objects. Move the slider to see what a threshold would give on these images.";
    const rows = ofInterest.filter((name) => name in (report.thresholds || {})).map((name) => {
      const best = report.thresholds[name];
      const own = best?.model ?? report.confusion?.threshold?.[name] ?? null, curve = report.curves?.[name];
      return { name, best, own, ownF1: own !== null && curve ? rates(atScore(curve, own)).f1 : null };
    });
    if (!curves.length) return section("thresholds", "Thresholds", intro, note("There is nothing to choose from: no class has detections."));
    const cards = el("div", { class: "cards", "aria-live": "polite" }), chart = el("div");
    let name = classes()[0][0];
    const ownOf = (key) => rows.find((row) => row.name === key)?.own ?? 0.3;
    // Null: each class from the model's own threshold, until the slider is moved
    let shared = name === ALL ? null : ownOf(name), moved = false;
    const owns = curves.map(([key]) => ownOf(key)), from = number(Math.min(...owns), 2), to = number(Math.max(...owns), 2);
    const ownWords = from === to ? from : `${from} to ${to}, by class`, ownNote = el("p", { class: "note", "aria-live": "polite" });
    const middle = () => shared ?? owns.reduce((a, b) => a + b, 0) / owns.length;
    const series = {};
    const show = () => {
      const isOwn = shared === null, now = isOwn ? rates(data.own_counts) : sum(chosenCurves(name), shared);
      replace(ownNote, isOwn ? `At the model's own thresholds (${ownWords}), those of the confusion matrix and of the images. Move the slider for one threshold for all classes.` : `With one threshold of ${number(shared, 2)} for ${name}.`);
      replace(cards, card("Precision", number(now.precision), "share of the boxes that are right"), card("Recall", number(now.recall), "share of the objects found"), card("F1", number(now.f1), "both in one number"),
        card("Right", count(now.right)), card("False", count(now.wrong), "boxes without an object"), card("Missed", count(now.missed), "objects without a box"));
      const both = series[name] ??= overScore(name);
      replace(chart, lineChart({ series: [{ name: "precision", x: GRID, y: both.precision }, { name: "recall", x: GRID, y: both.recall, dashed: true }, { name: "F1", x: GRID, y: both.f1, colour: "var(--c2)" }],
        lines: isOwn ? [] : [{ x: shared, name: "threshold" }], xLabel: "score", yLabel: "share", xRange: [0, 1], yRange: [0, 1], label: `Precision, recall and F1 of ${name}; threshold ${isOwn ? "the model's own" : shared.toFixed(2)}` }));
      if (isOwn) control.querySelector("output").textContent = "the model's own";
    };
    const control = slider("Threshold", { value: middle().toFixed(2), oninput: (value) => { shared = value; moved = true; show(); } });
    const take = (key, score) => { name = key; shared = score; moved = true; choice.querySelector("select").value = key; control.set(score); show(); };
    const choice = select("Class of the threshold", classes(), name, (key) => { name = key; if (key !== ALL) { shared = ownOf(key); moved = false; } else if (!moved) shared = null; control.set(middle()); show(); });
    show();
    const button = (row, score, title) => (score === null || score === undefined ? "–" : el("button", { type: "button", class: "link", "aria-label": `Show ${title} of ${row.name}`, onclick: () => { take(row.name, score); choice.scrollIntoView({ block: "center" }); } }, number(score, 2)));
    return section("thresholds", "Thresholds", intro, el("div", { class: "controls" }, choice, control), ownNote, cards, chart,
      el("h3", {}, "Best threshold per class"),
      table([
        { name: "Class", value: (row) => row.name }, { name: "Model's own", value: (row) => row.own, show: (row) => button(row, row.own, "the model's own threshold"), number: true }, { name: "F1 there", value: (row) => row.ownF1, number: true },
        { name: "Best", value: (row) => row.best?.threshold ?? null, show: (row) => button(row, row.best?.threshold, "the best threshold"), number: true }, { name: "F1 there", value: (row) => row.best?.f1 ?? null, number: true },
        { name: "Gain", value: (row) => (row.best && row.ownF1 !== null ? Math.max(0, row.best.f1 - row.ownF1) : null), number: true },
      ], rows, { caption: "Best is where F1 is highest on these images. For one threshold for all: multibox predict --threshold X" }), leftOut?.cloneNode(true),
      note("A checkpoint holds one threshold per class, which multibox train chooses on the validation images. To set those of this line in Python (the best ones; a class of fewer than 20 objects keeps its own):"), copied(setThresholds()));
  }

  /** The Python that gives a loaded checkpoint the best thresholds; rounded down, so that the detection at one stays. */
  function setThresholds() {
    const values = report.classes.map((name) => {
      const enough = (report.curves?.[name]?.objects ?? 0) >= 20, own = report.confusion?.threshold?.[name] ?? 0.3;
      return Math.floor(1e4 * ((enough ? report.thresholds?.[name]?.threshold : null) ?? own)) / 1e4;
    });
    return `detector = multibox.load(${JSON.stringify(report.model)}); detector.config = detector.config.updated({"post.thresholds": (${values.join(", ")},)})`;
  }

  function slices() {
    const intro = "How many objects are found, by kind of object. A group far below the others says where the model fails, and of what to collect more images.";
    const titles = { size: "By size", aspect: "By shape (width over height)", level: "By feature level", crowding: "By crowding", border: "By distance from the border" };
    const known = Object.entries(report.slices || {}).filter(([, rows]) => rows?.length);
    if (!known.length) return section("slices", "Kinds of objects", intro, note("There are no objects to divide."));
    const bar = (row) => (row.recall === null || row.recall === undefined ? "–" : el("span", { class: "inline-bar" }, el("span", { class: "track" }, el("span", { class: "bar", style: { width: `${100 * row.recall}%` } })), percent(row.recall)));
    return section("slices", "Kinds of objects", intro, el("div", { class: "columns wide" }, known.map(([key, rows]) => el("div", {}, el("h3", {}, titles[key] || key), table([
      { name: "Group", value: (row) => row.name }, { name: "Found", value: (row) => row.recall ?? null, show: bar }, { name: "Objects", value: (row) => row.objects, show: (row) => count(row.objects), number: true },
      { name: "Missed", value: (row) => row.missed ?? null, show: (row) => count(row.missed), number: true }, { name: "AP50", value: (row) => row.ap50 ?? null, number: true },
    ], rows, { label: `${titles[key] || key}: objects found` })))));
  }

  function calibration() {
    const intro = "If a score is a probability, then of the boxes with a score of 0.8, 80 % are right: the points lie on the dashed line. Points below it mean that the model is too sure of itself.";
    const one = report.calibration || {}, bins = (one.bins || []).filter((bin) => bin.count);
    if (report.objects === 0) return section("calibration", "Calibration", intro, note("It cannot be told: the split has no objects."));
    if (one.ece === null || one.ece === undefined || !bins.length) return section("calibration", "Calibration", intro, note("There are no detections to judge the scores by."));
    const mend = `multibox report ${[report.model, ...report.data].map(quoted).join(" ")}${report.split ? ` --split ${quoted(report.split)}` : ""} --temperature calibrated.safetensors`;
    const per = Object.entries(one.per_class || {}).filter(([, value]) => value?.detections !== 0).map(([name, value]) => ({ name, ece: typeof value === "number" || value === null ? value : value.ece, count: value?.count ?? null }));
    return section("calibration", "Calibration", intro,
      el("div", { class: "cards" }, card("ECE", number(one.ece), "mean distance between score and share of right boxes", one.ece > 0.1 ? "bad" : one.ece > 0.05 ? "warn" : "good"),
        one.ece_after !== null && one.ece_after !== undefined ? card("ECE with a temperature", number(one.ece_after), `of ${number(one.temperature, 2)}`) : null),
      el("div", { class: "columns" },
        lineChart({ series: [{ name: "share that is right", x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.precision), dots: true }, { name: "perfect", x: [0, 1], y: [0, 1], dashed: true, colour: "var(--soft)" }],
          xLabel: "score", yLabel: "share that is right", xRange: [0, 1], yRange: [0, 1], label: "Reliability diagram" }),
        table([{ name: "Score", value: (bin) => bin.low, show: (bin) => `${number(bin.low, 1)} to ${number(bin.high, 1)}` }, { name: "Boxes", value: (bin) => bin.count, show: (bin) => count(bin.count), number: true },
          { name: "Mean score", value: (bin) => bin.confidence, number: true, digits: 2 }, { name: "Right", value: (bin) => bin.precision, show: (bin) => percent(bin.precision), number: true }], bins, { caption: "The points as a table" })),
      per.length > 1 ? el("details", {}, el("summary", {}, "Each class"), table([{ name: "Class", value: (row) => row.name }, { name: "ECE", value: (row) => row.ece ?? null, number: true }], per, { caption: "ECE of each class" })) : null,
      one.ece_after !== null && one.ece_after !== undefined && one.ece_after < one.ece ? [el("h3", {}, "Write a copy whose scores are nearer to probabilities"), copied(mend), note("AP hardly changes: the order of the detections of a class stays, or nearly.")] : null);
  }

  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? String(word) : `'${String(word).replaceAll("'", "'\\''")}'`);

  const plural = (many, one) => `${count(many)} ${one}${many === 1 ? "" : "s"}`;
  const COLUMNS = { l2_loss: "weight decay (L2)", total_loss: "total", cross_entropy_loss: "classes", location_loss: "boxes", val_loss: "validation, total", val_map50: "mAP at IoU 0.5", class_error: "class, all anchors", box_mae: "box offsets, all anchors", positive_class_error: "class, matched anchors", positive_box_mae: "box offsets, matched anchors", cls_accuracy: "class accuracy", learning_rate: "learning rate" };

  function training() {
    const intro = "Losses should fall and flatten, mAP should rise and flatten. A validation loss that rises while the training loss falls means that images are learned by heart.";
    const each = new Map((report.training || []).map((row, place) => [row.step ?? `row ${place}`, row])), rows = [...each.values()];
    if (!rows.length) return section("training", "Training", intro, note("MODEL is no run folder, so there are no training curves. Give the run folder instead of the file in it to see them."));
    const value = (row, key) => { const found = row[key]; return found === "" || found === null || found === undefined || !Number.isFinite(Number(found)) ? null : Number(found); };
    // Steps rise through a resumed run; an epoch that was stopped within stands twice
    const bySteps = rows.every((row) => value(row, "step") !== null), over = bySteps ? "step" : "epoch";
    const x = rows.map((row, place) => value(row, over) ?? place + 1), run = report.training_run || {}, rates = run.learning_rate?.step?.length ? run.learning_rate : null;
    const steps = bySteps ? Math.max(...x) : null;
    const remarks = [steps !== null && steps < 100 ? `The run had ${plural(steps, "step")} only: the curves say little, and a longer run would likely be better.` : null,
      run.ended === "patience" ? "Patience ended the run: its last validations were no better than those before." : run.ended === "stopped" ? "The user stopped the run before its end." : null].filter(Boolean);
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => !["epoch", "step", "seconds"].includes(key));
    const panels = [["Loss", /loss|^total$|classification|locali[sz]ation/], ["mAP of the validation images", /map|(^|_)ap(\d|_|$)/i], ["Errors", /err|mae/], ["Learning rate", /learning_rate|^lr/]];
    const left = new Set(names);
    const charts = panels.map(([title, pattern]) => {
      const mine = [...left].filter((key) => pattern.test(key) && rows.some((row) => value(row, key) !== null));
      mine.forEach((key) => left.delete(key));
      if (!mine.length) return null;
      if (title === "Learning rate" && rates) return el("div", {}, el("h3", {}, title), lineChart({ series: [{ name: "learning rate", x: rates.step, y: rates.value }], xLabel: "step", yLabel: "", widest: 480, label: "Learning rate over steps" }));
      return el("div", {}, el("h3", {}, title), lineChart({ series: mine.map((key, place) => {
        const real = rows.map((row, at) => [x[at], value(row, key)]).filter(([, one]) => one !== null);
        return { name: COLUMNS[key] ?? key.replaceAll("_", " "), x: real.map(([at]) => at), y: real.map(([, one]) => one), dots: real.length < 30, dashed: place % 2 === 1 };
      }), xRange: x.length > 1 ? [Math.min(...x), Math.max(...x)] : null, yRange: title.startsWith("mAP") ? [0, 1] : null, xLabel: over, yLabel: title === "Learning rate" ? "" : title.split(" ")[0], widest: 480, label: `${title} over ${over}s` }));
    });
    return section("training", "Training", intro, remarks.length ? el("p", {}, remarks.join(" ")) : null, el("div", { class: "columns wide" }, charts));
  }

  function made() {
    const one = report.made || {};
    const flat = (value) => (value && typeof value === "object" ? Object.entries(value).filter(([, each]) => each !== null).map(([key, each]) => `${key} ${each && typeof each === "object" ? JSON.stringify(each) : each}`).join(", ") : value);
    const rows = [["Model", report.model], ["Data", report.data.join(", ")], ["Split", report.split], ["Made at", one.time], ["multibox", one.multibox], ["Versions", flat(one.versions)], ["Hardware", flat(one.hardware)], ["Fingerprint of the data", one.fingerprint]]
      .filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => ({ name, value: String(value) }));
    return section("made", "How this was made", "The same command on the same data with the same versions gives the same report. The fingerprint tells whether the data are the same.",
      one.command ? copied(one.command) : note("The command was not recorded: the report was made from Python."),
      table([{ name: "What", show: (row) => row.name }, { name: "Value", show: (row) => row.value }], rows, { caption: "Origin of this report" }));
  }

  Object.assign(parts, { sections: { ...parts.sections, metrics, curves: curveSection, thresholds, slices, calibration, training, made } });
})();
