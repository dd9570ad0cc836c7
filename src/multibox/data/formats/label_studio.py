"""Label Studio: JSON of tasks as it exports them (full, or JSON-MIN) and imports them; regions in percent."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from multibox.data.formats.documents import (
    LabelFiles,
    around,
    around_ellipse,
    around_turned,
    is_textual,
    items,
    json_kind,
    label_files,
    load_json,
    number,
    parse_xml,
    shown,
    size_in,
    split_of_file,
)
from multibox.data.formats.finder import IMAGE_FOLDERS, ImageFinder, place_image, target_names
from multibox.data.formats.index import IndexBuilder
from multibox.data.formats.text import ADVICE, ReadOptions, is_list, is_mapping, safe_name
from multibox.data.image_listing import IMAGE_SUFFIXES
from multibox.data.images import image_size, shown_size
from multibox.data.left_out import BROKEN_BOX, BROKEN_FILE, NOT_A_BOX, OUTLINE, counted
from multibox.errors import DataError, ImageError
from multibox.structures import Dataset, Sample, Size

_CONFIGS = ("label_config.xml", "labeling_config.xml", "config.xml")
_IMAGE_KEYS = ("image", "img", "image_url", "url", "file_upload")
_LABEL_TAGS = ("Label",)
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the names of uploaded files."""


@dataclass(frozen=True)
class _Task:
    images: list[str]
    """What may name the image, the likeliest first."""
    regions: list[Any]
    where: str


@dataclass
class _Doubts:
    """What the notes have to say."""

    annotators: int = 0
    several_labels: int = 0
    without_prefix: int = 0
    not_labelled: int = 0

    def notes(self) -> list[str]:
        """Return a sentence for each that occurred."""
        told = [
            (self.annotators, "task has", "tasks have", "several annotations, of which the first was taken"),
            (self.several_labels, "region has", "regions have", "several labels, of which the first was taken"),
            (self.without_prefix, "image was", "images were", "found under the name before Label Studio's upload"),
            (self.not_labelled, "task has", "tasks have", "no finished annotation and was left out"),
        ]
        return [counted(count, f"{one} {end}", f"{many} {end}") for count, one, many, end in told if count]


def recognise(path: Path) -> str | None:
    """Return what makes this file or folder Label Studio's, or None."""
    files = (file for held in find_splits(path).values() for file in held.files)
    return next((file.name for file in files if _is_label_studio(file)), None)


def find_splits(path: Path) -> dict[str, LabelFiles]:
    """Return the splits: by file or folder, else one called "all"."""
    if path.is_file():
        return {split_of_file(path): LabelFiles(path.parent, [path])}
    declared = any((path / name).is_file() for name in _CONFIGS)
    held = label_files(path, (".json",), _is_label_studio, (), per_image=False)
    files = [file for one in held.values() for file in one.files]
    if declared and len(held) == 1 and len(files) > 1:
        return {file.stem: LabelFiles(path, [file]) for file in files}
    return held


def read(path: Path, split: str, options: ReadOptions) -> Dataset:
    """Read one split: of each task the first annotation that was not cancelled; predictions are no labels.

    Classes come in the order of label_config.xml where that lies beside, else of the alphabet over all splits.

    Raises:
        DataError: for JSON that holds no tasks, a region without numbers or a label, a missing image.
    """
    splits = find_splits(path)
    source = splits[split]
    root = path.parent if path.is_file() else path
    index = IndexBuilder(root, "labelstudio", split, options, shared=True)
    finder = ImageFinder(root, _image_folders(source, root, split), split)
    doubts = _Doubts()
    labels: dict[str, int] = {}
    count = 0
    for file in source.files:
        index.source = file
        for place, thing in enumerate(_tasks(file, index.tell_encoding), start=1):
            count += 1
            with index.skipping(BROKEN_FILE, f"task {place}"):
                task = _read_task(thing, f"{file}, task {place}", doubts)
                if task is not None:
                    _add(index, finder, task, file, labels, doubts)
    index.notes += doubts.notes()
    if doubts.not_labelled and doubts.not_labelled == count:
        raise DataError(
            f"{', '.join(map(str, source.files[:3]))}: none of the {doubts.not_labelled} tasks has a finished "
            "annotation, and predictions are no labels; accept or draw them in Label Studio and export again"
        )
    declared = list(labels)
    others = {file for one in splits.values() for file in one.files} - set(source.files)
    used = set(declared) | {name for file in others for name in _labels_in(file)}
    listed = _configured(source.base, root)
    order = [*listed, *sorted(used - set(listed))] if used & set(listed) or not used else sorted(used)
    return index.finish(declared, order=order)


