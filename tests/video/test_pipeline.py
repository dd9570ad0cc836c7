"""A video through a detector: rows, drawn video and counts, against squares that are known."""

import io
import json
import threading
from contextlib import closing

import numpy as np
import pytest

from multibox.errors import DataError, MultiboxError
from multibox.video.addresses import as_file
from multibox.video.pipeline import Plan, Progress, predict_video
from multibox.video.tables import open_tables

from .clips import BLUE, RED, Square, SquareFinder, frames_of, turn, write_clip


def predict(path, target=None, *, detectors=None, rows=None, **plan):
    """Return what `predict_video` yields, and the counts."""
    progress = Progress()
    stream = predict_video(
        as_file(path), Plan(detectors or [SquareFinder()], **plan), target, progress,
        add=rows.append if rows is not None else None,
    )  # fmt: skip
    return list(stream), progress


def test_every_frame_is_looked_at_in_order(tmp_path):
    rows = []
    looked, progress = predict(write_clip(tmp_path / "clip.mp4", 40), tmp_path / "out.mp4", rows=rows)
    assert [row["frame"] for row in rows] == [frame.number for frame, _, _ in looked] == list(range(40))
    for k, row in enumerate(rows):
        (found,) = row["detections"]
        assert found["box"] == pytest.approx([10 + 2 * k, 40, 34 + 2 * k, 64], abs=2)
        assert (found["label"], found["name"], "track" in found) == (0, "red", False)
        assert (row["width"], row["height"], row["file"]) == (160, 120, str(tmp_path / "clip.mp4"))
        assert row["time"] == pytest.approx(k / 30, abs=1e-4)
    assert (progress.frames, progress.looked, progress.objects, progress.bad) == (40, 40, 40, 0)


@pytest.mark.parametrize("copies", [1, 3])
def test_detections_are_those_of_frame_by_frame_prediction(tmp_path, copies):
    squares = lambda k: [Square(10 + 3 * k, 20), Square(120 - 2 * k, 70, colour=BLUE)]  # noqa: E731
    path = write_clip(tmp_path / "clip.mp4", 35, squares)
    looked, _ = predict(path, tmp_path / "o.mp4", detectors=[SquareFinder() for _ in range(copies)], track=True)
    plain = SquareFinder()
    assert [found for _, found, _ in looked] == [plain.predict(pixels) for _, pixels in frames_of(path)]


def test_the_drawn_video_has_size_times_and_boxes_of_the_source(tmp_path):
    times = [0, 33, 66, 400, 410, 1000, 1033, 1500]
    path = write_clip(tmp_path / "clip.mp4", len(times), times=times)
    looked, progress = predict(path, tmp_path / "out.mp4")
    drawn = frames_of(tmp_path / "out.mp4")
    assert [round(1000 * time) for time, _ in drawn] == times
    assert progress.notes == ()
    for (frame, found, _), (_, pixels) in zip(looked, drawn, strict=True):
        assert pixels.shape == (120, 160, 3)
        left, top, right, bottom = found.boxes[0].astype(int)
        inside = pixels[top + 4 : bottom - 4, left + 4 : right - 4].astype(int)
        assert np.abs(inside - RED).mean() < 20
        # Class 0 is blue in the palette; the frame is grey
        edge = pixels[bottom - 1, left + 4 : right - 4].astype(int)
        assert np.abs(edge - frame.pixels()[bottom - 1, left + 4 : right - 4].astype(int)).mean() > 30
        assert edge[:, 2].mean() > edge[:, 0].mean() + 40
        assert np.abs(pixels[100:, :20].astype(int) - 128).max() < 12


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_clip_is_drawn_upright(tmp_path, degrees):
    path = turn(write_clip(tmp_path / "phone.mp4", 8), degrees)
    looked, _ = predict(path, tmp_path / "out.mp4")
    upright = (160, 120) if degrees != 180 else (120, 160)
    for (frame, found, _), (_, pixels) in zip(looked, frames_of(tmp_path / "out.mp4"), strict=True):
        assert frame.pixels().shape[:2] == pixels.shape[:2] == upright
        left, _, right, bottom = found.boxes[0].astype(int)
        assert np.abs(pixels[bottom - 8 : bottom - 4, left + 4 : right - 4].astype(int) - RED).mean() < 25


