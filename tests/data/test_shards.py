"""Order and reads of images that lie in large files."""

import io
import itertools
import json
import tarfile
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multibox.data import read_ahead
from multibox.data.convert import convert
from multibox.data.formats import open_dataset
from multibox.data.images import image_bytes
from multibox.data.read_ahead import AHEAD, ReadAhead
from multibox.data.sampling import PARTNERS, EpochBatches
from multibox.data.shards import BUFFER, Runs, find_runs, shard_order
from multibox.errors import ConfigError
from multibox.structures import Dataset, Sample, pack
from multibox.training.ranks import Ranks, own_slice

RUN = 1 << 12


def packed(places: list[tuple[str, int, int | None]]) -> Dataset:
    """Return a data set of images given as file, offset and length."""
    none = np.zeros(0, np.int64)
    samples = [
        Sample(str(i), Path(file), np.zeros((0, 4)), none, none > 0, none > 0, offset=offset, length=length)
        for i, (file, offset, length) in enumerate(places)
    ]
    return pack(samples, root=Path(), format="webdataset", split="train", class_names=["a"])


def even(files: int, images: int, size: int = 100) -> Runs:
    """Return runs of `files` files with `images` images of `size` bytes each, 10 to a run."""
    places = [(f"{file}.tar", size * image, size) for file in range(files) for image in range(images)]
    return find_runs(packed(places), 10 * size)


def test_images_of_one_stretch_of_a_file_are_a_run() -> None:
    dataset = packed([("b.tar", 512, 100), ("a.tar", 5000, 10), ("a.tar", 0, 4090), ("a.tar", 4095, 800)])
    runs = find_runs(dataset, RUN)
    assert list(runs.paths) == ["b.tar", "a.tar"] and runs.files.tolist() == [0, 1, 1]
    assert runs.images.tolist() == [0, 2, 3, 1] and runs.starts.tolist() == [0, 1, 3, 4]
    # The image that begins at byte 4095 belongs to the first run with all of its bytes
    assert runs.first.tolist() == [512, 0, 5000] and runs.end.tolist() == [612, 4895, 5010]
    assert runs.of_image.tolist() == [0, 2, 1, 1]


def test_a_record_ends_where_the_next_begins() -> None:
    runs = find_runs(packed([("a.rec", 0, None), ("a.rec", 300, None), ("a.rec", 9000, None), ("b.rec", 0, None)]), RUN)
    assert runs.first.tolist() == [0, 9000, 0] and runs.end[0] == 9000 and runs.end[1] > 9000


def test_files_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"but x\.jpg is a file of its own; leave the setting away"):
        find_runs(packed([("a.tar", 0, 10), ("x.jpg", None, None)]))  # type: ignore[list-item]


