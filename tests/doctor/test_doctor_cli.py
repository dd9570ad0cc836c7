"""`multibox doctor`: exit codes, the screen, JSON, the copy and the sheet; and what training says of its data."""

import json
import shutil

import pytest
from PIL import Image

from multibox.cli.doctor import LINES, describe
from multibox.data.formats import open_dataset
from multibox.doctor.examine import diagnose
from multibox.doctor.findings import finding, without_path
from multibox.doctor.glance import TOLD_BY_TRAINING, cached_glance, glance, glance_lines
from multibox.doctor.repair import CHANGES
from multibox.doctor.sheet import worst_sheet

KEYS = ["severity", "kind", "file", "where", "what", "why", "fix"]


@pytest.fixture
def faulty(sets, tmp_path):
    """30 reversed boxes and one that covers its image."""
    objects = sets.clean()
    objects = {n: [(c, [b[2], b[1], b[0], b[3]]) if i < 2 else (c, b) for i, (c, b) in enumerate(rows)]
               for n, rows in objects.items()}  # fmt: skip
    objects["image00"].append(("dog", [0, 0, 200, 120]))
    return sets.write(tmp_path / "data", "csv", sets.in_format(objects, "csv"))


@pytest.fixture
def healthy(sets, tmp_path):
    return sets.write(tmp_path / "healthy", "voc", sets.in_format(sets.clean(), "voc"))


def test_a_healthy_set_exits_with_0_notes_or_not(run, healthy):
    code, out, _ = run("doctor", healthy)
    assert code == 0 and "is healthy" in out and "rare-class" in out


def test_findings_exit_with_1_and_stand_in_the_json(run, faulty, tmp_path):
    code, out, _ = run("doctor", faulty, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert code == 1 and all(list(one) == KEYS and all(isinstance(v, str) for v in one.values()) for one in found)
    reversed_boxes = [one for one in found if one["kind"] == "reversed-box"]
    assert len(reversed_boxes) == 24 > LINES
    assert reversed_boxes[0]["file"].endswith("label.csv") and reversed_boxes[0]["where"] == "image00.png, line 2"
    assert out.count("is reversed") == LINES and f"and {24 - LINES} more; all in --json" in out
    assert out.splitlines()[-1].endswith("24 errors, 3 notes")


def test_json_on_standard_output_is_json_alone(run, faulty):
    code, out, err = run("doctor", faulty, "--json", "-")
    assert code == 1 and len(json.loads(out)) == 27 and "reversed-box" in err


def test_files_that_exist_are_refused_before_any_work(run, faulty, tmp_path):
    (tmp_path / "found.json").write_text("mine")
    for option in ("--json", "--sheet"):
        name = "found.json" if option == "--json" else "sheet.png"
        (tmp_path / name).write_text("mine")
        code, out, err = run("doctor", faulty, option, tmp_path / name)
        assert code == 2 and not out and "--overwrite" in err and (tmp_path / name).read_text() == "mine"
    code, out, _ = run("doctor", faulty, "--fix", tmp_path / "data")
    assert code == 2 and not out
    assert run("doctor", faulty, "--json", faulty / "train" / "label.csv", "--overwrite")[0] == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "no-label", "broken-json", "broken-csv"])
def test_what_cannot_be_read_at_all_exits_with_2(run, tmp_path, kind):
    folder = tmp_path / "data"
    if kind != "missing":
        (folder / "annotations").mkdir(parents=True)
    if kind == "no-label":
        Image.new("RGB", (20, 20)).save(folder / "a.png")
    if kind == "broken-json":
        (folder / "annotations" / "instances_train.json").write_text('{"images": [}')
    if kind == "broken-csv":
        (folder / "train.csv").write_text("a,b\n1,2\n")
    code, _, err = run("doctor", folder)
    assert code == 2 and len(err.splitlines()) == 1