def test_odd_sides_are_made_even_in_the_drawn_video_only(tmp_path):
    rows = []
    path = write_clip(tmp_path / "odd.mkv", 3, size=(161, 119), codec="ffv1")
    predict(path, tmp_path / "out.mp4", rows=rows)
    assert {(row["width"], row["height"]) for row in rows} == {(161, 119)}
    drawn = frames_of(tmp_path / "out.mp4")
    assert len(drawn) == 3 and drawn[0][1].shape == (120, 162, 3)
    assert np.abs(drawn[0][1][:, -1].astype(int) - 128).max() < 12  # repeated, not black


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuvj420p", "rgb24", "gray"])
def test_other_layouts_of_pixels(tmp_path, pixel_format):
    import av

    path = tmp_path / ("clip.mov" if pixel_format == "rgb24" else "clip.mkv")
    codec = {"yuvj420p": "mjpeg", "rgb24": "png", "gray": "ffv1"}.get(pixel_format, "libx265")
    with av.open(str(path), "w") as container:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 120, pixel_format
        for _ in range(3):
            pixels = np.full((120, 160, 3), (200, 100, 50), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    looked, _ = predict(path, tmp_path / "out.mp4")
    drawn = frames_of(tmp_path / "out.mp4")
    assert len(looked) == len(drawn) == 3
    assert np.abs(drawn[1][1].astype(int) - looked[1][0].pixels().astype(int)).mean() < 12


def test_sound_is_copied(tmp_path):
    import av

    path = write_clip(tmp_path / "clip.mp4", 60, sound=True)
    _, progress = predict(path, tmp_path / "out.mp4")
    with av.open(str(path)) as source, av.open(str(tmp_path / "out.mp4")) as drawn:
        given, copied = ([p for p in each.demux(audio=0) if p.dts is not None] for each in (source, drawn))
        given = given[1:]  # AAC's first packet lies before the beginning
        assert [bytes(packet) for packet in copied] == [bytes(packet) for packet in given]
        assert [float(p.pts * p.time_base) for p in copied] == pytest.approx(
            [float(p.pts * p.time_base) for p in given], abs=2e-3
        )
    assert len(frames_of(tmp_path / "out.mp4")) == 60 and progress.notes == ()


def test_sound_that_mp4_does_not_take_is_left_out_and_said(tmp_path):
    import av

    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=30), container.add_stream("pcm_s16le", rate=8000)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        for _ in range(3):
            picture = av.VideoFrame.from_ndarray(np.zeros((120, 160, 3), np.uint8), format="rgb24")
            container.mux([*video.encode(picture), *audio.encode(sound)])
        container.mux([*video.encode(), *audio.encode()])
    _, progress = predict(path, tmp_path / "out.mp4")
    assert progress.notes == ("its sound (pcm_s16le) is left out, as MP4 does not take it",)
    assert len(frames_of(tmp_path / "out.mp4")) == 3


def test_every_third_frame(tmp_path):
    rows, finder = [], SquareFinder()
    path = write_clip(tmp_path / "clip.mp4", 20)
    looked, progress = predict(path, tmp_path / "out.mp4", detectors=[finder], rows=rows, every=3, track=True)
    assert [row["frame"] for row in rows] == [0, 3, 6, 9, 12, 15, 18]
    assert (finder.looked, progress.looked, progress.frames) == (7, 7, 20)
    assert [row["detections"][0]["track"] for row in rows] == [None, 0, 0, 0, 0, 0, 0]
    drawn = frames_of(tmp_path / "out.mp4")
    assert len(drawn) == 20
    # Between two looks, the box of the last one stays
    left, _, _, bottom = looked[1][1].boxes[0].astype(int)
    for number in (3, 4, 5):
        edge = drawn[number][1][bottom - 1, left + 8 : left + 14].astype(int)
        assert edge[:, 2].mean() > edge[:, 0].mean() + 30


def test_two_squares_that_cross_keep_their_tracks(tmp_path):
    rows = []
    # 16 pixels apart in height, so that they touch and one component would be found; the score tells them apart
    squares = lambda k: [Square(10 + 2 * k, 30), Square(110 - 2 * k, 58)]  # noqa: E731
    predict(write_clip(tmp_path / "clip.mp4", 50, squares), rows=rows, track=True)
    by_track = {}
    for row in rows[1:]:
        for found in row["detections"]:
            by_track.setdefault(found["track"], []).append(found["box"][1])
    assert {track: round(np.mean(tops)) for track, tops in by_track.items()} in ({0: 30, 1: 58}, {0: 58, 1: 30})
    assert all(np.ptp(tops) < 6 and len(tops) == 49 for tops in by_track.values())


