"""Blocks done by Ray Data: it schedules them on actors, repeats those of dead ones and keeps the pace.

A cluster started here listens on the loopback interface only, asks for a token, leaves no files behind and reports to
nobody. What a cluster that is given reports is decided where it is started (docs/cluster.md).
"""

import json
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from multibox.cluster.block_worker import BlockWorker, ModelFiles, Task
from multibox.cluster.plan import Block, Part
from multibox.errors import ConfigError, DataError, MissingExtraError, MultiboxError
from multibox.limits import available_cores
from multibox.privacy import without_ray_dashboard

LOCAL = "local"
"""The address that starts a cluster on this machine."""
MOST_TASKS = 20_000
"""Tasks of one job; beyond, one task has several blocks."""
_ANSWER = 5.0
"""Seconds in which a cluster's head has to take a connection."""
_OWN = {
    # Off, every process listens on 127.0.0.1; Ray meant it for systems whose firewalls ask about the other ports
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""Environment of a cluster started here."""
_STORE = 200_000_000
"""Bytes of the object store of a cluster started here, beside the model: it holds lists of names, no images."""


class Pool(NamedTuple):
    """What the actors of a job take."""

    actors: int
    """Actors that the cluster has room for now."""
    cores: int
    """Per actor."""
    device: str
    """"cpu" or "cuda"."""


class ShippedModel:
    """A model's files in Ray's object store; calling it fetches them, once per node."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def __call__(self) -> ModelFiles:
        """Return names and bytes."""
        return import_module("ray").get(self._reference)


def choose_address(given: str) -> str:
    """Return the address to use: as given, else RAY_ADDRESS, else "local".

    Raises:
        MissingExtraError: Ray or pyarrow is not installed.
        ConfigError: the address has another form, or nothing answers there.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise MissingExtraError("--ray", "ray")
    address = given or os.environ.get("RAY_ADDRESS") or LOCAL
    _check_address(address)
    return address


@contextmanager
def cluster(address: str) -> Generator[Any, None, None]:
    """Yield Ray, connected to a cluster; one that is started here ends with the block.

    Args:
        address: HOST:PORT of the cluster's head; "auto" for the cluster that runs on this machine; "local" to start
            one here.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster refuses, or has another version of Ray or Python.
    """
    folder = _own_folder() if address == LOCAL else None
    if folder is not None:
        os.environ.update({**_OWN, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        # It announces its log level on stderr
        with _quiet():
            ray = _import_ray()
            own = {} if folder is None else {"num_cpus": available_cores(), "object_store_memory": _STORE}
            own |= {} if folder is None else {"include_dashboard": False, "_temp_dir": str(folder)}
            if folder is not None:
                without_ray_dashboard()
            _start(ray, address, own)
        _calm()
        yield ray
    finally:
        if "ray" in sys.modules:
            import_module("ray").shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def choose_pool(ray: Any, device: str) -> Pool:
    """Return the actors for a device: "cpu", "cuda", or "auto": GPUs if the cluster has some that can be used.

    Raises:
        ConfigError: the cluster has no such device.
    """
    if device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: expected cpu, cuda or auto with --ray")
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if device.partition(":")[0] == "cuda" and not gpus:
        raise ConfigError(
            f"--device {device}: the cluster has no GPU; give cpu or auto, or start nodes with --num-gpus"
        )
    if device == "auto" and gpus and not ray.get(ray.remote(num_gpus=1, num_cpus=0)(uses_gpu).remote()):
        gpus = 0
    if device == "cpu" or not gpus:
        if not cpus:
            raise ConfigError("the cluster has no CPU for work; start nodes with --num-cpus of 1 or more")
        return Pool(cpus, 1, "cpu")
    return Pool(gpus, max(1, cpus // gpus), "cuda")


def uses_gpu() -> bool:
    """Return whether onnxruntime can use the GPU of the node on which this runs."""
    from multibox.privacy import import_onnxruntime

    onnxruntime = import_onnxruntime()
    return onnxruntime.get_device() == "GPU" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def do_blocks(
    ray: Any, blocks: Sequence[tuple[int, Block]], files: ModelFiles, task: Task, pool: Pool
) -> Iterator[Part]:
    """Yield what is known of every block's part, as they get done.

    Raises:
        MultiboxError: what a worker says about a model or an image.
        OSError: a part cannot be written.
    """
    if not blocks:
        return
    data = import_module("ray.data")
    model = ShippedModel(ray.put(dict(files)))
    items = [{"number": number, "block": block.encode()} for number, block in blocks]
    work = data.from_items(items, override_num_blocks=min(len(items), MOST_TASKS)).map_batches(
        BlockWorker,
        fn_constructor_args=(task, model),
        batch_size=1,
        batch_format="numpy",
        num_cpus=pool.cores,
        num_gpus=1 if pool.device == "cuda" else None,
        # More where nodes join; of a node that dies, its actors wait for room and the others go on
        compute=data.ActorPoolStrategy(min_size=1, initial_size=min(pool.actors, len(blocks)), max_size=None),
    )
    try:
        for row in work.iter_rows():
            yield Part(*json.loads(row["part"]))
    except Exception as error:
        raise _as_ours(error) from None


def _check_address(address: str) -> None:
    """Refuse an address at which nothing answers; Ray itself would try for a minute.

    Raises:
        ConfigError: it has another form, or nothing answers.
    """
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "//" in address:
        raise ConfigError(
            f"--ray {address}: expected HOST:PORT of the cluster's head, auto or local; from a machine outside of the "
            "cluster, hand in the command there: ray job submit -- multibox predict ... --ray auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray {address}: nothing answers there ({error}); `ray start --head` prints the address, usually "
            "HOST:6379, and `ray status` says whether the cluster runs"
        ) from None


def _import_ray() -> Any:
    try:
        ray = import_module("ray")
        import_module("ray.data")
        import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("--ray", "ray") from None
    return ray


def _start(ray: Any, address: str, own: dict[str, Any]) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    except Exception as error:
        text = str(error)
        if "ersion mismatch" in text:
            found = dict(re.findall(r"(Ray|Python): (\S+)", text.partition("This process")[0]))
            own_ray, own_python = ray.__version__, ".".join(map(str, sys.version_info[:3]))
            raise ConfigError(
                f"--ray {address}: the cluster has Ray {found.get('Ray')} and Python {found.get('Python')}, this "
                f"process Ray {own_ray} and Python {own_python}; use the cluster's versions here"
            ) from None
        reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"--ray {address}: Ray cannot be used there ({reason}); this machine has to be a node of the cluster"
        ) from None


def _own_folder() -> Path:
    # Sockets lie in it, whose paths have 107 letters at most; a user's own folder for scratch files may be long
    short = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="multibox-ray-", dir=short if short.is_dir() else None))


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Send what the process and those it starts write to stderr to nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _calm() -> None:
    """Keep Ray Data's own progress and notices off the console; they stay in its log files."""
    context = import_module("ray.data").DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Where nodes and workers died; what they were at is done again
    worker: Any = import_module("ray._private.worker")
    worker._worker_logs_enabled = False
    for handler in logging.getLogger("ray.data").handlers:
        if handler.__class__.__name__ == "PlainRayHandler":
            handler.setLevel(logging.CRITICAL)


def _as_ours(error: BaseException) -> BaseException:
    """Return the error of ours that Ray wraps, and Ray's where there is none."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.append(each)
        inner = [getattr(each, "cause", None), each.__cause__, each.__context__]
        waiting += [other for other in inner if isinstance(other, BaseException)]
    # Ray also makes classes that are both its own and ours: the message of those is a traceback
    for each in seen:
        if isinstance(each, MultiboxError) and not hasattr(each, "cause"):
            return each
    for each in seen:
        if isinstance(each, OSError) and not hasattr(each, "cause") and each.errno is not None:
            return each
    found = re.findall(r"^(?:multibox\.errors\.\w+): (.+)$", str(error), re.MULTILINE)
    if found:
        return DataError(found[-1])
    if "No module named 'multibox" in str(error):
        return ConfigError("a node of the cluster lacks multibox: pip install 'multibox[ray]' there, in this version")
    return error
