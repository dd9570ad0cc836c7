"""The relabel list: the images with suspect labels, to be corrected in a labelling tool.

The folder holds list.csv, labels/ (these images as a data set in their own format), label-studio.json with
label_config.xml, and cvat.xml with cvat-labels.json. Labels are as they are in all of them: what the model suggests is
a prediction in Label Studio, a tag in CVAT and a line in list.csv, for a person to accept or not.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from multibox.analysis.suspects import Suspect
from multibox.columns import Texts
from multibox.data.convert import write_dataset
from multibox.data.formats import FORMATS, cvat, label_studio, open_dataset
from multibox.data.formats.finder import place_image, target_names
from multibox.data.formats.text import number_text
from multibox.data.images import shown_size
from multibox.data.left_out import counted
from multibox.files import free_path, whole_folder, write_text_whole
from multibox.structures import Dataset, Sample

MOST_IMAGES = 500
"""Images in the folder, those with the most suspect labels; list.csv names all suspects."""
_FALLBACK = "coco"
"""Written where the data's own format is only read."""
_NAMED_IN_FILES = ("voc", "labelme")
"""Formats whose label files belong to one image and name its classes: the files themselves are copied."""
WRITTEN = ".written.json"
"""File that says what was written, by which a later report knows whether a person has worked in the folder."""
_MARK = "suspect"
"""The attribute of a suspect box and the name of a tag in CVAT."""


class Relabel(NamedTuple):
    """What `write_relabel` wrote."""

    images: int
    format: str
    """Of labels/."""
    files: list[str]
    """The forms of the list, below the folder."""
    notes: list[str]
    """What was left out, and what the format could not hold."""


class _Page(NamedTuple):
    """An image of the list."""

    sample: Sample
    name: str
    """The name by which a tool knows it."""
    file: str
    """Its file, below the folder."""
    suspects: list[Suspect]


def write_relabel(suspects: Sequence[Suspect], dataset: Dataset, folder: str | Path) -> Relabel:
    """Write the relabel list of a data set into a folder; it appears when it is complete.

    Images are hard links where the file system has them, else copies: at most 500, those with the most suspect labels.

    Args:
        suspects: From `find_suspects`, for this data set.
        dataset: The labelled images.
        folder: Not there yet, or empty; such as DIR/relabel.

    Raises:
        FileExistsError: The folder holds something.
        DataError: An image cannot be read.
    """
    places = list(dict.fromkeys(suspect["position"] for suspect in suspects))
    shown = places[:MOST_IMAGES]
    notes = [f"list.csv names all suspects; the {MOST_IMAGES} images with the most suspect labels are shown"]
    notes = notes if len(shown) < len(places) else []
    with whole_folder(folder) as part:
        write_text_whole(part / "list.csv", _as_csv(suspects))
        if not shown:
            _write_state(part)
            return Relabel(0, dataset.format, ["list.csv"], ["no label is suspect"])
        part_set = replace(dataset.subset(shown), split=dataset.split or "all")
        format, said = _write_labels(part_set, dataset, part / "labels")
        pages = _pages(part_set, shown, suspects, part)
        _write_label_studio(pages, part_set.class_names, part)
        _write_cvat(pages, part_set.class_names, part)
        _write_state(part)
    return Relabel(len(shown), format, ["list.csv", "labels/", "label-studio.json", "cvat.xml"], notes + said)


def renew_relabel(suspects: Sequence[Suspect], dataset: Dataset, folder: Path) -> Relabel:
    """Write the relabel list as `write_relabel` does, in place of an earlier one if the folder is there.

    The earlier one goes when the new one is complete. Ask `is_untouched` before.
    """
    if not os.path.lexists(folder):
        return write_relabel(suspects, dataset, folder)
    new = free_path(folder)
    written = write_relabel(suspects, dataset, new)
    shutil.rmtree(folder)
    new.rename(folder)
    return written


def is_untouched(folder: Path) -> bool:
    """Return whether a folder holds what `write_relabel` wrote, and nothing of anyone else's: no file was changed."""
    try:
        return json.loads((folder / WRITTEN).read_text(encoding="utf-8")) == _state(folder)
    except (OSError, ValueError):
        return False


def _write_state(folder: Path) -> None:
    write_text_whole(folder / WRITTEN, json.dumps(_state(folder), ensure_ascii=False))


