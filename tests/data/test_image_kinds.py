"""Images of every kind come out as the colours that were put in."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from multibox.data.convert import convert
from multibox.data.formats import find_splits, open_dataset
from multibox.data.image_listing import IMAGE_SUFFIXES, suffix_by_content
from multibox.data.images import decode_image, image_size, load_image
from multibox.errors import ImageError

RNG = np.random.default_rng(3)
GREY16 = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
COLOUR16 = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
COLOUR16[0, 0] = 65535
MODEL = {"grey": 0, "rgb": 2, "grey+alpha": 4, "rgba": 6}


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values, kind, extra=b""):
    """Return a PNG of 8- or 16-bit values [H, W] or [H, W, C]."""
    height, width = values.shape[:2]
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)

    header = struct.pack(">IIBBBBB", width, height, values.dtype.itemsize * 8, MODEL[kind], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def tiff(values, photometric=1, *, order="<", planar=False, extra=()):
    """Return an uncompressed TIFF of values [H, W] or [H, W, C]; `photometric` 0 counts from white, 2 is RGB."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    planes = np.moveaxis(values, -1, 0) if planar else values[None]
    data = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = [values.dtype.itemsize * 8] * channels
    tags = {256: [width], 257: [height], 258: bits, 259: [1], 262: [photometric], 277: [channels], 278: [height]}
    tags |= {284: [2 if planar else 1], 339: [sample] * channels, 273: [0] * len(data), 279: [len(d) for d in data]}
    tags |= {338: list(extra)} if extra else {}
    after = 8 + 2 + 12 * len(tags) + 4
    arrays, place = b"", after + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = [place + sum(len(d) for d in data[:index]) for index in range(len(data))]
    entries = b""
    for tag, held in sorted(tags.items()):
        entries += struct.pack(order + "HHI", tag, 4, len(held))
        entries += struct.pack(order + "I", held[0] if len(held) == 1 else after + len(arrays))
        arrays += struct.pack(f"{order}{len(held)}I", *held) if len(held) > 1 else b""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4) + arrays + b"".join(data)


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data, **options):
    return np.asarray(decode_image(data, "x", **options)).astype(float)


def off(data, values):
    """Return the largest difference to `values` [H, W] or [H, W, 3], which run to 255."""
    return np.abs(pixels(data) - (values if values.ndim == 3 else values[..., None])).max()


