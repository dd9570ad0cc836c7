"""Whether the end of a file is missing: whole files of every container pass, cut ones are told."""

import struct

import pytest

from multibox.video.addresses import as_file
from multibox.video.reading import Frame, Reader
from multibox.video.wholeness import missing_end

from .clips import write_clip

av = pytest.importorskip("av", reason="needs the extra video")


def broken_off(path):
    reader = Reader(as_file(path))
    frames = sum(isinstance(item, Frame) for item in reader)
    reader.close()
    return frames, reader.bad, reader.broken_off


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c.mp4", "c.mov", "c.mkv", "c.webm", "c.avi", "c.ts", "c.flv", "c.mpg"])
def test_a_cut_shows_and_a_whole_file_passes(tmp_path, name):
    codec = {"c.webm": "libvpx", "c.avi": "mpeg4", "c.mpg": "mpeg2video"}.get(name, "libx264")
    path = write_clip(tmp_path / name, 60, codec=codec)
    assert broken_off(path) == (60, 0, "")
    data = path.read_bytes()
    if name in ("c.mkv", "c.webm", "c.avi"):
        path.write_bytes(data[: len(data) * 3 // 4])
        frames, _, why = broken_off(path)
        assert 10 < frames < 60 and "bytes are missing: was it cut off?" in why


def fragmented(path, comment=""):
    whole = write_clip(path.with_name("whole.mp4"), 60, options={"g": "10"})
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=flags) as out:
        if comment:
            out.metadata["comment"] = comment
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return path


def boxes(data):
    """Return kind and end of each box."""
    found, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        found.append((data[place + 4 : place + 8], place + length))
        place += length
    return found


def test_fragments(tmp_path):
    path = fragmented(tmp_path / "f.mp4")
    data = path.read_bytes()
    kinds = [kind for kind, _ in boxes(data)]
    assert kinds.count(b"moof") == 6 and kinds[-1] == b"mfra" and broken_off(path) == (60, 0, "")
    ends = {index: end for index, (_, end) in enumerate(boxes(data))}
    third = [index for index, kind in enumerate(kinds) if kind == b"moof"][2]
    for length, words in ((ends[third] + 100, "bytes are missing"), (ends[third], "its end is missing")):
        path.write_bytes(data[:length])
        frames, _, why = broken_off(path)
        assert 10 <= frames < 60 and words in why
    # Between two fragments: other programs write such files, ours have an index at their end
    path.write_bytes(data[: ends[third + 1]])
    assert broken_off(path) == (30, 0, "")
    assert "its end is missing" in missing_end(path, "multibox")
    path = fragmented(tmp_path / "own.mp4", "multibox")
    assert broken_off(path) == (60, 0, "")
    data = path.read_bytes()
    path.write_bytes(data[: boxes(data)[-2][1]])
    assert broken_off(path)[0] == 60 and "its end is missing" in broken_off(path)[2]


def test_what_follows_the_last_box_may_be_anything(tmp_path):
    path = write_clip(tmp_path / "c.mp4", 5)
    for more in (b"\0" * 100, b"SEFT junk of a phone, whatever it is", b"abc", struct.pack(">I4s", 500, b"free")):
        path.write_bytes(write_clip(tmp_path / "d.mp4", 5).read_bytes() + more)
        assert missing_end(path) == ""


def test_a_segment_without_a_length_says_nothing(tmp_path):
    ebml = b"\x1aE\xdf\xa3\x84abcd"
    segment = b"\x18S\x80g"
    for length, missing in ((b"\x01" + b"\xff" * 7, False), (b"\xff", False), (b"\x84", True), (b"\x81", False)):
        (tmp_path / "x.mkv").write_bytes(ebml + segment + length + b"xy")
        assert bool(missing_end(tmp_path / "x.mkv")) == missing
    (tmp_path / "x.mkv").write_bytes(ebml[:4])
    assert missing_end(tmp_path / "x.mkv") == "" == missing_end(tmp_path / "gone.mkv")