def _state(folder: Path) -> dict[str, list[int]]:
    """Return size and time of change, in nanoseconds, of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and path != folder / WRITTEN]
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in files}
    return {name: [one.st_size, one.st_mtime_ns] for name, one in found.items()}


def _as_csv(suspects: Sequence[Suspect]) -> str:
    """Return the list as a table; a box is one cell, so that no reader takes the list for labels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("rank", "file", "kind", "suspicion", "name", "box", "suggested_name", "suggested_box", "evidence", "why")
    writer.writerow(columns)
    for one in suspects:
        row: Mapping[str, Any] = one
        writer.writerow([_cell(row[column]) for column in columns])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        return " ".join(part if isinstance(part, str) else number_text(part) for part in parts)
    return "" if value is None else str(value)


def _write_labels(part_set: Dataset, dataset: Dataset, folder: Path) -> tuple[str, list[str]]:
    """Write the labels of the images in their own format; return it and what has to be said."""
    own = dataset.format
    written = own if own in FORMATS and FORMATS[own].write is not None else _FALLBACK
    names = target_names(part_set)
    notes = write_dataset({part_set.split: replace(part_set, image_names=Texts.of(names))}, folder, written, link=True)
    if written != own:
        notes.insert(0, f"labels in the format {own} are not written: labels/ is in the format {written}")
    if written in _NAMED_IN_FILES:
        notes += _copy_originals(folder, dataset.root)
    return written, notes


def _copy_originals(folder: Path, root: Path) -> list[str]:
    """Put the original label files over those written, where they have one place: they hold more than boxes."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".xml", ".json")]
    copied = 0
    for file in files:
        original = root / file.relative_to(folder)
        if original.is_file():
            shutil.copyfile(original, file)
            copied += 1
    return [] if copied == len(files) else [f"{counted(len(files) - copied, 'label file was', 'label files were')} "
                                            "written anew, with boxes and classes only"]  # fmt: skip


def _pages(part_set: Dataset, shown: list[int], suspects: Sequence[Suspect], folder: Path) -> list[_Page]:
    names = target_names(part_set)
    files = _image_files(part_set, names, folder)
    of_image: dict[int, list[Suspect]] = {place: [] for place in shown}
    for suspect in suspects:
        of_image.get(suspect["position"], []).append(suspect)
    return [_Page(part_set[row], names[row], files[row], of_image[place]) for row, place in enumerate(shown)]


def _image_files(part_set: Dataset, names: Sequence[str], folder: Path) -> list[str]:
    """Return the image files below the folder; images that labels/ keeps in a container are written beside it."""
    written = open_dataset(folder / "labels", part_set.split)
    if written.offsets[0] is None:
        files = [path.relative_to(folder).as_posix() for path in written.paths]
        found = dict(zip(written.image_names, files, strict=True))
        if found.keys() == set(names):
            return [found[name] for name in names]
        # A folder that all images of a joined data set share here is no part of the names that are read
        return [next(file for file in files if file.endswith(f"/{name}")) for name in names]
    for row, name in enumerate(names):
        place_image(part_set[row], folder / "images" / name, link=True)
    return [f"images/{name}" for name in names]


def _write_label_studio(pages: Sequence[_Page], class_names: tuple[str, ...], folder: Path) -> None:
    tasks: list[dict[str, Any]] = []
    for page in pages:
        results = list(label_studio.regions(page.sample, class_names))
        for result, box in zip(results, page.sample.boxes_xyxy.tolist(), strict=True):
            said = [_brief(one) for one in page.suspects if one["box"] == box]
            if said:
                result["meta"] = {"text": [*result.get("meta", {"text": []})["text"], *said]}
        data = {
            "image": f"/data/local-files/?d={quote(page.file)}",
            "suspicion": page.suspects[0]["suspicion"],
            "suspects": "; ".join(_brief(one) for one in page.suspects),
        }
        tasks.append(
            {"data": data, "annotations": [{"result": results}], "predictions": _predictions(page, class_names)}
        )
    write_text_whole(folder / "label-studio.json", json.dumps(tasks, ensure_ascii=False, indent=1))
    config = label_studio.labelling_config(class_names, '  <Header value="$suspects"/>\n')
    write_text_whole(folder / "label_config.xml", config)


def _predictions(page: _Page, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what the model suggests, as one prediction of a task; nothing where it only doubts a label."""
    seen = [one for one in page.suspects if one["suggested_box"] is not None]
    if not seen:
        return []
    flags = np.zeros(len(seen), np.bool_)
    sample = replace(
        page.sample,
        boxes_xyxy=np.array([one["suggested_box"] for one in seen], np.float64),
        labels=np.array([class_names.index(one["suggested_name"] or "") for one in seen], np.int64),
        difficult=flags,
        crowd=flags,
    )
    results = list(label_studio.regions(sample, class_names))
    for number, (result, one) in enumerate(zip(results, seen, strict=True), start=1):
        result |= {"id": f"suggestion{number}", "score": one["suspicion"], "meta": {"text": [_brief(one)]}}
    return [{"model_version": "multibox", "score": page.suspects[0]["suspicion"], "result": results}]


