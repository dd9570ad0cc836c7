import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from multibox import api
from multibox.inference.detector import Detector
from multibox.models.build import build_model
from multibox.pages.inspector import inspector_page, summarise
from multibox.presets import resolve
from multibox.structures import iou

NAMES = ("cat", "dog <b>&")
LEVELS = ((8, 8, 4), (4, 4, 6), (1, 1, 4))
SIDE = 256


def make_row(number=0, *, objects=5, candidates=60, explain=False):
    """Return one entry; the same number gives the same."""
    rng = np.random.default_rng(number)
    gt_boxes = _boxes(rng, objects)
    gt_labels = rng.integers(0, 2, objects)
    # The last object is never seen
    near = gt_boxes[rng.integers(0, max(1, objects - 2), candidates)] if objects else _boxes(rng, candidates)
    boxes = np.clip(near + rng.normal(0, 9, (candidates, 4)), 0, SIDE)
    boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 4)], 1)
    scores = np.sort(rng.uniform(0.01, 1, candidates).astype(np.float32))[::-1]
    labels = rng.integers(0, 2, candidates)
    row = {
        "file": f"folder/image-{number}.jpg",
        "path": f"image-{number}.jpg",
        "offset": None,
        "length": None,
        "background": [255, 255, 255],
        "width": SIDE,
        "height": SIDE,
        "input": [SIDE, SIDE],
        "preset": "tinyssd",
        "matcher": "bipartite",
        "thresholds": {
            "match": 0.5, "ignore": None, "score": {NAMES[0]: 0.3, NAMES[1]: 0.45}, "nms": 0.45, "nms_inclusive": False,
            "max_detections": 200, "max_per_class": None, "score_threshold": 0.01, "extra": 0,
        },
        "levels": [_level(*shape) for shape in LEVELS],
        "gt": [_object(i, gt_boxes[i], int(gt_labels[i])) for i in range(objects)],
        "positives": [_positive(i, gt_boxes[i]) for i in range(objects)],
        "ignored": [{**_anchor(9, 0), "iou": 0.45}],
        "ignored_total": 1,
        "negatives": [{**_anchor(30, 0), "loss": 2.5, "score": 0.6, "name": NAMES[0], "iou": 0.1}],
        "negatives_total": 12,
        "losses": {"total": 3.0, "classification": 2.0, "localization": 1.0},
    }  # fmt: skip
    row["candidates"] = [
        _candidate(rng, gt_boxes, gt_labels, boxes[i], float(scores[i]), int(labels[i])) for i in range(candidates)
    ]
    row |= {"candidates_total": candidates, "candidates_above": None}
    if explain:
        row["explanations"] = [_explanation(0, row["candidates"][0])]
    return row


def _boxes(rng, count):
    corners = rng.uniform(5, 150, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(30, 90, (count, 2))], 1)


def _level(rows, columns, per_cell):
    used = {"anchors": rows * columns * per_cell, "positives": 2, "ignored": 1, "negatives": 6}
    stride = [SIDE / columns, SIDE / rows]
    return {"rows": rows, "columns": columns, "anchors_per_cell": per_cell, "stride": stride}  | {
        "receptive_field": [3 * stride[0], 3 * stride[1]], **used
    }  # fmt: skip


