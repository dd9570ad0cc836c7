"""What a busy neighbour costs a training step of multibox-coco, with threads fixed and following the load (Linux).

    python benchmarks/busy_neighbour.py [--neighbours 0 1 2] [--steps 24]

One model is trained on one synthetic batch. The losses with one and with all threads must agree before a time is shown.
With `--priority` (root) the benchmark and its neighbours run before everything else on the machine.
"""

import argparse
import copy
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from multibox.config import Config
from multibox.limits import keep_freed_memory
from multibox.models.build import build_model
from multibox.presets import resolve
from multibox.structures import Size
from multibox.tensors import Batch
from multibox.training.norms import train_mode
from multibox.training.optimizer import set_learning_rate
from multibox.training.precision import choose_precision
from multibox.training.step import Stepper
from multibox.training.threads import ThreadPlan

OBJECTS = 12


def make_batch(size: tuple[int, int], images: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, *size, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    corner = 0.7 * torch.rand(images, OBJECTS, 2, generator=generator)
    boxes = torch.cat([corner, corner + 0.1 + 0.15 * torch.rand(images, OBJECTS, 2, generator=generator)], 2)
    labels = torch.randint(0, 3, (images, OBJECTS), generator=generator)
    return Batch(pixels, boxes, labels, [""] * images, [Size(*size)] * images)


def agree(model: torch.nn.Module, config: Config, batch: Batch) -> None:
    # In float32: rounding to bfloat16 moves matches from one anchor to another
    losses = {}
    for threads in (1, torch.get_num_threads()):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        stepper = Stepper(copy.deepcopy(model), config, device="cpu", precision="float32")
        train_mode(stepper.model)
        set_learning_rate(stepper.optimizer, 1e-4)
        losses[threads] = torch.stack([stepper.step(batch).total.detach() for _ in range(3)])
        torch.set_num_threads(before)
    first, second = losses.values() if len(losses) == 2 else [*losses.values()] * 2
    # The first loss differs by the order of sums; the optimiser's first steps, all of one length, enlarge that
    torch.testing.assert_close(first[0], second[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(first, second, rtol=3e-2, atol=0)
    print(f"losses agree with {' and '.join(map(str, losses))} threads: {first.tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--priority", action="store_true")
    args = parser.parse_args()
    if args.priority:
        # Linux gives each session one share of the machine; start this with `setsid -w`
        Path("/proc/self/autogroup").write_text("-20")
    keep_freed_memory()
    config = resolve("multibox-coco", "default", {})
    precision = choose_precision(config.train, "cpu")
    model = build_model(config, 3, 0)
    batch = make_batch(config.model.input_size, config.train.batch_size)
    agree(model, config, batch)
    most = torch.get_num_threads()
    alone = None
    for count in args.neighbours:
        neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            for name in ("all", "one", "follow"):
                torch.set_num_threads(1 if name == "one" else most)
                stepper = Stepper(copy.deepcopy(model), config, device="cpu", precision=precision)
                train_mode(stepper.model)
                set_learning_rate(stepper.optimizer, 1e-4)
                plan = ThreadPlan() if name == "follow" else None
                times = []
                for _ in range(args.steps):
                    if plan:
                        plan.before_step()
                    started = time.perf_counter()
                    stepper.step(batch)
                    times.append(time.perf_counter() - started)
                    if plan:
                        plan.after_step(times[-1])
                alone = alone or median(times[1:])
                settled, mean = median(times[len(times) // 2 :]), sum(times[1:]) / len(times[1:])
                changes = f", changes (step, threads): {plan.changes}" if plan else ""
                print(
                    f"{count} neighbours, threads {name:6}: median {settled:.2f} s, mean {mean:.2f} s per step, "
                    f"{mean / alone:.2f} times the quiet step{changes}",
                    flush=True,
                )
                if plan:
                    torch.set_num_threads(most)
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()


if __name__ == "__main__":
    main()
