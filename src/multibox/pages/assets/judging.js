"use strict";
/* What becomes of boxes and objects at any thresholds. The rules are those of analysis/inspection_outcomes.py; a test holds both equal. */
const judging = (() => {
  const RIGHT = 0.5, NEAR = 0.1;

  /** Outcomes of objects: name, and what it means. */
  const OUTCOMES = {
    found: ["found", "A detection of its class lies on it."],
    "low-score": ["score too low", "Its best box scores below the threshold."],
    suppressed: ["suppressed", "A good box lies on it, but a better box suppressed that one."],
    "wrong-class": ["wrong class", "A detection lies on it, but of another class."],
    "badly-placed": ["badly placed", "A detection of its class lies near it, but overlaps it too little or belongs to its neighbour."],
    unreached: ["no anchor fits", "No anchor overlaps it enough, so training can hardly teach it."],
    "not-matched": ["not trained on", "Matching gave it no anchor, or training leaves it out."],
  };

  /** IoU; `extra` is added to widths and heights where corners are indices of pixels (VOC). */
  function overlap(a, b, extra = 0) {
    const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]) + extra, height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]) + extra;
    if (width <= 0 || height <= 0) return 0;
    const area = (box) => (box[2] - box[0] + extra) * (box[3] - box[1] + extra);
    return width * height / (area(a) + area(b) - width * height);
  }

  /** Return what suppressed each box (-1: nothing) and whether it is kept, whatever its score. */
  function keep({ candidates, thresholds }, nms) {
    const compared = candidates.map(({ unclipped, score, label }) => ({ box: unclipped, score, label }));
    const fate = multibox.suppress(compared, { score: -1, nms, inclusive: thresholds.nms_inclusive });
    const ofClass = new Map();
    let all = 0;
    const kept = candidates.map((one, place) => {
      if (fate[place] !== -1) return false;
      const rank = ofClass.get(one.label) ?? 0;
      ofClass.set(one.label, rank + 1);
      // Outside of the image nothing is left of a box, and it does not count
      if (rank >= (thresholds.max_per_class ?? Infinity) || one.box[2] <= one.box[0] || one.box[3] <= one.box[1]) return false;
      all += 1;
      return all <= thresholds.max_detections;
    });
    return { fate, kept };
  }

  /** Return the lowest score reported of each class; scores are float32. */
  const lowest = ({ thresholds }, score) => (name) => Math.fround(score === null ? thresholds.score[name] : score);

  /** Return which kept boxes are reported, and which of them finds each object (-1: none). */
  function find({ candidates, gt }, kept, limit) {
    const finder = gt.map(() => -1);
    const reported = candidates.map((one, place) => kept[place] && Math.fround(one.score) >= limit(one.name));
    reported.forEach((shown, place) => {
      const { gt: object, gt_iou: iou } = candidates[place];
      if (shown && object !== null && iou > RIGHT && finder[object] < 0) finder[object] = place;
    });
    return { reported, finder };
  }

  /** Whether an object counts: neither difficult nor a crowd. */
  const counts = (object) => !object.difficult && !object.crowd;

  /** Return all about an image at thresholds {score: a number, or null for the model's own; nms}. */
  function judge(image, { score, nms }) {
    const { fate, kept } = keep(image, nms);
    const limit = lowest(image, score);
    const { reported, finder } = find(image, kept, limit);
    const used = new Set(finder.filter((place) => place >= 0));
    const outcomes = image.gt.map((object, index) => outcome(image, { fate, kept, reported, finder, used, limit, object, index }));
    const roles = image.candidates.map((one, place) => {
      if (!reported[place]) return null;
      const right = one.gt !== null && one.gt_iou > RIGHT;
      if (right && !counts(image.gt[one.gt])) return "ignored";
      return right ? (finder[one.gt] === place ? "found" : "duplicate") : "false";
    });
    return { fate, kept, reported, outcomes, roles, limit };
  }

  function outcome(image, { kept, reported, finder, used, limit, object, index }) {
    if (finder[index] >= 0) return { name: "found", detection: finder[index] };
    const { candidates, thresholds: { extra } } = image;
    const ious = candidates.map((one) => overlap(one.box, object.box, extra));
    const first = (test) => candidates.findIndex((one, place) => test(one, place, ious[place]));
    const same = (one) => one.label === object.label;
    const lost = first((one, place, iou) => same(one) && iou > RIGHT && Math.fround(one.score) >= limit(one.name) && !kept[place]);
    if (lost >= 0) return { name: "suppressed", detection: lost };
    const wrong = first((one, place, iou) => reported[place] && !same(one) && iou > RIGHT && !used.has(place));
    if (wrong >= 0) return { name: "wrong-class", detection: wrong };
    const near = candidates.reduce((best, one, place) =>
      reported[place] && same(one) && ious[place] > NEAR && (!used.has(place) || ious[place] > RIGHT) && (best < 0 || ious[place] > ious[best]) ? place : best, -1);
    if (near >= 0) return { name: "badly-placed", detection: near };
    const on = first((one, _, iou) => same(one) && iou > RIGHT);
    return { name: object.if_unseen, detection: on < 0 ? null : on };
  }

  /** Return found objects, objects and false detections of images at each score, with suppression done once. */
  function tally(images, scores, nms) {
    const rows = scores.map(() => ({ found: 0, objects: 0, wrong: 0 }));
    for (const image of images) {
      const { kept } = keep(image, nms);
      scores.forEach((score, place) => {
        const { reported, finder } = find(image, kept, lowest(image, score)), row = rows[place];
        row.objects += image.gt.filter(counts).length;
        row.found += image.gt.filter((object, index) => counts(object) && finder[index] >= 0).length;
        row.wrong += image.candidates.filter((one, index) => reported[index] && (one.gt === null || one.gt_iou <= RIGHT || (counts(image.gt[one.gt]) && finder[one.gt] !== index))).length;
      });
    }
    return rows;
  }

  return { judge, tally, counts, OUTCOMES };
})();
