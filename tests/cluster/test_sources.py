"""Which images the sources of a cluster job mean, how they are divided, and that workers read those very images."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from multibox.cluster.block_images import images_of
from multibox.cluster.image_sources import find_blocks
from multibox.cluster.plan import Block
from multibox.data.image_listing import find_images
from multibox.errors import DataError, ImageError
from multibox.inference.streaming import Encoded


def jpeg(shade: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 0, 0)).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(7):
        (folder / f"{index}.jpg").write_bytes(jpeg(index))
    (folder / "notes.md").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(jpeg(99))
    return folder


def read(blocks, base="/"):
    """Return name and bytes of every image, as workers see them."""
    seen = []
    for block in blocks:
        for name, source in images_of(Block.decode(block.encode()), str(base)):
            seen.append((name, source.data() if isinstance(source, Encoded) else source.read_bytes()))
    return seen


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_folder_means_what_it_means_to_predict(photos):
    blocks, notes = find_blocks([str(photos)], size=3)
    assert [name for block in blocks for name in block.files] == [str(path) for path in find_images([photos]).paths]
    assert [block.images for block in blocks] == [3, 3, 1]
    assert notes == ["1 other file was passed over: 1 .md"]
    assert read(blocks) == [(str(photos / f"{index}.jpg"), jpeg(index)) for index in range(7)]


def test_relative_names_stay_and_are_read_from_the_folder_of_the_command(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    blocks, _ = find_blocks(["photos/*.jpg"])
    monkeypatch.chdir("/")
    assert read(blocks, photos.parent)[2] == ("photos/2.jpg", jpeg(2))


def test_no_file_is_taken_twice(photos):
    blocks, _ = find_blocks([str(photos), str(photos / "3.jpg"), str(photos / "*.jpg")])
    assert len(read(blocks)) == 7


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_list_names_images_from_its_own_folder_on(photos, suffix):
    names = ["photos/4.jpg", str(photos / "1.jpg"), "photos/4.jpg"]
    lines = {
        ".txt": names,
        ".csv": ["label,path", *(f"cat,{name}" for name in names)],
        ".jsonl": [json.dumps({"file": name}) for name in names],
    }
    file = photos.parent / f"list{suffix}"
    file.write_text("\n".join(lines[suffix]) + "\n")
    blocks, _ = find_blocks([str(file)])
    assert read(blocks) == [(str(photos / "4.jpg"), jpeg(4)), (str(photos / "1.jpg"), jpeg(1))]


def test_a_list_that_leads_nowhere_is_refused(photos):
    file = photos / "list.txt"
    file.write_text("photos/4.jpg\n")
    with pytest.raises(DataError, match="relative paths start at the list's folder"):
        find_blocks([str(file)])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n", "the first line names no column"),
        ("a.jsonl", '{"path": "a.jpg"}\n[]\n', "line 2: expected an object"),
        ("a.txt", "\n", "names no image"),
        ("a.tar", "no tar", "cannot be read as a tar"),
        ("a.parquet", "no table", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        find_blocks([str(tmp_path / name)])


def test_sources_that_do_not_exist(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        find_blocks([str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="nothing is downloaded"):
        find_blocks(["https://example.com/a.jpg"])


def test_a_tar_is_divided_and_read_from_the_middle(tmp_path):
    # A name of more than 100 letters has a header of its own before its header
    long = "folder/" + "n" * 150
    members = [(f"{long}{index}.jpg", jpeg(index)) for index in range(5)]
    extra = [("0.json", b"{}"), ("0.cls", b"3"), ("folder/.hidden.jpg", jpeg(50))]
    file = tmp_path / "shard.tar"
    write_tar(file, [members[0], *extra, *members[1:]])
    blocks, _ = find_blocks([str(file)], size=2)
    assert [block.images for block in blocks] == [2, 2, 1]
    assert read(blocks) == [(f"{file}/{name}", data) for name, data in members]
    write_tar(file, members[:3])
    with pytest.raises(DataError, match="it has changed"):
        read(blocks)


def test_parquet_with_bytes_is_read_across_row_groups(tmp_path):
    table = pa.table({"bytes": [jpeg(index) for index in range(10)], "label": list(range(10))})
    file = tmp_path / "data.parquet"
    pq.write_table(table, file, row_group_size=3)
    blocks, _ = find_blocks([str(file)], size=4)
    assert [(block.first, block.images) for block in blocks] == [(0, 4), (4, 4), (8, 2)]
    assert read(blocks) == [(f"{file}#{index}", jpeg(index)) for index in range(10)]
    pq.write_table(table.slice(0, 5), file)
    with pytest.raises(DataError, match="has 5 rows, expected 8 or more"):
        read(blocks)


def test_parquet_with_paths_or_both(photos, tmp_path):
    pq.write_table(pa.table({"path": ["photos/2.jpg", str(photos / "5.jpg")]}), tmp_path / "paths.parquet")
    blocks, _ = find_blocks([str(tmp_path / "paths.parquet")])
    assert read(blocks) == [(str(photos / "2.jpg"), jpeg(2)), (str(photos / "5.jpg"), jpeg(5))]
    both = pa.table({"image": [{"bytes": jpeg(7), "path": "seven.jpg"}, {"bytes": jpeg(8), "path": None}]})
    pq.write_table(both, tmp_path / "both.parquet")
    blocks, _ = find_blocks([str(tmp_path / "both.parquet")])
    assert read(blocks) == [("seven.jpg", jpeg(7)), (f"{tmp_path / 'both.parquet'}#1", jpeg(8))]
    pq.write_table(pa.table({"x": [1]}), tmp_path / "neither.parquet")
    with pytest.raises(DataError, match="expected one with images"):
        find_blocks([str(tmp_path / "neither.parquet")])


def test_a_folder_of_shards(tmp_path):
    for index in range(2):
        write_tar(tmp_path / f"{index}.tar", [("a.jpg", jpeg(index))])
    blocks, _ = find_blocks([str(tmp_path)])
    assert read(blocks) == [(f"{tmp_path}/{index}.tar/a.jpg", jpeg(index)) for index in range(2)]


@pytest.mark.parametrize("store", ["local", "memory"])
def test_a_store_is_read_as_a_disk_is(photos, tmp_path, store):
    """Through fsspec, as s3 is through pyarrow: names with blanks and percent signs, folders, patterns, lists, tars."""
    import fsspec

    base = f"local://{tmp_path}" if store == "local" else "memory://bucket"
    fs, _ = fsspec.url_to_fs(base)
    odd = "odd 100%25 name.jpg"
    contents = {f"photos/{index}.jpg": jpeg(index) for index in range(7)} | {f"deep/er/{odd}": jpeg(70)}
    contents["list.txt"] = f"photos/3.jpg\ndeep/er/{odd}\n".encode()
    write_tar(tmp_path / "shard.tar", [(f"{index}.jpg", jpeg(index)) for index in range(3)])
    contents["shard.tar"] = (tmp_path / "shard.tar").read_bytes()
    pq.write_table(pa.table({"path": ["photos/6.jpg"]}), tmp_path / "table.parquet")
    contents["table.parquet"] = (tmp_path / "table.parquet").read_bytes()
    for name, data in contents.items():
        fs.makedirs(f"{base}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe(f"{base}/{name}", data)

    def names(source):
        return [(name.removeprefix(base), data) for name, data in read(find_blocks([source])[0])]

    photos = [(f"/photos/{index}.jpg", jpeg(index)) for index in range(7)]
    assert names(f"{base}/photos") == names(f"{base}/photos/") == names(f"{base}/photos/*.jpg") == photos
    assert names(f"{base}/**/[0-9]*.jpg") == photos
    assert names(f"{base}/deep/**/*.jpg") == [(f"/deep/er/{odd}", jpeg(70))]
    assert names(f"{base}/list.txt") == [photos[3], (f"/deep/er/{odd}", jpeg(70))]
    assert names(f"{base}/shard.tar") == [(f"/shard.tar/{index}.jpg", jpeg(index)) for index in range(3)]
    assert names(f"{base}/table.parquet") == [photos[6]]
    with pytest.raises(ImageError, match="or does not exist"):
        find_blocks([f"{base}/nothing"])