def _add(
    index: IndexBuilder, finder: ImageFinder, task: _Task, file: Path, labels: dict[str, int], doubts: _Doubts
) -> None:
    subject = task.images[0][-60:]
    found = index.check_found(_find(finder, task.images, doubts), finder, subject, task.where, subject)
    if found is None:
        return
    name = _name(found, finder)
    declared = next(
        (size for region in task.regions if (size := size_in(region, "original_height", "original_width")) is not None),
        None,
    )
    size = _fitting(declared, found)
    row = index.add_image(name, found, file, size)
    if row is None:
        return
    for place, region in enumerate(task.regions, start=1):
        _add_region(index, row, region, place, f"{task.where} ({name}), region {place}", name, labels, doubts)


def _add_region(
    index: IndexBuilder,
    row: int,
    region: Any,
    place: int,
    where: str,
    subject: str,
    labels: dict[str, int],
    doubts: _Doubts,
) -> None:
    value: dict[str, Any] = region["value"]
    size = index.sizes[row]
    with index.skipping(BROKEN_BOX, subject):
        if size is None:
            raise DataError(f"{where}: the size of the image is not known, expected original_width and original_height")
        try:
            placed = _place(value, size)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"{where}: expected its place in percent, got {shown(value, 80)}; {ADVICE}", kind="not-a-number"
            ) from None
        if placed is None:
            index.count(NOT_A_BOX, subject)
            return
        names = _names(region)
        if not names:
            raise DataError(f"{where}: it has no label; {ADVICE}", kind="missing-category")
        if region.get("image_rotation") not in (None, 0, "0"):
            raise DataError(f"{where}: the image was turned in Label Studio, so its place is not known; {ADVICE}")
        doubts.several_labels += len(names) > 1
        box, outline = placed
        marks: set[Any] = {str(mark) for mark in items(region.get("meta"), "text")}
        flags = {"difficult": "difficult" in marks, "crowd": "crowd" in marks, "outline": outline}
        index.add_box(
            row, [round(edge, 6) for edge in box], labels.setdefault(names[0], len(labels)), line=place, **flags
        )
        if outline:
            index.count(OUTLINE, subject)


def _place(value: Mapping[str, Any], size: Size) -> tuple[tuple[float, float, float, float], bool] | None:
    """Return the box around a region in pixels, and whether it is another shape; None for a shape without a box.

    Raises:
        KeyError, TypeError, ValueError or OverflowError: a value is missing or no number.
    """
    across, down = size.width / 100, size.height / 100
    turned = number(value.get("rotation") or 0.0)
    if "points" in value:
        return around((number(x) * across, number(y) * down) for x, y in value["points"]), True
    if "radiusX" in value:
        cx, cy, rx, ry = (number(value[name]) for name in ("x", "y", "radiusX", "radiusY"))
        return around_ellipse(cx * across, cy * down, rx * across, ry * down, turned), True
    if "height" not in value:
        return None  # a brush's mask, or a key point
    x, y, width, height = (number(value[name]) for name in ("x", "y", "width", "height"))
    x, y, width, height = x * across, y * down, width * across, height * down
    if turned:
        return around_turned(x, y, width, height, turned, (x, y)), True
    return (x, y, x + width, y + height), False