def test_what_was_done_is_kept_when_it_is_stopped(tmp_path):
    path, progress, before = write_clip(tmp_path / "clip.mp4", 200), Progress(), threading.enumerate()
    stream = predict_video(as_file(path), Plan([SquareFinder()]), tmp_path / "out.mp4", progress)
    for number, _ in enumerate(stream):
        if number == 50:
            stream.close()
    assert 48 <= len(frames_of(tmp_path / "out.mp4")) <= 51
    # Those of other tests may be ending still
    assert not set(threading.enumerate()) - set(before)
    assert progress.looked == 51


def test_a_defect_of_the_detector_is_raised_and_the_video_kept(tmp_path):
    class Broken(SquareFinder):
        def find(self, pixels):
            if self.looked == 30:
                raise RuntimeError("out of memory")
            return super().find(pixels)

    with pytest.raises(RuntimeError, match="out of memory"):
        predict(write_clip(tmp_path / "clip.mp4", 90), tmp_path / "out.mp4", detectors=[Broken()] * 2)
    assert len(frames_of(tmp_path / "out.mp4")) > 10


def test_damage_ends_the_video_where_asked(tmp_path):
    path = write_clip(tmp_path / "clip.ts", 60, options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    for packet in range(middle, middle + 188 * 6, 188):
        data[packet + 20 : packet + 180] = bytes(160)
    path.write_bytes(data)
    looked, progress = predict(path, tmp_path / "a.mp4")
    assert progress.bad and progress.complaint and 30 < len(looked) < 60
    with pytest.raises(DataError, match=r"clip\.ts: "):
        predict(path, tmp_path / "b.mp4", stop_on_bad=True)
    assert 5 < len(frames_of(tmp_path / "b.mp4")) < len(looked)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(MultiboxError, match=r"out\.mp4 cannot be written \(.*\); make room on the disk"):
        predict(write_clip(tmp_path / "clip.mp4", 90), tmp_path / "out.mp4")


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """A slow network holds the reader back: few frames are decoded ahead."""
    decoded, gate = [], threading.Event()

    class Slow(SquareFinder):
        def find(self, pixels):
            gate.wait(5)
            return super().find(pixels)

    from multibox.video import pipeline

    class Counting(pipeline.Reader):
        def __iter__(self):
            for item in super().__iter__():
                decoded.append(item)
                yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Reader", Counting)
        stream = predict_video(
            as_file(write_clip(tmp_path / "clip.mp4", 200)), Plan([Slow(), Slow()]), None, Progress()
        )
        threading.Timer(0.5, gate.set).start()
        next(stream)
        assert len(decoded) <= pipeline.AHEAD + 4
        assert len(list(stream)) == 199


@pytest.mark.slow
def test_fragments_are_on_the_disk_while_the_video_goes_on(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 150)
    target = tmp_path / "o.mp4"
    with closing(predict_video(as_file(path), Plan([SquareFinder()]), target, Progress())) as stream:
        for frame, *_ in stream:
            if frame.number == 140:
                # Two seconds and the frames under way may be missing; the clip is smaller than a buffer of FFmpeg's
                assert target.read_bytes().count(b"moof") >= 1
                break


def test_tables(tmp_path):
    entry = {
        "file": "a, b.mp4", "frame": 3, "time": 0.1, "width": 4, "height": 2,
        "detections": [{"label": 1, "name": 'say "hi"', "score": 0.5, "box": [0.0, 1.0, 2.0, 3.0], "track": None}],
    }  # fmt: skip
    target = io.BytesIO()
    with open_tables(tmp_path / "x.jsonl", tmp_path / "x.csv") as add, open_tables(target) as also:
        assert not list(tmp_path.iterdir())
        add(entry)
        also(entry)
        # Written at once, whatever becomes of this process
        assert json.loads((tmp_path / "x.jsonl").read_text()) == entry
        rows = (tmp_path / "x.csv").read_text().splitlines()
        assert rows == [
            "file,frame,time,track,label,name,score,x1,y1,x2,y2",
            '"a, b.mp4",3,0.1,,1,"say ""hi""",0.5,0.0,1.0,2.0,3.0',
        ]
    assert json.loads(target.getvalue()) == [entry]
    with open_tables(tmp_path / "x.json") as add:
        add(entry)
        add(entry)
        assert not (tmp_path / "x.json").exists()
    assert json.loads((tmp_path / "x.json").read_text()) == [entry, entry]
    with open_tables(tmp_path / "none.jsonl", tmp_path / "none.csv"):
        pass
    # Without a frame that was looked at, but no failure either
    assert (tmp_path / "none.jsonl").read_text() == "" and (tmp_path / "none.csv").read_text().count("\n") == 1