def _brief(one: Suspect) -> str:
    """Return a suspect in a few words, such as `class? Platelets (0.94)`."""
    said = {
        "missing": f"missing {one['suggested_name']}?",
        "location": f"{one['name']} badly placed?",
        "class": f"{one['name']} is {one['suggested_name']}?",
    }
    return f"{said[one['kind']]} ({one['suspicion']:.2f})"


def _write_cvat(pages: Sequence[_Page], class_names: tuple[str, ...], folder: Path) -> None:
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += ["  <meta>", "    <project>", "      <labels>", *_cvat_labels(class_names)]
    lines += ["      </labels>", "    </project>", "  </meta>"]
    for number, page in enumerate(pages):
        size = page.sample.size or shown_size(page.sample)
        about = f'id="{number}" name={quoteattr(page.name)} width="{size.width}" height="{size.height}"'
        lines += [f"  <image {about}>", *_cvat_shapes(page, class_names), "  </image>"]
    write_text_whole(folder / "cvat.xml", "\n".join([*lines, "</annotations>", ""]))
    write_text_whole(folder / "cvat-labels.json", json.dumps(_cvat_project(class_names), ensure_ascii=False, indent=1))


def _cvat_shapes(page: _Page, class_names: tuple[str, ...]) -> Iterator[str]:
    """Yield the boxes, those that are suspect with an attribute that says so, and a tag for each suspect."""
    boxes = page.sample.boxes_xyxy.tolist()
    for line, box in zip(cvat.box_lines(page.sample, class_names), boxes, strict=True):
        said = "; ".join(_brief(one) for one in page.suspects if one["box"] == box)
        mark = f'<attribute name="{_MARK}">{escape(said)}</attribute>' if said else ""
        yield line.replace("</box>", f"{mark}</box>")
    for one in page.suspects:
        place = one["suggested_box"] or one["box"] or []
        text = f"{_brief(one)} at {', '.join(number_text(round(edge)) for edge in place)}"
        yield f'    <tag label="{_MARK}" source="auto"><attribute name="why">{escape(text)}</attribute></tag>'


_TEXT = "<mutable>False</mutable><input_type>text</input_type><default_value></default_value><values />"


def _cvat_labels(class_names: tuple[str, ...]) -> Iterator[str]:
    text = f"<attribute><name>{_MARK}</name>{_TEXT}</attribute>"
    for name in class_names:
        yield f"        {cvat.label_line(name, text)}"
    why = f"<attributes><attribute><name>why</name>{_TEXT}</attribute></attributes>"
    yield f"        <label><name>{_MARK}</name><type>tag</type>{why}</label>"


def _cvat_project(class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the labels that the project or task needs before the file is uploaded, for the Raw view of CVAT."""

    def attribute(name: str, kind: str) -> dict[str, Any]:
        values = ["false"] if kind == "checkbox" else [""]
        return {"name": name, "mutable": False, "input_type": kind, "default_value": values[0], "values": values}

    marks = [attribute("difficult", "checkbox"), attribute("is_crowd", "checkbox"), attribute(_MARK, "text")]
    classes: list[dict[str, Any]] = [{"name": name, "type": "rectangle", "attributes": marks} for name in class_names]
    return [*classes, {"name": _MARK, "type": "tag", "attributes": [attribute("why", "text")]}]
