"""One sentence on what to change, found from the figures of a profile."""

from collections.abc import Callable

from multibox.profiling.machine import busiest_program
from multibox.profiling.measuring import Profile

NEIGHBOUR = 0.35
"""Cores kept busy by other programs from which they are named."""
THROTTLED = 0.1
"""Share of the periods stopped by a quota from which it is named."""
FULL = 0.85
"""Share of the memory from which it is named."""
IMAGES = 0.2
"""Share of the time spent on preparing images from which it is named."""
VALIDATION, SAVING, UPDATE = 0.2, 0.1, 0.3
"""Shares of the time from which these are named."""
TINY, TINY_UPDATE = 4, 0.15
"""Images per step up to which a step has much fixed cost if the update takes this share."""
LARGE = 4
"""Times as many pixels as training wants decoded, from which photographs are called large."""


def advise(profile: Profile) -> str:
    """Return one sentence: what takes the time, and which setting or hardware would change that."""
    causes: tuple[Callable[[Profile], str | None], ...] = (
        _quota, _neighbour, _memory, _images, _validation, _saving, _tiny_batch, _one_core, _matching,
    )  # fmt: skip
    return next((sentence for cause in causes if (sentence := cause(profile))), _network(profile))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _share(profile: Profile, *names: str) -> float:
    parts = profile.parts()
    return sum(parts[name] for name in names) / max(profile.total, 1e-12)


def _quota(profile: Profile) -> str | None:
    held = profile.machine.throttled
    if held is None or held < THROTTLED:
        return None
    return (
        f"a quota on processor time stopped this process in {_percent(held)} of the scheduler's periods; give the "
        f"container more cores (it has {profile.machine.cores}), or set train.threads and train.workers lower"
    )


def _neighbour(profile: Profile) -> str | None:
    others = profile.machine.others
    if others is None or others < NEIGHBOUR:
        return None
    name = busiest_program()
    return (
        f"other programs keep {others:.1f} of the {profile.machine.cores} cores busy"
        f"{f' ({name} most of all)' if name else ''}; end them or wait for them, as threads that share a core wait for "
        "each other, and measure again"
    )


def _memory(profile: Profile) -> str | None:
    whole = profile.whole_memory
    if whole is None or profile.memory < FULL * whole:
        return None
    where = "memory" if profile.device == "cpu" else "GPU memory"
    half = max(1, profile.batch_size // 2)
    return (
        f"{profile.memory / 1e9:.1f} of {whole / 1e9:.1f} GB of {where} are taken by batches of {profile.batch_size} "
        f"images; set train.batch_size={half}, or train.accumulate=2, which computes each batch in two parts"
    )


def _images(profile: Profile) -> str | None:
    shares = {name: _share(profile, name) for name in ("read", "decode", "augment")}
    if sum(shares.values()) < IMAGES:
        return None
    largest = max(shares, key=lambda name: shares[name])
    image, waits = profile.image, f"{_percent(sum(shares.values()))} of the time goes into preparing images"
    if largest == "read":
        rate = image.bytes / max(image.read, 1e-9) / 1e6
        return (
            f"{waits}, most of it into reading files ({1000 * image.read:.0f} ms each, {rate:.1f} MB/s); copy the data "
            "to a faster disk, or keep the decoded images for later runs with --cache-dir on one"
        )
    if largest == "decode":
        return f"{waits}, most of it into decoding; {_about_decoding(profile)}"
    cores = f"more cores than {profile.machine.cores}"
    lighter = "" if profile.augmentation in ("default", "none") else "--set train.augmentation=default or "
    return (
        f"{waits}, most of it into augmentation ({profile.augmentation}, {1000 * image.augment:.1f} ms of a core per "
        f"image); {lighter}{cores} would shorten it"
    )


def _about_decoding(profile: Profile) -> str:
    image, wanted = profile.image, profile.input_size
    each = f"{image.size.width}x{image.size.height}, {1000 * image.decode:.0f} ms of a core each"
    if profile.kept < 1:
        return (
            f"only {_percent(profile.kept)} of the images fit decoded into memory; give them room with --cache-gb, "
            "or put them on a disk with --cache-dir"
        )
    if image.size.height * image.size.width > LARGE * 4 * wanted.height * wanted.width:
        return (
            f"the photographs are large ({each}) for an input of {wanted.width}x{wanted.height}; shrink them once, or "
            "keep them decoded for later runs with --cache-dir"
        )
    return f"images ({each}) are decoded in the first epoch; a longer run spreads that, --cache-dir keeps it"


def _validation(profile: Profile) -> str | None:
    share = _share(profile, "validation")
    if share < VALIDATION or profile.validations < 2:
        return None
    return (
        f"{_percent(share)} of the time goes into {profile.validations} validations of {profile.validation:.1f} s; "
        f"validate less often with --set train.validate_every={_rarer(profile)}, or on fewer images"
    )


def _saving(profile: Profile) -> str | None:
    share = _share(profile, "saving")
    if share < SAVING or profile.saves < 2:
        return None
    if profile.saves > profile.validations + 1:
        fewer = "save less often with --set train.save_minutes=10"
    else:
        fewer = f"validate less often, which saves each time, with --set train.validate_every={_rarer(profile)}"
    return (
        f"{_percent(share)} of the time goes into {profile.saves} saves of {profile.saving:.1f} s; put the run folder "
        f"(--out) on a faster disk, or {fewer}"
    )


def _rarer(profile: Profile) -> int:
    """Return the epochs per validation that halve their number."""
    return max(2, round(2 * profile.epochs / max(1, profile.validations)))


def _tiny_batch(profile: Profile) -> str | None:
    share = _share(profile, "optimizer", "other", "copy")
    if share < TINY_UPDATE or profile.batch_size > TINY:
        return None
    return (
        f"{_percent(share)} of a step does not depend on its {profile.batch_size} "
        f"{'image' if profile.batch_size == 1 else 'images'}; a larger batch shares that among more, such as --set "
        f"train.batch_size={8 * profile.batch_size}"
    )


def _one_core(profile: Profile) -> str | None:
    if profile.device != "cpu" or profile.machine.cores > 1:
        return None
    share = _share(profile, "forward", "backward")
    return (
        f"{_percent(share)} of the time goes into the network, on the one core that this process may use; allow it "
        "more (taskset, the container's cpus), or use a GPU"
    )


def _matching(profile: Profile) -> str | None:
    share = _share(profile, "targets", "loss")
    if share < UPDATE:
        return None
    return (
        f"{_percent(share)} of the time goes into matching anchors and the loss; fewer anchors or a smaller input "
        "would shorten it, or matching.matcher=bipartite where another one is set"
    )


def _network(profile: Profile) -> str:
    share = _share(profile, "forward", "backward")
    if profile.precision == "float32" and profile.device == "cpu":
        faster = "bfloat16 on a processor with AMX or AVX-512 BF16, a smaller network or input, or a GPU"
    elif profile.device == "cpu":
        faster = "a smaller network (multibox list presets) or input, more cores, or a GPU"
    else:
        faster = "a smaller network (multibox list presets) or input, or a faster GPU"
    return f"{_percent(share)} of the time goes into the network itself, as it should; faster would be {faster}"