def test_the_copy_is_written_and_what_is_left_is_said(run, sets, faulty, tmp_path):
    before = {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    code, out, _ = run("doctor", faulty, "--fix", tmp_path / "copy")
    assert code == 1 and "24 changes: reversed-box 24" in out and "the copy is healthy" in out
    assert len((tmp_path / "copy" / CHANGES).read_text().splitlines()) == 25
    assert {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()} == before
    assert run("doctor", tmp_path / "copy")[0] == 0
    shutil.rmtree(tmp_path / "copy")
    objects = sets.clean()
    objects["image01"] = [("dog", [10, 10, 60, 60]), ("cat", [10, 10, 60, 60])]
    other = sets.write(tmp_path / "other", "coco", sets.in_format(objects, "coco"))
    code, out, _ = run("doctor", other, "--fix", tmp_path / "copy")
    assert code == 1 and "left to you: same-place-two-classes 1" in out


def test_no_copy_is_written_into_the_data(run, healthy):
    before = sorted(healthy.rglob("*"))
    code, _, err = run("doctor", healthy, "--fix", healthy / "fixed")
    assert code == 2 and "never changed; give a folder outside it" in err and sorted(healthy.rglob("*")) == before


def test_findings_exit_with_1_although_nothing_is_left_to_copy(run, tmp_path):
    labels = tmp_path / "data" / "labels"
    labels.mkdir(parents=True)
    for number in range(3):
        (labels / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    code, out, err = run("doctor", tmp_path / "data", "--fix", tmp_path / "copy")
    assert code == 1 and f"its image is missing from {tmp_path / 'data' / 'images'}; put it there\n" in out
    assert err.startswith("there is no healthy copy: ") and not (tmp_path / "copy").exists()


def test_names_stand_on_their_line_once_and_in_one_line(run, sets, tmp_path):
    folder = sets.write(tmp_path / "data", "yolo", sets.in_format(sets.clean(), "yolo"))
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    (images / "two\nlines\x1b[31m.png").write_bytes((images / "image00.png").read_bytes())
    (labels / "image01.txt").write_text("0 0.5\n")
    (labels / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    out = run("doctor", folder)[1]
    assert "\x1b" not in out and "/two\\nlines\\x1b[31m.png, split train: two\\nlines\\x1b[31m.png has" in out
    assert f"  {labels / 'image01.txt'}: line 1: expected class cx cy w h, got 2 values\n" in out
    assert f"  {labels / 'lost.txt'}: its image is missing from {images}; put it there\n" in out


@pytest.mark.parametrize(
    ("message", "shorter"),
    [
        ("a/b.xml is no XML; correct it, or leave it out with --on-bad skip", "it is no XML"),
        ("a/b.xml: no size; save it again", "no size; save it again"),
        ("a/b.xml, object 3: no name; name it, or leave it out with --on-bad skip", "object 3: no name; name it"),
        ("a/b.xml2 is odd", "a/b.xml2 is odd"),
        ("lost; add it, take it off, or leave it out with --on-bad skip",) * 2,
    ],
)
def test_a_message_loses_what_its_line_says_anyway(message, shorter):
    assert without_path(message, "a/b.xml") == shorter


def test_different_advice_stands_at_each_finding():
    names = (("dogs", "dog"), ("cats", "cat"))
    lines = describe([finding("misspelt-class", "d", a, f"class {a}", fix=f"--merge {b}={a}.") for a, b in names])
    assert "--merge NEW=OLD" in lines[0] and lines[1:] == [
        "  d, class dogs: dogs. --merge dog=dogs.",
        "  d, class cats: cats. --merge cat=cats.",
    ]


def test_one_split_alone_is_examined(run, sets, tmp_path):
    folder = sets.write(tmp_path, "coco", sets.in_format(sets.clean(), "coco"))
    objects = sets.clean(seed=3)
    objects["image01"][0] = ("dog", [60, 10, 40, 60])
    sets.write(tmp_path, "coco", sets.in_format(objects, "coco"), split="val")
    assert run("doctor", folder, "--split", "train")[0] == 0
    assert run("doctor", folder, "--split", "valid")[0] == 1
    assert run("doctor", folder, "--split", "tset")[0] == 2


def test_the_sheet_shows_each_faulty_box(run, faulty, tmp_path):
    assert run("doctor", faulty, "--sheet", tmp_path / "sheet.png")[0] == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size > (512, 512)


def test_what_the_reader_guessed_is_said(run, sets, healthy):
    sets.photo(99).save(healthy / "JPEGImages" / "other.png")
    label = healthy / "Annotations" / "image00.xml"
    label.write_text(label.read_text().replace("image00.png", "other.png"))
    assert "(image00.png, not other.png)" in run("doctor", healthy)[1]


def test_a_set_without_findings_has_no_sheet(healthy):
    diagnosis = diagnose(healthy)
    assert worst_sheet(diagnosis) is None or all(one.severity == "note" for one in diagnosis.findings)


def test_training_says_what_else_tells_only_once(sets, faulty):
    lines = glance_lines(glance([str(faulty)]), [str(faulty)])
    assert lines == [f"the data has 24 errors: reversed-box 24; multibox doctor {faulty} tells more"]
    assert not glance_lines(glance([str(faulty)]), [str(faulty)], TOLD_BY_TRAINING)
    assert not glance([str(faulty / "nothing")])


def test_what_a_reader_skips_is_not_counted_a_second_time(sets, tmp_path):
    data = sets.write(tmp_path, "coco", sets.in_format(sets.clean(), "coco"))
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 9
    file.write_text(json.dumps(content))
    (data / "train" / "image03.png").write_bytes(b"")
    counts = glance([str(data)])
    assert set(counts["error"]) == {"dangling-id", "missing-category", "empty-file"}
    assert not glance_lines(counts, [str(data)], TOLD_BY_TRAINING)
    assert len(open_dataset(data, on_bad="skip").notes) == 1  # images are checked when a run opens them


def test_a_glance_is_kept_for_the_next_run(faulty, tmp_path):
    first = cached_glance([str(faulty)], None, tmp_path, "0123")
    (faulty / "train" / "label.csv").unlink()
    assert cached_glance([str(faulty)], None, tmp_path, "0123") == first == {"error": {"reversed-box": 24}}
    assert not cached_glance([str(faulty)], None, tmp_path, "4567")
    for file in tmp_path.glob("doctor-*"):
        file.write_text("{")
    assert not cached_glance([str(faulty)], None, tmp_path, "0123")


def test_a_run_says_what_the_doctor_sees(sets, tmp_path):
    from multibox.training.reporter import Reporter
    from multibox.training.run import RunOptions, prepare

    objects = sets.clean()
    objects["image01"] = [("dog", [10, 10, 60, 60]), ("dog", [10, 10, 60, 60])]
    data = sets.write(tmp_path / "data", "voc", sets.in_format(objects, "voc"))
    said: list[str] = []
    changes = {"model.input_size": [64, 64], "train.batch_size": 2}
    options = RunOptions(preset="tinyssd", epochs=1, out=tmp_path / "run", changes=changes, val_split="none")
    prepare(data, options, Reporter(said.append))
    assert f"the data has 1 warning: duplicate-box 1; multibox doctor {data.resolve()} tells more" in said