SIXTEEN = {
    "png grey": (png(GREY16, "grey"), GREY16),
    "png rgb": (png(COLOUR16, "rgb"), COLOUR16),
    "png rgba": (png(np.dstack([COLOUR16, np.full((20, 30), 65535, np.uint16)]), "rgba"), COLOUR16),
    "pgm": (b"P5 30 20 65535\n" + GREY16.astype(">u2").tobytes(), GREY16),
    "ppm": (b"P6 30 20 65535\n" + COLOUR16.astype(">u2").tobytes(), COLOUR16),
    **{f"tiff grey {o}": (tiff(GREY16, order=o), GREY16) for o in "<>"},
    **{f"tiff rgb {o}": (tiff(COLOUR16, 2, order=o), COLOUR16) for o in "<>"},
    **{f"tiff planes {o}": (tiff(COLOUR16, 2, order=o, planar=True), COLOUR16) for o in "<>"},
    "tiff from white": (tiff(65535 - GREY16, 0), GREY16),
    "tiff from white >": (tiff(65535 - GREY16, 0, order=">"), GREY16),
    **{f"tiff {t} {o}": (tiff(GREY16.astype(t), order=o), GREY16) for o in "<>" for t in ("i4", "u4", "f4", "f8")},
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_sixteen_bits_are_divided_by_257(kind):
    data, values = SIXTEEN[kind]
    assert off(data, values / 257) <= 1


@pytest.mark.parametrize("make", [lambda v: png(v, "rgb"), lambda v: tiff(v, 2)])
def test_twelve_bits_in_sixteen_are_divided_by_16(make):
    twelve = COLOUR16 >> 4
    assert off(make(twelve), twelve * (255 / 4095)) <= 1
    assert off(make(COLOUR16 >> 8), COLOUR16 >> 8) == 0


@pytest.mark.parametrize("full", [1, 255, 4095, 65535])
def test_floats_follow_the_smallest_scale_that_holds_them(full):
    values = np.linspace(0, full, 600).reshape(20, 30).astype(np.float32)
    assert off(tiff(values), values * (255 / full)) <= 0.5
    over = values * 1.05 - 0.02 * full  # what sharpening leaves is clipped
    assert off(tiff(over.astype(np.float32)), np.clip(over * (255 / full), 0, 255)) <= 0.51
    wild = values.copy()
    for value in (np.nan, np.inf, -float(full), 80_000.0):
        wild[3, 4] = value
        with pytest.raises(ImageError, match="grey values run from"):
            decode_image(tiff(wild), "a.tif")


def test_kinds_of_tiff_that_pillow_cannot_read_are_named():
    with pytest.raises(ImageError, match=r"^a\.tif begins like a \.tif file .* rare kind; save it again"):
        decode_image(tiff(COLOUR16.astype(np.float32), 2), "a.tif")


def test_greys_with_a_transparent_value_show_white():
    data = png(np.array([[0, 500], [40000, 65535]], np.uint16), "grey", chunk(b"tRNS", b"\x01\xf4"))
    assert pixels(data)[..., 0].tolist() == [[0, 255], [156, 255]]


def test_ycck_and_adobe_cmyk_are_the_same_colours():
    """Adobe's JPEG files hold inverted CMYK, or YCC of the inverted colours beside K."""
    colour = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    cmyk = saved(colour, "JPEG", quality=100)
    ycc = np.asarray(Image.merge("RGB", colour.split()[:3]).convert("YCbCr"))
    ycck = np.dstack([255 - ycc, np.asarray(colour.split()[3])])
    stored = bytearray(saved(Image.fromarray(ycck, "CMYK"), "JPEG", quality=100))
    at = stored.index(b"Adobe")
    stored[at + 11] = 2
    assert np.abs(pixels(cmyk) - (200, 40, 90)).max() <= 3
    assert np.abs(pixels(bytes(stored)) - (200, 40, 90)).max() <= 3


def test_lab_is_converted():
    lab = Image.new("LAB", (8, 8), (136, 128 + 80, 128 + 67))  # pure red
    assert np.abs(pixels(saved(lab, "TIFF")) - (255, 0, 0)).max() <= 12


@pytest.mark.parametrize("suffix", sorted({".jpg", ".png", ".gif", ".bmp", ".webp", ".tif", ".pgm", ".pfm", ".jp2"}))
def test_the_suffix_is_told_from_the_content(suffix):
    image = Image.new("F" if suffix == ".pfm" else "L", (8, 8))
    formats = {**Image.registered_extensions(), ".pgm": "PPM", ".pfm": "PPM"}
    data = saved(image, formats[suffix])
    assert suffix_by_content(data[:64]) == suffix
    assert suffix in IMAGE_SUFFIXES


JPEG = saved(Image.fromarray(RNG.integers(0, 256, (9, 12, 3), np.uint8)).resize((120, 90)), "JPEG")
PROGRESSIVE = saved(Image.open(io.BytesIO(JPEG)), "JPEG", progressive=True)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE])
def test_a_jpeg_without_its_end_is_read_and_a_truncated_one_is_not(data):
    assert data.endswith(b"\xff\xd9")
    for ending in (b"", b"\xff", bytes(3), bytes(5000)):
        assert np.array_equal(pixels(data[:-2] + ending), pixels(data))
    for cut in (6, 8, 12, 50, len(data) // 2):
        for ending in (b"", bytes(5000)):
            with pytest.raises(ImageError, match=r"a\.jpg is truncated"):
                decode_image(data[:-cut] + ending, "a.jpg")


def test_a_progressive_jpeg_that_lacks_a_scan_is_truncated():
    last = PROGRESSIVE.rindex(b"\xff\xc4")  # the tables of the last scan
    with pytest.raises(ImageError, match="truncated"):
        decode_image(PROGRESSIVE[:last], "a.jpg")


def test_our_own_mistakes_are_not_called_a_damaged_file(monkeypatch):
    def mistaken(*_):
        raise TypeError("a mistake of ours")

    monkeypatch.setattr("multibox.data.images.to_rgb", mistaken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        decode_image(JPEG, "a.jpg")


def test_too_little_memory_is_called_so(monkeypatch):
    def full(_):
        raise MemoryError

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", full)
    with pytest.raises(ImageError, match=r"a\.jpg does not fit into memory with its 120 x 90 pixels"):
        decode_image(JPEG, "a.jpg")


def bomb(width, height, kind="rgb"):
    """Return a PNG that says it has so many pixels, nearly all of which are missing."""
    data = bytearray(png(np.zeros((2, 2, 3), np.uint8), kind))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (65000, 65000, "larger than 178956970 pixels, which may be an attack"),
        (2**31 - 1, 2**31 - 1, "larger than 178956970 pixels"),
        (13000, 13000, r"its \d+ bytes are 13000 x 13000 pixels, which may be an attack"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_headers(tmp_path, width, height, said):
    (tmp_path / "a.png").write_bytes(bomb(width, height))
    with pytest.raises(ImageError, match=said):
        decode_image(bomb(width, height), "a.png")
    with pytest.raises(ImageError, match=said):
        image_size(tmp_path / "a.png")


def test_a_progressive_jpeg_of_endless_scans_is_refused():
    start = PROGRESSIVE.index(b"\xff\xc2") + 5
    many = bytearray(PROGRESSIVE[:-2] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" * 20_000)
    many[start : start + 4] = struct.pack(">HH", 2000, 2000)
    with pytest.raises(ImageError, match=r"a\.jpg has 200\d\d scans, which may be an attack"):
        decode_image(bytes(many) + b"\xff\xd9", "a.jpg")


def test_a_png_that_unpacks_to_much_text_is_refused_in_little_memory():
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
    with pytest.raises(ImageError, match=r"a\.png"):
        decode_image(png(np.zeros((2, 2), np.uint8), "grey", text), "a.png")


@pytest.fixture
def odd(tmp_path):
    """A YOLO data set of images with rare suffixes, each one grey, labelled in the order of its suffix."""
    kinds = {".jfif": "JPEG", ".avif": "AVIF", ".mpo": "JPEG", ".jp2": "JPEG2000", ".pgm": "PPM", ".PNG": "PNG"}
    kinds |= {".webp": "WEBP", ".gif": "GIF", ".tif": "TIFF", ".bmp": "BMP"}
    kinds = {suffix: kind for suffix, kind in kinds.items() if kind in Image.SAVE or kind != "AVIF"}
    for folder in ("images/train", "labels/train"):
        (tmp_path / "odd" / folder).mkdir(parents=True)
    for number, (suffix, kind) in enumerate(kinds.items()):
        file = tmp_path / "odd/images/train" / f"p{number}{suffix}"
        file.write_bytes(saved(Image.new("L" if kind == "PPM" else "RGB", (40, 20), 128 if kind == "PPM" else 0), kind))
        file = tmp_path / "odd/labels/train" / f"p{number}.txt"
        file.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "odd/data.yaml").write_text("train: images/train\nnames: [cat]\n")
    return tmp_path / "odd"


@pytest.mark.parametrize("to", ["voc", "coco", "yolo", "csv", "recordio"])
def test_what_convert_writes_of_rare_suffixes_is_read(odd, tmp_path, to):
    given = open_dataset(odd, "train")
    assert len(given) == 10
    convert(odd, tmp_path / "out", to)
    read = open_dataset(tmp_path / "out", find_splits(tmp_path / "out")[0])
    assert len(read) == len(given)
    assert len(read.labels) == len(given.labels)
    if to != "recordio":
        assert sorted(path.name for path in read.paths) == sorted(path.name for path in given.paths)
    for sample in read:
        assert load_image(sample).size == (40, 20)


def test_images_without_a_suffix_get_one_by_their_content(tmp_path):
    (tmp_path / "set").mkdir()
    lines = ["filename,label,xmin,ymin,xmax,ymax"]
    for number, kind in enumerate(("JPEG", "PNG", "WEBP")):
        (tmp_path / "set" / f"pic{number}").write_bytes(saved(Image.new("RGB", (40, 20)), kind))
        lines.append(f"pic{number},cat,1,2,30,18")
    (tmp_path / "set/labels.csv").write_text("\n".join(lines) + "\n")
    assert len(open_dataset(tmp_path / "set")) == 3
    convert(tmp_path / "set", tmp_path / "out", "yolo")
    read = open_dataset(tmp_path / "out")
    assert sorted(path.name for path in read.paths) == ["pic0.jpg", "pic1.png", "pic2.webp"]
    assert len(read.labels) == 3


@pytest.mark.parametrize("name", ["y12_suffixes", "y12b_suffix_background", "n3_suffixes", "n4_nosuffix"])
def test_case_of_rare_suffixes(shared, tmp_path, name):
    case = shared.parent / "cases/yolo-rare-suffixes" / name
    if not case.is_dir():
        pytest.skip("needs ../shared/cases")
    split = find_splits(case)[0]
    given = open_dataset(case, split)
    held = [file for file in given.paths[0].parent.iterdir() if file.suffix not in (".txt", ".json")]
    assert len(given) == len(held)
    convert(case, tmp_path / "out", "yolo")
    read = open_dataset(tmp_path / "out", split)
    assert (len(read), len(read.labels)) == (len(given), len(given.labels))
    assert np.abs(np.sort(read.boxes_xyxy, axis=0) - np.sort(given.boxes_xyxy, axis=0)).max() < 0.5