@given(
    files=st.integers(1, 5),
    images=st.integers(1, 60),
    batch=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_each_image_comes_at_most_once_and_moves_less_than_the_buffer(
    files: int, images: int, batch: int, seed: int, epoch: int
) -> None:
    runs, total = even(files, images), files * images
    batch = min(batch, total)
    order = shard_order(runs, batch, seed, epoch)
    steps = total // batch
    assert len(order) == steps * batch and len(set(order.tolist())) == len(order)
    assert set(order.tolist()) <= set(range(total))
    assert np.array_equal(order, shard_order(runs, batch, seed, epoch))


def test_lanes_follow_their_files_within_the_buffer() -> None:
    runs, batch = even(8, 1000), 4
    lanes = shard_order(runs, batch, 3, 7).reshape(-1, batch).T
    for lane in lanes:
        # Undone by hand: the runs in the order in which the lane visits them, each front to back
        seen: dict[int, list[int]] = {}
        for place, image in enumerate(lane.tolist()):
            seen.setdefault(int(runs.of_image[image]), []).append(place)
        first = [min(places) for places in seen.values()]
        spread = [max(places) - min(places) for places in seen.values()]
        assert first == sorted(first) and max(spread) < 10 + 2 * BUFFER and len(seen) <= 2000 // 10 + 2
        assert np.mean(spread) > BUFFER / 2  # a run is not read in a row: the buffer shuffles


def test_what_is_left_out_changes_even_with_one_run() -> None:
    runs = even(1, 9)
    left = {frozenset(range(9)) - frozenset(shard_order(runs, 4, 0, epoch).tolist()) for epoch in range(200)}
    assert frozenset.union(*left) == set(range(9)) and len({image for one in left for image in one}) == 9


def test_every_epoch_and_seed_has_its_order_and_a_resumed_run_goes_on_with_it() -> None:
    runs = even(3, 50)
    whole = list(EpochBatches(150, 8, 54, seed=4, runs=runs))
    assert list(EpochBatches(150, 8, 54, seed=4, start_step=31, runs=runs)) == whole[31:]
    backwards = EpochBatches(150, 8, 54, seed=4, runs=runs)
    assert [backwards.batch(step) for step in reversed(range(54))] == whole[::-1]
    assert [key.place for key in whole[0]] != [key.place for key in whole[18]]
    assert whole[0] != EpochBatches(150, 8, 54, seed=5, runs=runs).batch(0)


def test_partners_come_from_the_same_batch() -> None:
    order = EpochBatches(150, 16, 9, seed=4, runs=even(3, 50))
    for keys in order:
        places = [key.place for key in keys]
        for k, key in enumerate(keys):
            assert len(key.partners) == PARTNERS and key.partners[0] == places[(k + 1) % 16]
            assert set(key.partners) <= set(places) - {key.place}
    (only,) = EpochBatches(3, 1, 9, runs=even(1, 3)).batch(0)
    assert only.partners == (only.place,)
    assert not EpochBatches(150, 16, 9).batch(0)[0].partners


def test_processes_that_share_batches_read_files_of_their_own() -> None:
    runs, batch, count = even(10, 500), 12, 3
    order = shard_order(runs, batch, 2, 0).reshape(-1, batch)
    wanted = [runs.of_image[order[:, own_slice(Ranks(rank, count), batch)]] for rank in range(count)]
    own = [set(part.ravel().tolist()) for part in wanted]
    # At most the runs at the ends of the lanes belong to two, of 500 in all
    assert sum(map(len, own)) <= 500 + count * 2 and set.union(*own) == set(range(500))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 40 images each."""
    folder = tmp_path_factory.mktemp("tars")
    rng = np.random.default_rng(0)
    for shard in range(3):
        with tarfile.open(folder / f"train-{shard:06}.tar", "w") as tar:
            for image in range(40):
                pixels = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(pixels, "PNG")
                label = json.dumps({"objects": {"bbox": [[1, 1, 8, 8]], "category": ["cat"]}}).encode()
                for kind, data in (("png", pixels.getvalue()), ("json", label)):
                    info = tarfile.TarInfo(f"{shard}-{image:03}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


class Recorded(ReadAhead):
    """Notes which runs were read."""

    runs_read: list[int]

    def _read(self, run: int) -> None:
        super()._read(run)
        self.runs_read = [*getattr(self, "runs_read", []), run]


@pytest.mark.parametrize("kind", ["webdataset", "recordio"])
def test_images_are_read_in_long_reads_before_they_are_asked_for(tars: Path, tmp_path: Path, kind: str) -> None:
    folder = tars
    if kind == "recordio":
        folder = tmp_path / "rec"
        convert(tars, folder, "recordio")
    dataset = open_dataset(folder, "train")
    runs = find_runs(dataset, 20_000)
    order = EpochBatches(120, 8, 60, seed=1, runs=runs)
    ahead = Recorded(runs, order.batch)
    for step in range(order.steps_per_epoch):
        ahead.reach(step)
        for key in order.batch(step):
            sample, run = dataset[key.place], int(runs.of_image[key.place])
            assert run in ahead.runs_read and sample.offset is not None and runs.first[run] <= sample.offset
            assert sample.offset + len(image_bytes(sample)) <= runs.end[run]
    ahead.close()
    # Each run in one go and once, though the epoch asks for each of its images
    assert sorted(ahead.runs_read) == list(range(len(runs.files))) and len(runs.files) < 20


def test_kept_images_and_missing_files_are_not_read(tars: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tars, "train")
    runs = find_runs(dataset, 20_000)
    order = EpochBatches(120, 8, 60, seed=1, runs=runs)
    kept = Recorded(runs, order.batch, present=lambda image: True)
    kept.reach(0)
    kept.close()
    assert not hasattr(kept, "runs_read")
    gone = Recorded(runs._replace(paths=runs.paths.of([str(tmp_path / "gone.tar")] * 3)), order.batch)
    gone.reach(0)  # whoever decodes an image says that its file is missing
    gone.close()


def test_reading_stays_ahead_and_goes_over_into_the_next_epoch() -> None:
    steps: list[int] = []
    ahead = ReadAhead(even(2, 5), lambda step: steps.append(step) or [])
    for step in (5, 6, 9, 100):
        ahead.reach(step)
    ahead.close()
    # From step 5, where a resumed run begins; steps that were left out are not read
    assert steps == [*range(5, 9 + AHEAD + 1), *range(100, 100 + AHEAD + 1)]


def test_reads_are_long_and_cover_a_run(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Counted(FileIO):
        def readinto(self, buffer: Any, /) -> int | None:
            asked.append((self.tell(), len(buffer)))
            return super().readinto(buffer)

    monkeypatch.setattr(read_ahead, "FileIO", Counted)
    monkeypatch.setattr(read_ahead, "_BLOCK", 6000)
    runs = find_runs(open_dataset(tars, "train"), 20_000)
    ahead = ReadAhead(runs, lambda step: [])
    ahead._read(1)
    ahead.close()
    first, end = int(runs.first[1]), int(runs.end[1])
    assert asked[0] == (first, 6000) and asked[-1][0] + asked[-1][1] == end
    assert all(a + length == b for (a, length), (b, _) in itertools.pairwise(asked))
