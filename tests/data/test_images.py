import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from multibox.data.formats import open_dataset
from multibox.data.image_listing import find_images, list_images
from multibox.data.images import decode_image, image_size, load_image, read_image, resize_image
from multibox.errors import ImageError
from multibox.structures import Size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def read(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_colour_and_grey(tmp_path):
    assert np.array_equal(read(saved(tmp_path / "a.png", Image.fromarray(PIXELS))), PIXELS)
    grey = PIXELS[..., 0]
    assert np.array_equal(read(saved(tmp_path / "b.png", Image.fromarray(grey))), np.stack([grey] * 3, -1))
    assert set(np.unique(read(saved(tmp_path / "c.png", Image.fromarray(grey > 127))))) == {0, 255}


def test_transparency_is_white(tmp_path):
    rgba = np.dstack([PIXELS, np.zeros((20, 30), np.uint8)])
    rgba[:, 15:, 3] = 255
    pixels = read(saved(tmp_path / "a.png", Image.fromarray(rgba)))
    assert (pixels[:, :15] == 255).all()
    assert np.array_equal(pixels[:, 15:], PIXELS[:, 15:])
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert (read(saved(tmp_path / "b.png", palette)) == (200, 100, 50)).all()
    assert (read(saved(tmp_path / "c.png", palette, transparency=1)) == 255).all()


def test_sixteen_bits_keep_their_range(tmp_path):
    full = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    pixels = read(saved(tmp_path / "a.png", Image.fromarray(full)))[..., 0].astype(float)
    assert np.abs(pixels - full / 257).max() <= 1
    twelve = (full >> 4).astype(np.uint16)
    pixels = read(saved(tmp_path / "b.tif", Image.fromarray(twelve)))[..., 0].astype(float)
    assert np.abs(pixels - twelve * (255 / 4095)).max() <= 1
    eight = (full >> 8).astype(np.uint16)
    assert np.array_equal(read(saved(tmp_path / "c.png", Image.fromarray(eight)))[..., 0], eight)


def test_cmyk_comes_out_as_its_colours(tmp_path):
    colour = Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK")
    for name in ("a.tif", "a.jpg"):
        assert np.abs(read(saved(tmp_path / name, colour)).astype(int) - (200, 40, 90)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The stored image is the upright one turned backwards; reading must give the upright one again."""
    back = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
    }
    back[8] = "ROTATE_270"
    upright = Image.fromarray(PIXELS)
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose[back[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", stored, exif=exif)
    assert np.array_equal(read(path), PIXELS)
    assert image_size(path) == Size(20, 30)


def test_the_first_frame_of_several(tmp_path):
    first, second = Image.new("RGB", (5, 5), (255, 0, 0)), Image.new("RGB", (5, 5), (0, 0, 255))
    pixels = read(saved(tmp_path / "a.tif", first, save_all=True, append_images=[second]))
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "gif"])
def test_truncated_files_are_errors_that_name_the_file(tmp_path, suffix):
    data = saved(tmp_path / f"a.{suffix}", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))).read_bytes()
    for share in (0.0, 0.05, 0.5, 0.9):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ImageError, match=rf"cut\.{suffix}") as error:
            read_image(cut)
        assert "\n" not in str(error.value)


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image at all")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.jpg", "folder.png", "missing.png"):
        for function in (read_image, image_size):
            with pytest.raises(ImageError, match=name):
                function(tmp_path / name)
    with pytest.raises(ImageError, match="record 7"):
        decode_image(b"", "train.rec, record 7")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("L", (400, 400)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a\.png"):
        read_image(path)


@pytest.mark.parametrize("size", [(8, 8), (50, 70), (13, 90)])
def test_resize_is_bilinear_with_half_pixel_centres_and_antialias(size):
    """Equal to torch's antialiased bilinear interpolation within one grey level."""
    ours = np.asarray(resize_image(Image.fromarray(PIXELS), Size(*size))).astype(float)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].float()
    theirs = torch.nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True, align_corners=False)
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1


def test_resize_of_a_part():
    whole = np.asarray(resize_image(Image.fromarray(PIXELS), Size(10, 10), (5, 5, 15, 15)))
    assert np.array_equal(whole, PIXELS[5:15, 5:15])


def test_listing(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.jpg", ".hidden.png", "deep/c.png"):
        Image.new("L", (2, 2)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("x")
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [p.name for p in list_images(f"{tmp_path}/**/*")] == ["a.jpg", "b.PNG", "c.png"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "empty").mkdir()
    for source in ("empty", "*.gif", "nowhere"):
        with pytest.raises(ImageError, match=source.replace("*", r"\*")):
            list_images(tmp_path / source)


def test_sources_are_joined_and_what_is_passed_over_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.data.image_listing.reads_heif", lambda: False)
    for name in ("a.jfif", "b.JPE", "c.jif", "d.heic", "e.HEIF", "labels.txt", "clip.mp4", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    found = find_images([tmp_path / "c.jif", tmp_path, f"{tmp_path}/*.jfif"])
    assert [path.name for path in found.paths] == ["c.jif", "a.jfif", "b.JPE"]
    assert found.notes == [
        "2 HEIC images were passed over; pip install 'multibox[heic]' reads them",
        "2 other files were passed over: 1 .mp4, 1 .txt",
    ]
    monkeypatch.setattr("multibox.data.image_listing.reads_heif", lambda: True)
    assert [path.name for path in find_images([tmp_path]).paths] == ["a.jfif", "b.JPE", "c.jif", "d.heic", "e.HEIF"]


def test_heic_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("multibox.data.images.reads_heif", lambda: False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(ImageError, match=r"a\.heic is a HEIC image: pip install 'multibox\[heic\]'"):
        read_image(tmp_path / "a.heic")


HEIC = """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA
ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAABwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt
AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA
AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j
bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp
eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAACRtZGF0AAAAGCgBrxOA+BDhp//6AqP9rzw+20u/OikM+A==
"""
"""An image of 64x48 pixels, all (200, 40, 90)."""


def test_heic_is_read_with_its_extra(tmp_path, monkeypatch):
    pytest.importorskip("pi_heif", reason="needs multibox[heic]")
    path = tmp_path / "a.heic"
    path.write_bytes(base64.b64decode(HEIC))
    assert image_size(path) == Size(48, 64)
    assert np.abs(read(path)[5, 5].astype(int) - (200, 40, 90)).max() <= 3
    assert find_images([tmp_path]).paths == [path]
    (tmp_path / "labels.csv").write_text("filename,label,xmin,ymin,xmax,ymax\na.heic,cat,1,2,30,40\n")
    dataset = open_dataset(tmp_path)
    assert dataset.image_names == ["a.heic"]
    assert load_image(dataset[0]).size == (64, 48)
    monkeypatch.setattr("multibox.data.images.reads_heif", lambda: False)
    with pytest.raises(ImageError, match=r"a\.heic is a HEIC image: pip install 'multibox\[heic\]'"):
        load_image(dataset[0])


def test_bytes_and_file_agree(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.fromarray(PIXELS))
    assert np.array_equal(read(path), np.asarray(decode_image(path.read_bytes(), "x")))
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue(), "x")), PIXELS)
