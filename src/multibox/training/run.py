"""A run from a data set and options, or from the folder of a run that goes on."""

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multibox import __version__
from multibox.analysis.advice import look_at_boxes
from multibox.builtin import find_model
from multibox.config import Config, DataConfig, read_toml, with_one_length
from multibox.data.augmentation import find_augmentation
from multibox.data.checking import fingerprint
from multibox.data.choosing import parse_merges
from multibox.data.decoded import DecodedImages, DecodedSplits, decode_once
from multibox.data.formats import check_format
from multibox.data.formats.index_cache import share
from multibox.data.formats.text import OnBad
from multibox.data.left_out import drop_difficult
from multibox.data.loading import AugmentedImages, in_order, load_batches
from multibox.data.pixels import as_colour
from multibox.doctor.glance import MOST_IMAGES, TOLD_BY_TRAINING, cached_glance, glance, glance_lines
from multibox.errors import ConfigError, DataError, MultiboxError, WeightsError
from multibox.files import write_text_whole
from multibox.limits import keep_freed_memory
from multibox.models.anchor_layout import check_anchors
from multibox.models.backbones import check_backbone
from multibox.models.build import build_model
from multibox.models.ssd import SSD
from multibox.models.weights import choose_network, load_weights
from multibox.presets import SET, resolve_layers
from multibox.settings import flatten
from multibox.structures import Dataset
from multibox.thresholds import class_thresholds
from multibox.training.adapting import enlarge_input, find_numbers, fit_anchors, spare_knowledge
from multibox.training.capacity import check_input_size, check_memory
from multibox.training.distributed import Start, check_shares, join, own_device, telling, told
from multibox.training.folder import (
    ABANDONED,
    ASKED,
    CACHE,
    CONFIG,
    Hold,
    check_state,
    fresh_cache,
    new_folder,
    read_config,
    remove_scratch,
    settings_to_resume,
)
from multibox.training.journal import Journal
from multibox.training.logger_services import check_loggers
from multibox.training.norms import measure_norms
from multibox.training.precision import choose_precision
from multibox.training.ranks import Ranks
from multibox.training.relaunch import begun_before, can_go_on, note_launch, patient_hold
from multibox.training.reporter import Reporter
from multibox.training.splits import choose_sampling, open_splits
from multibox.training.summary import describe_run
from multibox.training.trainer import Trainer

DEFAULT_RECIPE = "default"
OPTIONS = "command line"
"""The layer of settings that have an option or argument of their own."""
OPTION_KEYS = {
    "epochs": "train.epochs",
    "minutes": "train.minutes",
    "weights": "train.weights",
    "train_split": "data.train_split",
    "val_split": "data.val_split",
    "format": "data.format",
    "on_bad": "data.on_bad",
    "on_nan": "train.on_nan",
    "classes": "data.classes",
    "merge": "data.merge",
    "background": "model.background",
    "cache_gb": "data.cache_gb",
    "cache_dir": "data.cache_dir",
}
"""The setting of each option that has one."""
FREE_KEYS = (
    "train.epochs", "train.minutes", "data.cache_gb", "data.cache_dir", "train.on_nan", "train.nan_skips",
    "train.save_minutes", "train.workers",
)  # fmt: skip
"""Settings that a resumed run may change: its length, and what changes no result of the steps to come."""
UNFOLD_IMAGES, UNFOLD_BATCH = 64, 16
"""Training images that folded batch norms get their statistics from, and how many at once."""