def _names(region: Mapping[str, Any]) -> list[str]:
    """Return the labels of a region: of its own kind, such as rectanglelabels, or of the tag Labels."""
    value: dict[str, Any] = region["value"]
    keys = dict.fromkeys((str(region.get("type")), "labels", *(key for key in value if key.endswith("labels"))))
    named = next((held for key in keys if (held := items(value, key))), None)
    return [str(name).strip() for name in named or () if is_textual(name)]


def _read_task(thing: Any, where: str, doubts: _Doubts) -> _Task | None:
    """Return the image and the regions of a task; None if nobody has finished it.

    Raises:
        DataError: it is no task.
    """
    if not is_mapping(thing):
        raise DataError(f"{where}: expected an object, got {shown(thing, 40)}; {ADVICE}")
    data: Any = thing.get("data")
    images = _image_names(data if is_mapping(data) else thing, thing.get("file_upload"))
    if not images:
        raise DataError(f"{where}: nothing in it names an image; {ADVICE}")
    if not is_mapping(data):
        return _Task(images, list(_flat_regions(thing)), where)
    annotations = items(thing, "annotations") or items(thing, "completions")
    finished = [one for one in annotations if is_mapping(one) and not one.get("was_cancelled")]
    if not finished:
        doubts.not_labelled += 1
        return None
    doubts.annotators += len(finished) > 1
    return _Task(images, _joined(items(finished[0], "result")), where)


def _joined(results: list[Any]) -> list[Any]:
    """Return an annotation's regions; where the label stands in a result of its own, it is put into its region."""
    regions: dict[Any, Any] = {}
    for place, result in enumerate(results):
        value: Any = result.get("value") if is_mapping(result) else None
        if not is_mapping(value) or str(result.get("type")) in ("choices", "textarea", "taxonomy", "rating", "number"):
            continue  # an answer about the whole image or about a region
        key = result.get("id") if is_textual(result.get("id")) else place
        first = regions.get(key)
        if first is not None and not _same_place(first["value"], value):
            regions[place] = result  # scripts that write such files give every region one id
        elif first is not None:
            regions[key] = {**result, **first, "value": {**value, **first["value"]}}
        else:
            regions[key] = result
    return list(regions.values())


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("x", "y", "width", "height", "points") if key in one and key in other)


