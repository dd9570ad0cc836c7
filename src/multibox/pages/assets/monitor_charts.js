"use strict";
/* Curves of the runs that are ticked, as `monitorCharts`. A history is {steps, epochs, validations, notes}, columns of numbers. */
const monitorCharts = (() => {
  const { el, replace, section, select, slider, lineChart, colour } = multibox;
  const AXES = [["step", "step"], ["seconds", "time"], ["epoch", "epoch"]];
  const MOST_CLASSES = 8;
  const chosen = { axis: "step", smoothing: 0, run: "", classes: "lowest" };
  const grid = el("div", { class: "charts" });
  const classControls = el("div", { class: "controls" });
  let pointer = null;
  grid.addEventListener("pointermove", (event) => { if (event.isTrusted) pointer = { clientX: event.clientX, clientY: event.clientY }; });
  grid.addEventListener("pointerleave", () => { pointer = null; });
  let redraw = () => {};
  let controlled = "";

  /** Make the section. `again` draws, after a control was moved. */
  function make(again) {
    redraw = again;
    return section("curves", "Curves", "How losses and mAP go, one colour per run. A loss that falls while the validation loss rises is learned by heart: more images or fewer epochs help.",
      el("div", { class: "controls" },
        select("Over", AXES, chosen.axis, (value) => { chosen.axis = value; redraw(); }),
        slider("Smoothing", { max: 0.98, step: 0.02, value: 0, oninput: (value) => { chosen.smoothing = value; redraw(); } })),
      grid);
  }

  /** Average with weights that halve backwards; what is not a number stays a gap. */
  function smooth(values, weight) {
    let mean = 0, sum = 0;
    return values.map((value) => {
      if (value === null || value === undefined) return null;
      mean = weight * mean + (1 - weight) * value;
      sum = weight * sum + (1 - weight);
      return mean / sum;
    });
  }

  const across = (table) => {
    const values = table[chosen.axis] || table.step;
    return chosen.axis === "seconds" ? values.map((value) => (value === null ? null : value / unit.seconds)) : values;
  };
  let unit = { name: "step", seconds: 1 };
  function setUnit(shown) {
    const longest = Math.max(0, ...shown.flatMap(({ history }) => [history.steps, history.epochs].map((table) => table.seconds.at(-1) || 0)));
    const [name, seconds] = longest > 7200 ? ["hours", 3600] : longest > 180 ? ["minutes", 60] : ["seconds", 1];
    unit = { name: chosen.axis === "seconds" ? `${name} since the start` : chosen.axis, seconds };
  }

  /** Steps where a run wrote enough of them, else its epochs. */
  const dense = (history) => (history.steps.step.length >= 2 ? history.steps : history.epochs);
  const exists = (values) => values.some((value) => value !== null && value !== undefined);

  /** Curves of one column of the steps, with the values themselves faint behind smoothed ones. */
  function stepCurves(shown, column, suffix = "", dashed = false) {
    return shown.flatMap(({ run, history, hue }) => {
      const table = dense(history);
      const y = table[column] || [];
      if (!exists(y)) return [];
      const one = { name: run.name + suffix, x: across(table), colour: hue, dashed };
      if (!chosen.smoothing) return [{ ...one, y }];
      return [{ ...one, y, faint: true }, { ...one, y: smooth(y, chosen.smoothing) }];
    });
  }

  function validationCurves(shown, value, suffix = "", dashed = false) {
    return shown.flatMap(({ run, history, hue }) => {
      const y = history.validations.map(value);
      return exists(y) ? [{ name: run.name + suffix, x: over(history), y, colour: hue, dashed, dots: true }] : [];
    });
  }
  const over = (history) => across({ step: history.validations.map((one) => one.step), seconds: history.validations.map((one) => one.seconds), epoch: history.validations.map((one) => one.epoch) });

  function chart(name, intro, series, yLabel, more = {}) {
    if (!series.length) return null;
    return el("div", {}, el("h3", {}, name), intro ? el("p", { class: "note" }, intro) : null,
      lineChart({ series, xLabel: unit.name, yLabel, label: `${name} over ${unit.name}`, ...more }));
  }

  const rise = (series) => {
    const highest = Math.max(0, ...series.flatMap((one) => one.y).filter((value) => value !== null && value !== undefined));
    return { yRange: [0, Math.max(0.1, Math.min(1, 1.1 * highest))] };
  };

  const lastClasses = ({ history }) => history.validations.at(-1)?.per_class || [];
  const classRun = (shown) => { const some = shown.filter((one) => lastClasses(one).length); return some.find(({ run }) => run.id === chosen.run) || some[0]; };

  /** AP of several classes of one run, or of one class of all runs. */
  function classCurves(shown) {
    const one = classRun(shown);
    const last = one ? lastClasses(one) : [];
    if (!last.length) return [];
    const apOf = (name) => (validation) => { const found = validation.per_class.find((pair) => pair[0] === name); return found ? found[1] : null; };
    if (!["lowest", "highest"].includes(chosen.classes)) return validationCurves(shown, apOf(chosen.classes));
    const sorted = last.filter((pair) => pair[1] !== null).sort((a, b) => a[1] - b[1]);
    const names = (chosen.classes === "lowest" ? sorted : sorted.reverse()).slice(0, MOST_CLASSES).map((pair) => pair[0]);
    return names.map((name, place) => ({ name, x: over(one.history), y: one.history.validations.map(apOf(name)), colour: colour(place), dots: true }));
  }

  /** Make the selects of the class chart anew only where their options changed, so that an open one stays open. */
  function controlClasses(shown) {
    const one = classRun(shown);
    const names = one ? lastClasses(one).map((pair) => pair[0]) : [];
    const key = JSON.stringify([shown.map(({ run }) => [run.id, run.name]), names]);
    if (key === controlled) return;
    controlled = key;
    if (!["lowest", "highest", ...names].includes(chosen.classes)) chosen.classes = "lowest";
    replace(classControls,
      select("Classes", [["lowest", `${MOST_CLASSES} lowest`], ["highest", `${MOST_CLASSES} highest`], ...names.map((name) => [name, name])], chosen.classes, (value) => { chosen.classes = value; redraw(); }),
      one && shown.length > 1 && select("Run", shown.filter((each) => lastClasses(each).length).map(({ run }) => [run.id, run.name]), one.run.id, (value) => { chosen.run = value; redraw(); }));
  }

  /** Draw all charts. `shown`: {run, history, hue} of each ticked run. */
  function draw(shown) {
    setUnit(shown);
    controlClasses(shown);
    const losses = [...stepCurves(shown, "loss"), ...validationCurves(shown, (one) => one.val_loss, ", validation (dashed)", true)];
    const parts = [...stepCurves(shown, "class_loss", ", classes"), ...stepCurves(shown, "box_loss", ", boxes (dashed)", true)];
    const scores = validationCurves(shown, (one) => one.val_map50), classes = classCurves(shown);
    const charts = [
      chart("Loss", "Of training, and of each validation.", losses, "loss"),
      chart("mAP at IoU 0.5", "Of each validation. Higher is better.", scores, "mAP", rise(scores)),
      chart("Parts of the loss", "Which part is left to learn: classes or boxes.", parts, "loss"),
      chart("AP per class", "Of each validation. The lowest curve is the class to look at.", classes, "AP", rise(classes)),
      chart("Objects classified wrong", "Share of the anchors on objects that name another class.", shown.flatMap(({ run, history, hue }) =>
        exists(history.epochs.positive_class_error) ? [{ name: run.name, x: across(history.epochs), y: history.epochs.positive_class_error, colour: hue }] : []), "share"),
      chart("Learning rate", "", shown.flatMap(({ run, history, hue }) => (exists(dense(history).lr) ? [{ name: run.name, x: across(dense(history)), y: dense(history).lr, colour: hue }] : [])), "rate"),
      chart("Speed", "Images per second. A dip is a machine that does something else.", stepCurves(shown, "images_per_second"), "images/s"),
    ].filter(Boolean);
    if (classes.length) charts[charts.findIndex((node) => node.querySelector("h3").textContent === "AP per class")].querySelector("figure").before(classControls);
    if (charts.length) replace(grid, charts);
    else replace(grid, el("p", { class: "empty" }, shown.length ? "Nothing is measured yet: curves appear after the first steps." : "No run is ticked in the table above."));
    // The values under a pointer that rests stay
    if (pointer) document.elementFromPoint(pointer.clientX, pointer.clientY)?.dispatchEvent(new PointerEvent("pointermove", { ...pointer, bubbles: true }));
  }

  return { make, draw };
})();
