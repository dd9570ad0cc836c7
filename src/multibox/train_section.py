"""The settings of `[train]`: how the weights are found, with the type, range and meaning of each."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from multibox.sections import (
    Count,
    InnerShare,
    Name,
    NotNegative,
    Positive,
    Scale,
    Share,
    ShareBelowOne,
    Side,
    means,
)


class TrainConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the weights are found."""

    weights: Annotated[
        Name,
        means("Weights to start from. `--weights` sets it.", expected="none, the name of a built-in model, or a file"),
    ] = "none"
    epochs: Annotated[
        Count | Literal["none"],
        means("Length of the run as passes over the training split. Exactly one of epochs, steps and minutes is set."),
    ] = 20
    steps: Annotated[Count | Literal["none"], means("Length of the run in optimiser steps, exactly.")] = "none"
    minutes: Annotated[
        Positive | Literal["none"],
        means("Length of the run by the clock, with validation and saving. `--minutes` sets it."),
    ] = "none"
    batch_size: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | Literal["auto"],
        means(
            "Images per step. auto takes as many as fit into memory: a power of two, at most 32 (CPU) or 128 (GPU) "
            "and at most a quarter of the training images."
        ),
    ] = 16
    lr: Annotated[
        Positive | Literal["auto"],
        means("Peak learning rate. auto finds it by a range test of at most 60 steps before the run."),
    ] = 1e-3
    known_lr: Annotated[
        Positive | Literal["none"],
        means(
            "Peak learning rate instead of `train.lr` where the starting weights know every class and find most of the "
            "objects; a higher one would make them forget. A rate given in a file or by --set is kept, too."
        ),
    ] = "none"
    optimizer: Annotated[Literal["sgd", "adamw"], means("Rule by which gradients change the weights.")] = "sgd"
    momentum: Annotated[ShareBelowOne, means("Momentum of sgd.")] = 0.9
    weight_decay: Annotated[
        NotNegative, means("Weight decay: through the gradient in sgd, decoupled from it in adamw.")
    ] = 0.0
    bias_decay: Annotated[
        NotNegative,
        means("Multiplier of the weight decay of convolution biases. Gluon decays them in full, Caffe not at all."),
    ] = 1.0
    norm_decay: Annotated[
        NotNegative, means("Multiplier of the weight decay for batch norms and for the scale of conv4_3.")
    ] = 1.0
    backbone_lr: Annotated[NotNegative, means("Learning-rate multiplier of the backbone.")] = 1.0
    head_lr: Annotated[NotNegative, means("Learning-rate multiplier of the heads.")] = 1.0
    bias_lr: Annotated[NotNegative, means("Learning-rate multiplier of biases. Caffe uses 2.")] = 1.0
    freeze: Annotated[
        tuple[Name, ...],
        means(
            "Patterns of parameter names that do not learn. Frozen batch norms keep their statistics.",
            expected="patterns separated by commas, such as backbone.*,heads.*",
        ),
    ] = ()
    freeze_until: Annotated[
        Share, means("Share of the run during which `freeze` holds. Afterwards everything learns.")
    ] = 1.0
    schedule: Annotated[
        Literal["constant", "cosine", "steps"], means("How the learning rate falls after the warm-up.")
    ] = "constant"
    boundaries: Annotated[
        tuple[InnerShare, ...],
        means(
            "Schedule steps: where each factor but the first begins, as ascending shares of the run.",
            such_as=(0.67, 0.83),
            expected="shares of the run, each above 0 and below 1, such as [0.67, 0.83]; divide a step or an epoch by "
            "how many the run has",
        ),
    ] = ()
    factors: Annotated[
        tuple[NotNegative, ...],
        means("Schedule steps: factors of the peak learning rate, one more than boundaries.", such_as=(1.0, 0.1, 0.01)),
    ] = ()
    minimum_lr: Annotated[NotNegative, means("Schedule steps: the learning rate never falls below this.")] = 0.0
    warmup: Annotated[Share, means("Share of the run in which the learning rate rises linearly.")] = 0.0
    warmup_steps: Annotated[
        Count | Literal["none"], means("Longest warm-up in steps, however long the run is; none sets no limit.")
    ] = "none"
    final_lr: Annotated[Share, means("Schedule cosine: where it ends, as a share of the peak learning rate.")] = 0.0
    clip_norm: Annotated[Positive | Literal["none"], means("Largest gradient norm; none does not clip.")] = "none"
    ema: Annotated[
        InnerShare | Literal["none"], means("Decay of the running average of the weights (EMA); none keeps no average.")
    ] = "none"
    augmentation: Annotated[
        Name,
        means(
            "Random changes to training images; docs/augmentation.md shows them.",
            expected="a name of docs/augmentation.md",
        ),
    ] = "none"
    mix_until: Annotated[
        Share, means("Share of the run in which recipes that mix images do so. Afterwards images are seen as they are.")
    ] = 0.85
    largest_input: Annotated[
        Side | Literal["none"],
        means(
            "Side up to which the input grows before training if most objects would be smaller than 16 pixels at "
            "`model.input_size`; none keeps that size. A size given in a file or by --set is kept, too."
        ),
    ] = "none"
    scales: Annotated[
        tuple[Scale, Scale],
        means(
            "Smallest and largest scale of the input while training. Each step draws one, rounded to 32 pixels.",
            such_as=(0.75, 1.25),
        ),
    ] = (1.0, 1.0)
    sampling: Annotated[
        Literal["auto", "uniform", "balanced", "shards"],
        means(
            "uniform: each image once per epoch. balanced: images of rare classes more often, in as many steps. "
            "shards: uniform, but tar and RecordIO files are read front to back, in runs of 4 MB in random order. auto "
            "is shards where such files are larger than half of the free memory, else uniform."
        ),
    ] = "auto"
    difficult: Annotated[
        Literal["keep", "drop"],
        means("Whether objects marked difficult are learnt (Caffe on VOC) or left out (HiKapok, Caffe on COCO)."),
    ] = "keep"
    report: Annotated[
        Literal["d2l", "default"], means("What is printed per epoch. d2l adds the tutorial's line every 5 epochs.")
    ] = "default"
    validate_every: Annotated[
        Count | Literal["auto"], means("Epochs between validations. auto makes about 20 validations per run.")
    ] = "auto"
    patience: Annotated[
        Count | Literal["none"],
        means(
            "Validations in a row without a better mAP@0.5 after which the run ends; none never ends it early. The "
            "schedule is not shortened."
        ),
    ] = "none"
    seed: Annotated[
        Annotated[int, Meta(ge=0)],
        means("Seed of the initial weights, the order of the images, their augmentation and `scales`."),
    ] = 0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        means(
            "Number format of the forward pass. auto takes bfloat16 where the machine multiplies it in hardware, and "
            "float16 with a scaled loss on a GPU that multiplies only that."
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "off", "network", "whole"],
        means(
            "What torch.compile compiles: the network, or the whole of network, targets and loss. auto measures at the "
            "start of a long run of one input size whether it pays; the log says what it found."
        ),
    ] = "auto"
    accumulate: Annotated[
        Count,
        means(
            "Parts in which each batch is computed, one after the other, so that less memory is needed. The update is "
            "that of the whole batch, except that batch norms see one part at a time."
        ),
    ] = 1
    on_nan: Annotated[
        Literal["stop", "skip"],
        means("What follows a loss or gradient that is not finite. `--on-nan` sets it."),
    ] = "stop"
    nan_skips: Annotated[Count, means("Batches that `on_nan` skip leaves out before the run stops.")] = 10
    sync_batch_norm: Annotated[
        bool, means("Whether batch norms take their statistics from the batches of all processes together.")
    ] = False
    loggers: Annotated[
        tuple[Literal["wandb", "mlflow", "trackio"], ...],
        means(
            "Services that get the metrics as well; docs/loggers.md shows them.",
            such_as=("mlflow",),
            expected="wandb, mlflow or trackio, separated by commas",
        ),
    ] = ()
    log_every: Annotated[Count, means("Steps between two values in TensorBoard, metrics.jsonl and the loggers.")] = 10
    save_minutes: Annotated[Positive, means("Minutes between two states from which a run can go on.")] = 2.0
    workers: Annotated[
        Annotated[int, Meta(ge=0, le=64)] | Literal["auto"],
        means(
            "Processes that prepare images; threads on a CPU, or if there are at most two. 0 prepares them in the "
            "training process itself."
        ),
    ] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"],
        means("CPU threads of the training step. auto follows the load of the machine."),
    ] = "auto"
