import json

import pytest

from multibox.builtin import find_model, runnable
from multibox.cluster.block_worker import BlockWorker, Task, model_files, model_hash
from multibox.cluster.image_sources import find_blocks
from multibox.cluster.plan import Part, make_plan, open_folder


def do_job(sources, out, *, threshold=0.05, only=None, overwrite=False, stop=False, base="/", size=4):
    """Do the blocks of a job one after the other, without Ray; return its parts and its plan."""
    files = model_files(runnable(find_model("face")))
    blocks, _ = find_blocks([str(source) for source in sources], size)
    plan = make_plan(blocks, model_hash(files), threshold)
    parts = open_folder(str(out), plan, overwrite=overwrite)
    worker = BlockWorker(Task(plan, str(out), str(base), "cpu", 1, stop), lambda: files)
    done = {part.block for part in parts}
    for number, block in enumerate(blocks):
        if number not in done and number in (range(plan.blocks) if only is None else only):
            answer = worker({"number": [number], "block": [block.encode()]})
            parts.append(Part(*json.loads(answer["part"][0])))
    return parts, plan


@pytest.fixture(scope="session", name="run_job")
def _run_job():
    return do_job