def _anchor(number, level):
    row, column = divmod(number // 4, 8)
    x, y = 32 * column + 16, 32 * row + 16
    box = [x - 20.0, y - 20.0, x + 20.0, y + 20.0]
    return {"anchor": number, "level": level, "row": row, "column": column, "shape": number % 4, "box": box}


def _object(index, box, label):
    return {
        "index": index, "label": label, "name": NAMES[label], "box": box.tolist(), "difficult": index == 2,
        "crowd": False, "trained": True, "best_iou": 0.4 + index / 20, "anchors": [index], "outcome": "low-score",
        "detection": None, "why": "its best box scores 0.045, below the threshold of 0.30",
        "if_unseen": "unreached" if index == 1 else "low-score",
    }  # fmt: skip


def _positive(index, box):
    anchor = _anchor(40 + 4 * index, index % 2)
    return {
        **anchor, "gt": index, "iou": 0.4 + index / 20, "how": "forced" if index < 2 else "threshold", "weight": 1.0,
        "class_loss": 1.5, "box_loss": 0.5, "score": 0.2, "predicted": (box + 3).tolist(),
    }  # fmt: skip


def _candidate(rng, gt_boxes, gt_labels, box, score, label):
    anchor = _anchor(int(rng.integers(0, 256)), 0)
    ious = iou(gt_boxes, box, 0.0) * (gt_labels == label) if len(gt_boxes) else np.zeros(0)
    known = bool((gt_labels == label).any())
    best = int(np.where(gt_labels == label, ious, -1).argmax()) if known else None
    return {
        **anchor, "anchor_box": anchor["box"], "box": box.tolist(), "unclipped": box.tolist(), "score": score,
        "label": label, "name": NAMES[label], "kept": True, "suppressed_by": None, "iou": None, "gt": best,
        "gt_iou": None if best is None else float(ious[best]),
    }  # fmt: skip


def _explanation(place, candidate):
    similar = [
        {
            "file": "a.jpg",
            "path": "a.jpg",
            "offset": None,
            "length": None,
            "background": [255, 255, 255],
            "box": [20, 20, 90, 80],
            "name": NAMES[0],
            "distance": 0.25,
        }
    ]
    return {
        "candidate": place, "anchor": candidate["anchor"], "level": 0, "row": 0, "column": 0, "shape": 0,
        "anchor_box": candidate["box"], "receptive_field": [0, 0, 100, 100], "method": "occlusion",
        "saliency": [[0.0, 0.5], [1.0, 0.2]],
        "effective": [10, 10, 80, 70],
        "similar_of": {"images": 20, "of": 200, "objects": 31}, "similar": similar,
    }  # fmt: skip


def write_page(tmp_path, rows):
    path = tmp_path / "index.html"
    image = tmp_path / "image.png"
    Image.new("RGB", (SIDE, SIDE), "darkslateblue").save(image)
    for entry in [*rows, *(e for row in rows for one in row.get("explanations", ()) for e in one["similar"])]:
        entry["path"] = entry["path"] if Path(entry["path"]).exists() else str(image)
    text = inspector_page(rows, model="run", data="cells", command="multibox inspect run cells")
    path.write_text(text, encoding="utf-8")
    return path


def test_an_image_is_summed_up_at_the_models_thresholds():
    row = make_row(candidates=0)
    row["gt"][0]["outcome"], row["gt"][0]["detection"] = "found", 0
    common = {"label": 0, "name": NAMES[0], "kept": True, "gt": 0, "gt_iou": 0.8}
    row["candidates"] = [
        {**common, "score": 0.9},
        {**common, "score": 0.8},  # a second one on the same object: false
        {**common, "score": 0.7, "gt": 2},  # on a difficult object: neither
        {**common, "score": 0.6, "kept": False},
        {**common, "score": 0.3, "gt": None, "gt_iou": None},  # exactly the threshold counts
        {**common, "score": 0.2, "gt": None, "gt_iou": None},
    ]
    summary = summarise(row)
    assert (summary.objects, summary.found, summary.missed, summary.false) == (4, 1, {"low-score": 3}, 2)


def test_the_page_holds_every_image_once_and_escapes_names(tmp_path):
    text = write_page(tmp_path, [make_row(0), make_row(1, explain=True)]).read_text(encoding="utf-8")
    assert len(re.findall(r'id="image-\d+"', text)) == 2
    assert "dog <b>" not in text
    assert "http://www.w3.org" in text
    assert not re.search(r'(src|href)="?https?:', text)


@pytest.mark.slow
def test_a_reader_finds_out_why_with_keys_alone(tmp_path, open_page, overflow):
    path = write_page(tmp_path, [make_row(0, explain=True), make_row(1, objects=0), make_row(2, candidates=0)])
    for width, dark in ((1280, False), (390, True)):
        with open_page(path, width=width, dark=dark) as page:
            panel = page.locator(".panel")
            assert overflow(page) == 0
            page.keyboard.press("ArrowRight")
            assert "no objects" in panel.inner_text()
            page.keyboard.press("ArrowRight")
            assert "No detections: no box scores above 0.01" in panel.inner_text()
            page.keyboard.press("ArrowRight")
            assert page.locator("#shown").inner_text().startswith("folder/image-0.jpg")
            page.locator("#objects button.link").nth(1).focus()
            page.keyboard.press("Enter")
            assert panel.inner_text().startswith("Object 1")
            assert page.evaluate("document.activeElement.className") == "panel"
            page.keyboard.press("Escape")
            assert panel.inner_text().startswith("This image")
            page.locator(".picture rect[tabindex]").first.focus()
            page.keyboard.press("Enter")
            assert panel.inner_text().startswith("Object 0")
            assert overflow(page) == 0


@pytest.mark.slow
def test_each_question_is_answered_by_one_click(tmp_path, open_page, overflow):
    row = make_row(0, explain=True)
    with open_page(write_page(tmp_path, [make_row(3, objects=0), row])) as page:
        panel, questions = page.locator(".panel h3").first, page.locator(".questions a")
        assert questions.count() == 10
        starts = [
            "Object ",
            "Box: ",
            "Box: ",
            None,
            None,
            "Hard negative 1",
            "Box: ",
            "Object ",
            "Positive anchor",
            "Box: ",
        ]
        for place, start in enumerate(starts):
            questions.nth(place).click()
            if start is not None:
                assert panel.inner_text().startswith(start), place
        assert page.locator(".picture .heat").count() == 1
        page.get_by_role("slider", name="Strength of the saliency map").fill("0.2")
        assert page.locator(".picture .heat").evaluate("(node) => node.style.opacity") == "0.2"
        assert page.locator(".panel .gallery img").count() == 1
        assert page.locator("#thresholds svg").count() == 1
        # At 39 even scores, and at the boxes' own between them
        assert page.locator("#thresholds path.curve").first.get_attribute("d").count("L") > 39
        for name, start in (
            ("Positives of this image: 5", "Positive anchor"),
            ("Hard negatives of", "Hard negative 1"),
        ):
            page.get_by_text(name).click()
            # In its own table, which is filled a moment after it opens
            page.locator("#levels details", has_text=name).locator("tbody button").last.press("Enter")
            assert panel.inner_text().startswith(start)
        assert page.locator("#matcher").inner_text().endswith("The threshold is 0.5.")
        assert overflow(page) == 0


@pytest.mark.slow
def test_moving_thresholds_changes_boxes_and_outcomes_at_once(tmp_path, open_page):
    with open_page(write_page(tmp_path, [make_row(0)])) as page:
        score, overlap = (page.get_by_role("slider", name=name) for name in ("Lowest score", "Overlap that"))
        rows = page.locator("#detections tbody tr")
        before = rows.count()
        score.fill("0.9")
        assert rows.count() < before
        assert page.locator("#objects tbody .bad").count() > 0
        overlap.fill("0.95")
        score.fill("0")
        assert rows.count() > before
        page.get_by_role("button", name="Original thresholds").click()
        assert rows.count() == before


@pytest.mark.slow
def test_a_second_click_takes_the_box_below(tmp_path, open_page):
    row = make_row(0, candidates=0)
    for one in row["gt"]:
        one["box"] = [50.0, 50.0, 150.0, 150.0]
    with open_page(write_page(tmp_path, [row])) as page:
        page.locator("#stage").evaluate("(node) => node.scrollIntoView()")
        box = page.locator(".view .picture").bounding_box()
        x, y = box["x"] + box["width"] * 100 / SIDE, box["y"] + box["height"] * 100 / SIDE
        heads = []
        for _ in range(5):
            page.mouse.click(x, y)
            heads.append(page.locator(".panel h3").inner_text()[:8])
        assert sorted(heads) == [f"Object {index}" for index in range(5)]


@pytest.mark.slow
def test_of_fifty_images_only_those_looked_at_are_parsed(tmp_path, open_page):
    path = write_page(tmp_path, [make_row(number, objects=20, candidates=300) for number in range(50)])
    text = path.read_text(encoding="utf-8")
    counted = (
        "<script>window.parsed = 0; const p = JSON.parse; JSON.parse = (t) => { window.parsed += 1; return p(t); };"
    )
    path.write_text(text.replace("<head>", f"<head>{counted}</script>"), encoding="utf-8")
    with open_page(path) as page:
        assert page.locator(".strip button").count() == 50
        assert page.evaluate("window.parsed") == 2  # the list and the first image
        for _ in range(3):
            page.locator("body").press("ArrowRight")
        assert page.evaluate("window.parsed") == 5
        assert page.locator(".view img").count() == 1


JUDGE = """([count, state]) => [...Array(count).keys()].map((i) =>
  judging.judge(JSON.parse(document.getElementById(`image-${i}`).textContent), state))"""


def lively(nms, more=None):
    """Return a fresh TinySSD whose scores are spread, so that suppression has work, and some of whose boxes fit."""
    changes = {"model.input_size": (128, 128), "post.nms_threshold": nms, "post.pre_nms_topk": 140} | (more or {})
    config = resolve("tinyssd", "default", {"anchors.fit": "none"} | changes)
    model = build_model(config, 2, 0).train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        images = torch.randint(256, (2, 3, 128, 128)).float()
        for _, layer in model.heads.class_layers():
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        # The layers' own statistics keep fresh features from fading
        spread = model(images).logits.std()
        for _, layer in model.heads.class_layers():
            layer.weight *= 2 / spread
    return Detector(model.eval(), config, ("red", "blue"))


def described(rows):
    """Return what is to be equal: reported boxes by anchor and class, and each object's outcome and detection."""
    result = []
    for row in rows:
        boxes = [(one["anchor"], one["label"]) for one in row["candidates"]]
        lowest = {name: np.float32(value) for name, value in row["thresholds"]["score"].items()}
        shown = [one["kept"] and np.float32(one["score"]) >= lowest[one["name"]] for one in row["candidates"]]
        reported = sorted(box for box, yes in zip(boxes, shown, strict=True) if yes)
        gt = [(one["outcome"], None if one["detection"] is None else boxes[one["detection"]]) for one in row["gt"]]
        result.append((reported, gt))
    return result


CHANGED = ((None, 0.45), (0.9, 0.1), (0.97, 0.7), (0.99, 0.3))


def outcomes_of_both(page, rows, data, more=None, changed=CHANGED):
    """Hold the page equal to `inspect_matches` at other thresholds, and return the outcomes seen."""
    outcomes, names = set(), [row["file"] for row in rows]
    for score, nms in changed:
        verdicts = page.evaluate(JUDGE, [len(rows), {"score": score, "nms": nms}])
        again = api.inspect_matches(lively(nms, more), data, images=names, split="train", threshold=score)
        for row, verdict, (reported, gt) in zip(rows, verdicts, described(again), strict=True):
            boxes = [(one["anchor"], one["label"]) for one in row["candidates"]]
            assert sorted(box for box, yes in zip(boxes, verdict["reported"], strict=True) if yes) == reported
            judged = [(one["name"], one["detection"]) for one in verdict["outcomes"]]
            assert [(name, None if at is None else boxes[at]) for name, at in judged] == gt
            outcomes |= {name for name, _ in judged}
    return outcomes


@pytest.mark.slow
def test_the_page_judges_as_inspect_matches_does(tmp_path, open_page, squares):
    rows = api.inspect_matches(lively(0.45), squares, split="train", worst=8)
    assert all(row["candidates_above"] is None for row in rows)
    with open_page(write_page(tmp_path, rows)) as page:
        outcomes = outcomes_of_both(page, rows, squares)
    assert outcomes == {"found", "low-score", "suppressed", "wrong-class", "badly-placed"}


@pytest.mark.slow
def test_the_page_says_what_could_not_be_learnt(tmp_path, open_page, squares):
    """No anchor overlaps an object by .9, and each image's second object is difficult and left out of training."""
    second = "<object><name>red</name><difficult>1</difficult><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>30</xmax>"
    for path in (squares / "Annotations").glob("*.xml"):
        text = path.read_text().replace("</annotation>", f"{second}<ymax>40</ymax></bndbox></object></annotation>")
        path.write_text(text)
    more = {"matching.threshold": 0.9, "train.difficult": "drop"}
    rows = api.inspect_matches(lively(0.45, more), squares, split="train", worst=8)
    with open_page(write_page(tmp_path, rows)) as page:
        few = [(0.97, 0.45), (0.999, 0.3)]
        assert outcomes_of_both(page, rows, squares, more, few) >= {"unreached", "not-matched"}


@pytest.mark.slow
def test_with_more_boxes_than_are_listed_the_page_says_down_to_which_score_it_is_exact(tmp_path, open_page, squares):
    more = {"post.pre_nms_topk": 2000}
    rows = api.inspect_matches(lively(0.45, more), squares, split="train", worst=4, threshold=0.9)
    floors = [row["candidates_above"] for row in rows]
    assert all(len(row["candidates"]) < row["candidates_total"] for row in rows) and max(floors) < 0.97
    with open_page(write_page(tmp_path, rows)) as page:
        outcomes_of_both(page, rows, squares, more, [(0.97, 0.45), (0.97, 0.1), (0.99, 0.8)])
        note, score = page.locator(".tools > .note"), page.get_by_role("slider", name="Lowest score")
        assert "Not exact" not in note.inner_text()
        score.fill("0.05")
        total = f"{rows[0]['candidates_total']:,}"
        assert f"Not exact: of {total} boxes only those above a score of {floors[0]:.2f} are all" in note.inner_text()
        score.fill("0.99")
        assert "Not exact" not in note.inner_text()
