"""A Ray cluster of two nodes on this machine, each with one core; run as a program of its own by the tests.

It prints a line of JSON with the address and the process ids of the raylets. A line on standard input that says "node"
adds a node and prints its raylet; the end of standard input ends the cluster.
"""

import json
import sys

from ray.cluster_utils import Cluster

SMALL = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


def raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def tell(what) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    try:
        raylets = [raylet(cluster.head_node), raylet(cluster.add_node(**SMALL))]
        tell({"address": cluster.address, "raylets": raylets})
        for line in sys.stdin:
            if line.strip() == "node":
                tell({"raylet": raylet(cluster.add_node(**SMALL))})
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