Data = Path | Sequence[Path]
"""One data set, or several that are joined by class name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `multibox train` was asked for, beside the data. None leaves a setting to the layers below."""

    preset: str | None = None
    recipe: str | None = None
    epochs: int | None = None
    minutes: float | None = None
    weights: str | None = None
    """A built-in model's name, a detector's file or run folder, the weights of a backbone, or "none"."""
    out: Path | None = None
    train_split: str | None = None
    val_split: str | None = None
    """None takes `val` or holds some training images out; "none" does without."""
    format: str | None = None
    on_bad: OnBad | None = None
    on_nan: OnBad | None = None
    """What follows a loss or gradient that is not finite."""
    classes: tuple[str, ...] | None = None
    """Those to learn, by name; None takes all."""
    merge: tuple[str, ...] | None = None
    """Classes to join, such as `car=truck,bus`."""
    background: str | None = None
    """Colour that shows through transparent pixels: a name, #rrggbb or three numbers."""
    cache_gb: float | None = None
    """Most GB of decoded images that are kept."""
    cache_dir: Path | None = None
    """Folder in which they are kept for later runs; None keeps them in memory."""
    config: Path | None = None
    """A TOML file with any part of the settings."""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    """By dotted key, as `--set` gives them."""
    resume: Path | None = None
    """The run folder to go on with; everything else stands in it."""
    device: str = "auto"
    cache: Path | None = None
    """Folder of what is remembered of the data; None takes `CACHE` beside the run folder. Several runs share one."""
    started: float | None = None
    """`time.monotonic()` when the command began; a timed run counts from there."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ConfigError("--minutes and --epochs exclude each other; give one of them")


def in_a_list(data: Data) -> list[Path]:
    """Return one data set or several as a list."""
    return [data] if isinstance(data, Path) else list(data)


def prepare(data: Data | None, options: RunOptions, reporter: Reporter | None = None) -> Trainer:
    """Read the data, resolve the config, fit the anchors, build the network, make or reopen the run folder.

    A mistake that is found here leaves no folder behind.

    Args:
        data: The data set, or several that are joined; None where a run is resumed that knows it.
        options: What was asked for.
        reporter: Gets the sentences a user should read.

    Raises:
        ConfigError: settings, names or folders that cannot be used.
        DataError: data that cannot be used.
        WeightsError: weights that cannot be used.
    """
    ranks, reporter = join(options.device), reporter or Reporter()
    if options.started is None:
        options = dataclasses.replace(options, started=time.monotonic())
    if not ranks.writes:
        return _follow(data, options, ranks)
    with telling(ranks) as tell:
        trainer = _lead(data, options, reporter, ranks)
        settings = trainer.config.to_toml(with_data=True)
        tell(lambda: Start(settings, trainer.folder, trainer.pace.started, trainer.packed()))
    return trainer


def _follow(data: Data | None, options: RunOptions, ranks: Ranks) -> Trainer:
    """Make the trainer of a process that trains what rank 0 says."""
    with told(ranks) as start:
        given = {"data.path": path} if (path := _given(data, options).get("data.path")) else {}
        config = Config.from_toml(start.config, "the settings of rank 0").updated(given)
        own = RunOptions(resume=start.folder, device=options.device, cache=options.cache, started=start.started)
        return _assemble(config, start.folder, own, Reporter(lambda line: None), None, ranks, start)


def _lead(data: Data | None, options: RunOptions, reporter: Reporter, ranks: Ranks) -> Trainer:
    """Make the trainer of a run in one process, or that of rank 0."""
    if options.resume is None and (begun := begun_before(options.out)) is not None:
        if not can_go_on(begun):
            options = dataclasses.replace(options, out=begun)
        else:
            reporter.note(f"torchrun gives this command again; {begun} goes on")
            again = RunOptions(resume=begun, device=options.device, cache=options.cache, started=options.started)
            return _resume(begun, data, again, reporter, ranks)
    if options.resume is not None:
        return _resume(options.resume, data, options, reporter, ranks)
    config, _ = resolve_options(data, options)
    if not config.data.path:
        raise ConfigError("train needs DATA, a data set's folder or file; or --resume RUN to go on with a run")
    with new_folder(options.out, config.preset) as (folder, hold), fresh_cache(cache_folder(config, folder, options)):
        note_launch(folder)
        write_text_whole(folder / ASKED, config.to_toml(with_data=True), durable=True)
        return _assemble(config, folder, options, reporter, hold, ranks)


def resolve_options(data: Data | None, options: RunOptions) -> tuple[Config, dict[str, str]]:
    """Return the settings of a run, and for each by dotted key the layer that set it.

    The layers, lowest first: defaults, preset, recipe, the recipe's tuning for the preset (`presets.resolve_layers`),
    settings of the weights to start from, `--config`, `--set`, the command's own options.

    Nothing is read but files of settings and weights.

    Raises:
        ConfigError: an unknown name, a value out of range, or settings that exclude each other.
    """
    file = _read_file(options.config)
    changes, given = dict(options.changes), _given(data, options)
    if twice := sorted(given.keys() & changes.keys()):
        raise ConfigError(f"{twice[0]} is given twice, as an option and by --set; leave one away")
    with_one_length({**changes, **given})
    preset = options.preset or changes.pop("preset", None) or file.pop("preset", None)
    recipe = options.recipe or changes.pop("recipe", None) or file.pop("recipe", None) or DEFAULT_RECIPE
    weights = given.get("train.weights", changes.get("train.weights", file.get("train.weights")))
    try:
        preset, network = choose_network(weights, preset, recipe)
    except WeightsError as error:
        raise WeightsError(f"{'train.weights' if options.weights is None else '--weights'}: {error}") from None
    layers = [(f"weights {weights}", network), (str(options.config), file), (SET, changes), (OPTIONS, given)]
    layers = [layer for layer in layers if layer[1]]
    config, origins = resolve_layers(preset, recipe, layers)
    _check_without_data(config)
    for chosen, adapted in (("model.input_size", "train.largest_input"), ("train.lr", "train.known_lr")):
        if any(chosen in values and adapted not in values for _, values in layers):
            config = config.updated({adapted: "none"})
    return config, origins


def _check_without_data(config: Config) -> None:
    """Refuse what the schema cannot know and no data is needed for: names, and lists that do not fit each other.

    Raises:
        ConfigError: an unknown name, or settings that do not fit each other.
    """
    find_augmentation(config.train.augmentation)
    check_loggers(config.train.loggers)
    check_backbone(config.model.backbone)
    parse_merges(config.data.merge)
    if config.data.format != "auto":
        try:
            check_format(config.data.format)
        except ConfigError as error:
            raise ConfigError(f"data.format: {error}") from None
    if config.data.fingerprint:
        raise ConfigError("data.fingerprint: the run sets it itself; leave it away")
    check_anchors(config)


def _read_file(path: Path | None) -> dict[str, Any]:
    """Return the settings of --config by dotted key, without the fingerprint that a run's own config.toml brings."""
    if path is None:
        return {}
    try:
        values = flatten(read_toml(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read ({error}); give a TOML file of settings") from None
    values.pop("data.fingerprint", None)
    return values


def _given(data: Data | None, options: RunOptions) -> dict[str, Any]:
    """Return what the command's own options say, by dotted key."""
    given: dict[str, Any] = {key: getattr(options, name) for name, key in OPTION_KEYS.items()}
    given["train.weights"] = None if options.weights is None else str(options.weights)
    given["data.path"] = None if data is None else [str(path.resolve()) for path in in_a_list(data)]
    given["data.cache_dir"] = None if options.cache_dir is None else str(options.cache_dir.absolute())
    return {key: value for key, value in given.items() if value is not None}


def _resume(folder: Path, data: Data | None, options: RunOptions, reporter: Reporter, ranks: Ranks) -> Trainer:
    # First of all: the settings of another version may not be readable either
    check_state(folder)
    config, begun = settings_to_resume(folder)
    check_loggers(config.train.loggers)
    _refuse_other_settings(folder, options, config)
    given = {**options.changes, **_given(data, options)}
    config = config.updated({k: given[k] for k in ("data.path", *FREE_KEYS) if k in given})
    if not config.data.path:
        raise ConfigError(f"{folder / CONFIG} does not say which data it was trained on; give --data DATA as well")
    if gone := [path for path in config.data.path if not Path(path).exists()]:
        raise ConfigError(f"{gone[0]} does not exist any more; say where the same data lies now: --data DATA")
    hold = patient_hold(folder)
    try:
        remove_scratch(folder)
        if not begun:
            reporter.note(f"{folder} was ended before it had a state; it begins anew with the settings it was given")
            options = dataclasses.replace(options, resume=None)
        trainer = _assemble(config, folder, options, reporter, hold, ranks)
    except BaseException:
        hold.close()
        raise
    write_text_whole(folder / CONFIG, trainer.config.to_toml(with_data=True), durable=True)
    return trainer


def _assemble(
    config: Config,
    folder: Path,
    options: RunOptions,
    reporter: Reporter,
    hold: Hold | None,
    ranks: Ranks,
    start: Start | None = None,
) -> Trainer:
    resumed = options.resume is not None
    device = own_device(options.device)
    journal = Journal(folder, config.preset, device, options.started, writes=ranks.writes)
    if not resumed:
        # A resumed run that is refused stays what it was
        journal.update("starting")
    cache = cache_folder(config, folder, options)
    remove_scratch(cache, ABANDONED)
    training, validation, notes = _open_splits(config, cache, reporter)
    for note in notes:
        reporter.note(note)
    config = _identify(config, folder, training, validation)
    for line in () if resumed else _doctor_says(config, cache, len(training) + len(validation or ())):
        reporter.note(line)
    class_thresholds(config.post.thresholds, training.class_names)
    if config.train.difficult == "drop":
        training = drop_difficult(training)
    training, validation = share(training, cache, "training"), validation and share(validation, cache, "validation")
    if not resumed:
        config = fit_anchors(enlarge_input(config, training, reporter), training)
        config = choose_sampling(training, config, reporter.note)
    precision = choose_precision(config.train, device)
    if device == "cpu":
        keep_freed_memory()
    model = build_model(config, len(training.class_names), config.train.seed)
    check_memory(model, config, device=device, precision=precision)
    decoded = _decode_once(config, training, validation, reporter)
    check_input_size(model, config)
    known = False
    if not resumed:
        known = _start_from(model, config, training, decoded.training, reporter)
        if known:
            config = spare_knowledge(model, config, validation or training, device, reporter)
        config = find_numbers(config, model, training, device, precision, reporter, decoded.training)
    check_shares(config, len(training), ranks)
    findings = look_at_boxes(training, config)
    for finding in findings:
        reporter.note(finding)
    trainer = Trainer(
        model, config, training, validation, folder,
        device=device, precision=precision, source=_source(config, training), known=known, reporter=reporter,
        started=options.started, hold=hold, findings=findings, decoded=decoded, journal=journal, ranks=ranks,
    )  # fmt: skip
    _set_out(trainer, start, resumed=resumed)
    reporter.note(describe_run(trainer))
    return trainer


def _set_out(trainer: Trainer, start: Start | None, *, resumed: bool) -> None:
    """Give the trainer the state to begin with."""
    if start is not None:
        trainer.follow(start.state)
    elif resumed:
        trainer.resume()
    else:
        write_text_whole(trainer.folder / CONFIG, trainer.config.to_toml(with_data=True), durable=True)


def cache_folder(config: Config, folder: Path, options: RunOptions | None = None) -> Path:
    """Return where a run remembers what it found out about its data: `data.cache_dir`, or `CACHE` beside the run."""
    if config.data.cache_dir != "none":
        return Path(config.data.cache_dir).expanduser()
    return (options and options.cache) or folder.parent / CACHE


def training_images(model: str | Path | None, given: str | Path | Sequence[str | Path] | None) -> Dataset | None:
    """Return the images that a model learnt from: the training split given, or that of a run folder.

    None where no run folder is named, or its data does not lie there any more.

    Raises:
        DataError: What is given cannot be read.
    """
    if given is not None:
        paths = [given] if isinstance(given, str | Path) else given
        return open_splits(DataConfig(path=tuple(map(str, paths)), val_split="none"))[0]
    if model is None:
        return None
    folder = find_model(model).parent
    try:
        config = read_config(folder)
        cache = cache_folder(config, folder)
        return open_splits(config.data, cache if cache.exists() else None)[0]
    except MultiboxError:
        return None


def _open_splits(config: Config, cache: Path, reporter: Reporter) -> tuple[Dataset, Dataset | None, list[str]]:
    """Return what `open_splits` does; if it fails, say what else the doctor sees."""
    try:
        return open_splits(config.data, cache, reporter.counting)
    except DataError:
        for line in glance_lines(glance(config.data.path, _format(config)), config.data.path):
            reporter.note(line)
        raise


def _doctor_says(config: Config, cache: Path, images: int) -> list[str]:
    """Return what a glance at the data shows that no other note says."""
    paths = config.data.path
    if images > MOST_IMAGES:
        return [f"more than {MOST_IMAGES:,} images are not examined before training; multibox doctor DATA does it"]
    counts = cached_glance(paths, _format(config), cache, config.data.fingerprint)
    return glance_lines(counts, paths, TOLD_BY_TRAINING)


def _format(config: Config) -> str | None:
    return None if config.data.format == "auto" else config.data.format


def _decode_once(config: Config, training: Dataset, validation: Dataset | None, reporter: Reporter) -> DecodedSplits:
    folder, most = config.data.cache_dir, config.data.cache_gb
    return decode_once(
        training,
        validation,
        config.model.input_size,
        background=as_colour(config.model.background),
        most_gb=None if most == "auto" else most,
        folder=None if folder == "none" else Path(folder).expanduser(),
        tell=reporter.note,
    )


def _start_from(model: SSD, config: Config, training: Dataset, decoded: DecodedImages, reporter: Reporter) -> bool:
    """Load the weights to start from; return whether they know every class already."""
    if config.train.weights == "none":
        return False
    note, known = load_weights(model, config.train.weights, training.class_names)
    reporter.note(note)
    images = AugmentedImages(training, config.model.input_size, (), decoded=decoded)
    batches = load_batches(images, in_order(min(len(training), UNFOLD_IMAGES), UNFOLD_BATCH), 0, pin=False)
    if measure_norms(model, (batch.images for batch in batches)):
        reporter.note("batch norms that were folded into these weights got the statistics of training images")
    return known


def _identify(config: Config, folder: Path, training: Dataset, validation: Dataset | None) -> Config:
    """Return the config with the data's fingerprint, or refuse data that changed since the run began."""
    digest = fingerprint(training, validation)
    if config.data.fingerprint not in ("", digest):
        raise ConfigError(
            f"the data at {', '.join(config.data.path)} changed since {folder} was started (other images, sizes, boxes "
            f"or classes; fingerprint {digest[:12]}, expected {config.data.fingerprint[:12]}); resume with the data as "
            f"it was, or start another run from these weights: --weights {folder}"
        )
    return config.updated({"data.fingerprint": digest})


def _source(config: Config, training: Dataset) -> str:
    names = ", ".join(Path(path).name for path in config.data.path)
    return (
        f"multibox {__version__}, recipe {config.recipe}, trained on {names} ({training.split}, "
        f"{len(training)} images, fingerprint {config.data.fingerprint[:12]})"
    )


def _refuse_other_settings(folder: Path, options: RunOptions, config: Config) -> None:
    """Refuse what would change a resumed run; what it has anyway may be said again."""
    if options.out is not None and options.out.resolve() != folder.resolve():
        raise ConfigError(f"--resume {folder} goes on in its own folder; leave --out away")
    if options.config is not None:
        raise ConfigError(f"--resume {folder} goes on with the run's own settings; leave --config away")
    names = {"preset": "preset", "recipe": "recipe", **OPTION_KEYS}
    asked = [(f"--{name.replace('_', '-')}", key, getattr(options, name)) for name, key in names.items()]
    asked += [(f"--set {key}", key, value) for key, value in options.changes.items()]
    for option, key, value in asked:
        # A run may be prolonged, and it has replaced every `auto` by a number
        free = key in FREE_KEYS[2:] or option in ("--epochs", "--minutes") or key == "anchors.fit"
        free = free or (key in ("train.lr", "train.batch_size") and value == "auto")
        if value is not None and not free and config.updated({key: value}) != config:
            has: Any = functools.reduce(getattr, key.split("."), config)
            raise ConfigError(
                f"{folder} was started with {key}={has if isinstance(has, str) else json.dumps(has)}, got {value}; "
                f"--resume goes on with the run's own settings, so leave {option} away, or start another run"
            )