def _flat_regions(task: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the regions of a JSON-MIN task, whose fields are named by the label tags."""
    for held in task.values():
        for one in held if is_list(held) else ():
            if is_mapping(one) and ("original_width" in one or any(str(key).endswith("labels") for key in one)):
                yield {**one, "value": one}


def _image_names(data: Mapping[str, Any], upload: Any) -> list[str]:
    texts = [str(data[key]) for key in _IMAGE_KEYS if is_textual(data.get(key))]
    others = [str(held) for held in data.values() if is_textual(held)]
    texts += [text for text in others if _path_in(text).lower().endswith(IMAGE_SUFFIXES)]
    return list(dict.fromkeys([*texts, *([str(upload)] if is_textual(upload) else [])]))


def _path_in(text: str) -> str:
    """Return the path in a URL; of /data/local-files/?d=PATH the one that is asked for."""
    try:
        parts = urlsplit(text.strip())
        asked = parse_qs(parts.query).get("d") if parts.path.rstrip("/").endswith("local-files") else None
    except ValueError:
        return text.strip()
    if asked:
        return asked[0]
    is_url = parts.scheme in ("http", "https", "s3", "gs", "azure-blob") or parts.path.startswith("/data/")
    return unquote(parts.path) if is_url else text.strip()


def _find(finder: ImageFinder, texts: list[str], doubts: _Doubts) -> Path | None:
    for text in texts:
        if found := finder.find(_path_in(text)):
            return found
    for text in texts:
        base = safe_name(_path_in(text)).rpartition("/")[2]
        if _UPLOAD.match(base) and (found := finder.find(_UPLOAD.sub("", base))):
            doubts.without_prefix += 1
            return found
    return None


def _name(found: Path, finder: ImageFinder) -> str:
    folder = next((place for place in finder.folders if found.is_relative_to(place)), found.parent)
    return found.relative_to(folder).as_posix()


def _fitting(declared: Size | None, found: Path) -> Size | None:
    """Return the size that the percentages are of: the image's own, or its turned one if the labels say so."""
    try:
        own = image_size(found)
    except ImageError:
        return declared
    return declared if declared is not None and declared == Size(own.width, own.height) else own


def _tasks(file: Path, tell: Callable[[Path, str], None] | None = None) -> list[Any]:
    content = load_json(file, tell)
    if not is_list(content):
        raise DataError(f"{file} is no Label Studio export: expected a list of tasks; export it as JSON")
    return content


def _labels_in(file: Path) -> set[str]:
    """Return the labels in another split's file; what is broken names none."""
    try:
        tasks = [_read_task(thing, "", _Doubts()) for thing in _tasks(file) if is_mapping(thing)]
    except DataError:
        return set()
    return {name for task in tasks if task for region in task.regions for name in _names(region)[:1]}


def _configured(*places: Path) -> list[str]:
    """Return the classes that the project's labelling configuration declares; none without one."""
    file = next((place / name for place in places for name in _CONFIGS if (place / name).is_file()), None)
    if file is None:
        return []
    try:
        tree = parse_xml(file.read_bytes(), str(file))
    except (DataError, OSError):
        return []
    names = (thing.get("value", "").strip() for tag in _LABEL_TAGS for thing in tree.iter(tag))
    return [name for name in dict.fromkeys(names) if name]


def _is_label_studio(file: Path) -> bool:
    return file.suffix.lower() == ".json" and json_kind(file) == "labelstudio"


def _image_folders(source: LabelFiles, root: Path, split: str) -> list[Path]:
    places = dict.fromkeys((source.base, root))
    by_split = [place / name / split for place in places for name in IMAGE_FOLDERS]
    return [*by_split, *(place / name for place in places for name in (*IMAGE_FOLDERS, "upload", "media"))]


def write(splits: Mapping[str, Dataset], folder: Path, *, link: bool) -> list[str]:
    """Write SPLIT.json with tasks that Label Studio imports, label_config.xml for its project, and images/SPLIT.

    The tasks name the images as files below a local storage whose root is the folder.
    """
    for split, dataset in splits.items():
        tasks: list[dict[str, Any]] = []
        for name, sample in zip(target_names(dataset), dataset, strict=True):
            place_image(sample, folder / "images" / split / name, link=link)
            results = list(regions(sample, dataset.class_names))
            url = f"/data/local-files/?d={quote(f'images/{split}/{name}')}"
            tasks.append({"data": {"image": url}, "annotations": [{"result": results}]})
        text = json.dumps(tasks, ensure_ascii=False, indent=1)
        (folder / f"{split}.json").write_text(text, encoding="utf-8")
    text = labelling_config(next(iter(splits.values())).class_names)
    (folder / "label_config.xml").write_text(text, encoding="utf-8")
    return []


def labelling_config(class_names: tuple[str, ...], head: str = "") -> str:
    """Return label_config.xml for a project: an image with boxes of these classes below `head`."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in class_names)
    return (
        f'<View>\n{head}  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
        f"{labels}  </RectangleLabels>\n</View>\n"
    )


def regions(sample: Sample, class_names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the result of each box, as annotations and predictions hold them."""
    size = shown_size(sample)
    for row, (x1, y1, x2, y2) in enumerate(sample.boxes_xyxy.tolist()):
        marks = [name for name in ("difficult", "crowd") if getattr(sample, name)[row]]
        yield {
            "id": f"box{row + 1}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": size.width,
            "original_height": size.height,
            "image_rotation": 0,
            "value": {
                "x": x1 / size.width * 100,
                "y": y1 / size.height * 100,
                "width": (x2 - x1) / size.width * 100,
                "height": (y2 - y1) / size.height * 100,
                "rotation": 0,
                "rectanglelabels": [class_names[int(sample.labels[row])]],
            },
            **({"meta": {"text": marks}} if marks else {}),
        }
