"use strict";
/* Puts a report together: verdict, cards, ten questions, contents and sections. */
(() => {
  const { data, el, number, count, card, contents } = multibox;
  const { report, sections } = multibox.report;
  const ORDER = [["summary", "Summary"], ["metrics", "Metrics"], ["curves", "Curves"], ["thresholds", "Thresholds"], ["confusion", "Confusion"], ["errors", "Errors"], ["slices", "Kinds"], ["calibration", "Calibration"],
    ["worst", "Worst"], ["mistakes", "Mistakes"], ["suspects", "Suspects"], ["duplicates", "Duplicates"], ["training", "Training"], ["made", "Origin"]];

  function summary() {
    const coco = report.metrics?.coco || {}, ends = report.metrics?.intervals?.coco?.AP;
    const kinds = (report.errors?.kinds || []).filter((kind) => !["false-positives", "false-negatives"].includes(kind.kind));
    const worst = [...kinds].sort((a, b) => (b.ap_cost || 0) - (a.ap_cost || 0))[0];
    const met = report.curves ? report.classes.filter((name) => report.curves[name]?.objects).length : report.classes.length;
    return el("section", { id: "summary", "aria-label": "Summary" },
      el("ul", { class: "verdict" }, data.verdict.map(({ text, link }) => el("li", {}, text, " ", el("a", { href: `#${link}`, "aria-label": `More: ${link}` }, "More")))),
      el("div", { class: "cards" }, card("AP", number(coco.AP), ends ? `95 %: ${number(ends[0])} to ${number(ends[1])}` : "mean over IoU 0.50 to 0.95"), card("AP50", number(coco.AP50), "IoU 0.5 is enough"),
        card("Images", count(report.images), `${count(report.objects)} objects, ${count(met)} ${met === 1 ? "class" : "classes"}`),
        worst && worst.ap_cost > 0 ? card("Costliest error", worst.kind, `costs ${number(worst.ap_cost)} AP50, all scores`, "word") : null,
        report.objects !== 0 && report.calibration?.ece !== null && report.calibration?.ece !== undefined ? card("ECE", number(report.calibration.ece), "scores against reality") : null,
        report.suspects ? card("Label suspects", count(report.suspects.length), "labels to look at") : null),
      el("h2", { id: "questions" }, "Ten questions"),
      el("dl", { class: "questions" }, data.questions.map(({ question, answer, link }) => el("div", {}, el("dt", {}, el("a", { href: `#${link}` }, question)), el("dd", {}, answer)))));
  }

  const main = document.getElementById("main");
  main.append(contents(ORDER), summary(), ...ORDER.slice(1).map(([id]) => sections[id]()));
  // A wide table of the page's own text scrolls by keyboard as well
  for (const box of document.querySelectorAll(".matrix")) box.setAttribute("tabindex", "-1");
  // The place that the address names did not exist when the browser looked for it
  const wanted = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (wanted) wanted.scrollIntoView();
})();
