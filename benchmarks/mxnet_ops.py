"""MXNet 1.9.1's MultiBoxTarget and MultiBoxDetection, timed in a venv of their own; a `peers.Worker`.

A request names the operator (`op`), an .npz with its inputs in order (`file`), its options and, where the answer is to
be compared, the .npz to which it goes (`save`). The answer is how long the operator took.
"""

import json
import sys
import time

import mxnet as mx  # pyright: ignore[reportMissingImports]
import numpy as np

OPS = {"target": mx.nd.contrib.MultiBoxTarget, "detection": mx.nd.contrib.MultiBoxDetection}


def main():
    held = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["file"] not in held:
            with np.load(request["file"]) as file:
                held = {request["file"]: [mx.nd.array(file[name]) for name in sorted(file)]}
        inputs = held[request["file"]]
        mx.nd.waitall()
        started = time.perf_counter()
        outputs = OPS[request["op"]](*inputs, **request["options"])
        mx.nd.waitall()
        seconds = time.perf_counter() - started
        if request.get("save"):
            outputs = outputs if isinstance(outputs, list) else [outputs]
            np.savez(request["save"], *[array.asnumpy() for array in outputs])
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
