"""Images and results in S3, against moto's imitation of it."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.request

import pyarrow.parquet as pq
import pytest
from PIL import Image

from multibox.cluster.image_sources import find_blocks
from multibox.cluster.places import join, names_in, open_binary, write_whole
from multibox.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("moto", "flask_cors"))),
        reason="needs moto's server: pip install 'moto[s3]' flask-cors",
    ),
]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Yield a function that gives the address of a key in a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    request = urllib.request.Request(f"http://127.0.0.1:{port}/photos", method="PUT")
                    urllib.request.urlopen(request, timeout=10).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield lambda key: f"s3://photos/{key}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        finally:
            server.terminate()
            server.wait(30)


def test_images_and_results_in_s3(bucket, tmp_path, run_job):
    names = [f"in/{index}.png" for index in range(5)]
    for index, name in enumerate(names):
        Image.new("RGB", (40 + index, 30), (index, 9, 9)).save(tmp_path / "a.png")
        write_whole(bucket(name), (tmp_path / "a.png").read_bytes())
    write_whole(bucket("in/list.txt"), "".join(f"{name[3:]}\n" for name in names[:2]).encode())
    assert [block.images for block in find_blocks([bucket("in")])[0]] == [5]
    out = bucket("out/found.parquet")
    run_job([bucket("in")], out, size=2, only=[0, 2])
    assert names_in(out) == {"_plan.json", "part-00000.parquet", "part-00002.parquet"}
    parts, _ = run_job([bucket("in")], out, size=2)
    assert sum(part.images for part in parts) == 5
    rows = []
    for name in sorted(names_in(out) - {"_plan.json"}):
        with open_binary(join(out, name)) as file:
            rows += pq.read_table(file).to_pylist()
    assert [(row["file"], row["width"]) for row in rows] == [
        (f"s3://photos/{name}", 40 + index) for index, name in enumerate(names)
    ]
    with pytest.raises(ConfigError, match=r"other images \(5 then, 2 now\)"):
        run_job([bucket("in/list.txt")], out)
    with pytest.raises(DataError, match="cannot be reached"):
        write_whole(bucket("x").replace("photos", "elsewhere"), b"")


def test_credentials_in_an_address_are_refused():
    with pytest.raises(DataError, match=r"s3://\.\.\.@photos holds credentials"):
        find_blocks(["s3://key:secret@photos/in"])
