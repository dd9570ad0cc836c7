"""Frames of a video: upright, in order, with the times of the source; damage is counted, never hidden."""

import re

import numpy as np
import pytest

from multibox.errors import ConfigError, DataError
from multibox.video.addresses import as_file, as_stream, find_sources, without_password
from multibox.video.reading import Frame, Reader, expected_frames

from .clips import BLUE, RED, Square, frames_of, turn, write_clip


def read(path):
    reader = Reader(as_file(path))
    return reader, [item for item in reader if isinstance(item, Frame)]


def test_frames_are_those_of_pyav_in_order_with_their_times(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 30, options={"bf": "2"})
    reader, frames = read(path)
    plain = frames_of(path)
    assert reader.total == expected_frames(as_file(path)) == len(frames) == len(plain) == 30
    assert [frame.number for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == pytest.approx([k / 30 for k in range(30)], abs=1e-4)
    assert all(np.array_equal(frame.pixels(), pixels) for frame, (_, pixels) in zip(frames, plain, strict=True))
    assert (reader.bad, reader.broken_off) == (0, "")


@pytest.mark.parametrize("name", ["clip.mov", "clip.mkv", "clip.webm", "clip.avi", "clip.ts", "no-ending"])
def test_containers(tmp_path, name):
    codec = {"clip.webm": "libvpx", "clip.avi": "mpeg4"}.get(name, "libx264")
    path = write_clip(tmp_path / name.replace("no-ending", "x.mp4"), 12, codec=codec)
    if name == "no-ending":
        path = path.rename(tmp_path / name)
    (video,) = find_sources([str(path)]).videos
    assert (video.shown, video.stem) == (str(path), path.stem)
    reader = Reader(video)
    frames = [item for item in reader if isinstance(item, Frame)]
    assert len(frames) == 12 and frames[0].size == (160, 120)
    assert np.diff([frame.time for frame in frames]) == pytest.approx(1 / 30, abs=0.002)


@pytest.mark.parametrize(
    ("degrees", "corner", "size"),
    [(90, (120 - 24, 0), (120, 160)), (180, (160 - 24, 120 - 24), (160, 120)), (270, (0, 160 - 24), (120, 160))],
)
def test_a_turned_clip_is_upright(tmp_path, degrees, corner, size):
    # The square lies in the upper left corner of the stored frame
    path = turn(write_clip(tmp_path / "phone.mp4", 3, lambda _: [Square(0, 0)]), degrees)
    _, frames = read(path)
    left, top = corner
    for frame in frames:
        pixels = frame.pixels().astype(int)
        assert frame.size == size and pixels.shape == (size[1], size[0], 3) and frame.pixels().flags.c_contiguous
        assert np.abs(pixels[top + 4 : top + 20, left + 4 : left + 20] - RED).max() < 40
        assert (np.abs(pixels - RED).max(-1) < 60).sum() == pytest.approx(24 * 24, rel=0.1)


def test_times_of_a_variable_rate_are_carried(tmp_path):
    times = [0, 33, 66, 400, 410, 1000, 1033]
    _, frames = read(write_clip(tmp_path / "phone.mp4", len(times), times=times))
    assert [round(frame.time * 1000) for frame in frames] == times


def test_times_begin_with_the_file(tmp_path):
    # A transport stream begins at 1.4 s
    _, frames = read(write_clip(tmp_path / "late.ts", 5))
    assert frames[0].time == pytest.approx(0, abs=0.05)


def test_an_odd_size(tmp_path):
    _, frames = read(write_clip(tmp_path / "odd.mkv", 2, size=(161, 119), codec="ffv1"))
    assert frames[0].size == (161, 119) and frames[0].pixels().shape == (119, 161, 3)


def test_a_file_that_was_cut_off_says_so(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", 60, options={"g": "10"})
    # With the index first, as files for the web have it
    import av

    with av.open(str(whole)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) * 2 // 3])
    reader, frames = read(tmp_path / "b.mp4")
    assert 20 < len(frames) < 60
    assert reader.bad or "of 60 frames: was it cut off?" in reader.broken_off


def test_damaged_packets_are_counted_and_left_out(tmp_path):
    path = write_clip(tmp_path / "clip.mov", 40, codec="png", pixel_format="rgb24")
    data = path.read_bytes()
    places = [match.start() for match in re.finditer(b"\x89PNG", data)]
    assert len(places) == 40
    for at in places[10:13]:
        data = data[:at] + bytes(32) + data[at + 32 :]
    path.write_bytes(data)
    reader, frames = read(path)
    assert (len(frames), reader.bad) == (37, 3)
    assert "Invalid data" in reader.first_bad
    # Frames that no program can decode have no number, but those after them keep their times
    assert [frame.number for frame in frames] == list(range(37))
    assert frames[10].time == pytest.approx(13 / 30, abs=1e-3)


def test_damage_in_a_compressed_stream_is_never_hidden(tmp_path):
    path = write_clip(tmp_path / "clip.ts", 60, options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    for packet in range(middle, middle + 188 * 6, 188):
        data[packet + 20 : packet + 180] = bytes(160)
    path.write_bytes(data)
    reader, frames = read(path)
    assert reader.bad and len(frames) < 60
    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "voice.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux([*audio.encode(frame), *audio.encode()])
    with pytest.raises(DataError, match=r"voice\.mp4 holds no video, only audio"):
        Reader(as_file(path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.mp4", b"", "empty.mp4 is empty"),
        ("junk.mp4", b"junk" * 1000, "is no video that can be read"),
        ("gone.mp4", None, r"gone\.mp4 cannot be opened \(No such file"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        Reader(as_file(tmp_path / name))
    assert expected_frames(as_file(tmp_path / name)) is None


def test_a_name_with_blanks_and_colons(tmp_path):
    path = write_clip(tmp_path / "my clip: part 1.mp4", 3)
    assert len(read(path)[1]) == 3


def test_a_camera_that_is_not_there():
    with pytest.raises(DataError, match="camera:9 is not there: this machine has no /dev/video9"):
        Reader(as_stream("camera:9"))


def test_cameras_by_system(monkeypatch):
    for system, device, expected in (
        ("linux", "0", ("v4l2", "/dev/video0")),
        ("linux", "/dev/v4l/by-id/x", ("v4l2", "/dev/v4l/by-id/x")),
        ("darwin", "1", ("avfoundation", "1")),
        ("win32", "Logitech BRIO", ("dshow", "video=Logitech BRIO")),
    ):
        monkeypatch.setattr("sys.platform", system)
        video = as_stream(f"camera:{device}")
        assert (video.format, video.target) == expected and video.live
    monkeypatch.setattr("sys.platform", "plan9")
    with pytest.raises(ConfigError, match="cameras are read on Linux, macOS and Windows, and this is plan9"):
        as_stream("camera:0")


def test_addresses():
    video = as_stream("rtsp://anna:se@cret@cam.example:554/live/one?x=1")
    assert video.shown == "rtsp://cam.example:554/live/one?x=1"
    assert (video.stem, video.live, video.is_file) == ("one", True, False)
    assert as_stream("https://example.org/a/clip.mp4").stem == "clip"
    assert as_stream("http://example.org").stem == "example.org"
    assert not as_stream("https://example.org/clip.mp4").live
    assert as_stream("https://example.org/dog.jpg") is None
    assert as_stream("clip.mp4") is None and as_stream("C:/clip.mp4") is None
    assert without_password("https://example.org/a@b") == "https://example.org/a@b"


def test_a_folder_gives_images_and_videos(tmp_path):
    write_clip(tmp_path / "b.mp4", 2)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / "code.ts").write_text("const a = 1\n" * 40)
    found = find_sources([str(tmp_path), "camera:0"])
    assert [path.name for path in found.images] == ["a.jpg"]
    assert [video.stem for video in found.videos] == ["b", "camera-0"]
    assert found.notes == ["2 other files were passed over: 1 .ts, 1 .txt"]


def test_the_iteration_ends_when_told(tmp_path):
    reader = Reader(as_file(write_clip(tmp_path / "clip.mp4", 30)))
    seen = []
    for frame in reader:
        seen.append(frame)
        if len(seen) == 3:
            reader.stop.set()
    assert len(seen) < 10 and reader.broken_off == ""
    reader.close()


def test_colours_survive(tmp_path):
    _, frames = read(write_clip(tmp_path / "c.mp4", 1, lambda _: [Square(0, 0), Square(60, 60, colour=BLUE)]))
    pixels = frames[0].pixels().astype(int)
    assert np.abs(pixels[12, 12] - RED).max() < 16 and np.abs(pixels[72, 72] - BLUE).max() < 16
