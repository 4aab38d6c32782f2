"""From a recipe to a Trainer: the one place that knows every layer."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from composer import Evaluator, Trainer
from composer.core import Callback
from composer.loggers import LoggerDestination
from composer.loss import soft_cross_entropy
from composer.metrics import CrossEntropy
from composer.utils import dist, reproducibility
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mixsize.algorithms.training import schedules
from mixsize.algorithms.batchnorm.bn_calibrate import BNCalibrate
from mixsize.algorithms.execution.composer_model import EngineClassifier
from mixsize.algorithms.training.epoch_schedule import EpochSchedule, elapsed_fraction
from mixsize.algorithms.training.schedules import Schedule
from mixsize.algorithms.smoothing.grad_smoothing import GradSmoothing
from mixsize.algorithms.sampling.mixsize_sampling import MixSizeSampling
from mixsize.algorithms.execution.preflight import Preflight
from mixsize.algorithms.regime.progression import Progression
from mixsize.algorithms.sampling.progressive_resize import ProgressiveResize
from mixsize.algorithms.regime.checks import check_stride
from mixsize.algorithms.regime.regime import Base, Regime
from mixsize.algorithms.regime.shapes import shapes_of
from mixsize.algorithms.training.step_seed import StepSeed
from mixsize.algorithms.training.training_clock import TrainingClock
from mixsize.ffcv_loaders.decode import augment
from mixsize.ffcv_loaders.decode.augment import Augment
from mixsize.ffcv_loaders.beton.reader import Beton
from mixsize.ffcv_loaders.loader import EvalLoader, MixSizeLoader
from mixsize.algorithms.regime.plan import plan_length
from mixsize.ffcv_loaders.decode.policy import check_stored_sizes
from mixsize.system.ranks import process_rank
from mixsize.recipes.config import schema
from mixsize.recipes.callbacks.batch_log import BatchLog
from mixsize.recipes.callbacks.checkpoints import Checkpoints
from mixsize.recipes.config.compose import to_yaml
from mixsize.system.files import remove_partial, write_text
from mixsize.recipes.models.finetuning import train_head_and_batch_norm
from mixsize.recipes.callbacks.finite_loss import FiniteLoss
from mixsize.recipes.callbacks.gradient_norms import GradientNorms
from mixsize.recipes.callbacks.learning_curve import LearningCurve
from mixsize.recipes.models.network import check_sizes, create_network, network_stride
from mixsize.recipes.callbacks.progress import Progress
from mixsize.recipes.planning.regimes import build_regime
from mixsize.recipes.build.resume import Start, check_data, check_ranks, clear, find_start
from mixsize.recipes.records.run_folder import CHECKPOINT_FOLDER, DATA_FILE, RECIPE_FILE
from mixsize.recipes.callbacks.shared_statistics import SharedStatistics
from mixsize.recipes.callbacks.time_budget import NO_END, TimeBudget
from mixsize.recipes.callbacks.times import Times
from mixsize.recipes.records.wandb_log import run_id, settings
from mixsize.recipes.callbacks.wandb_logger import LenientWandBLogger
from mixsize.recipes.models.weights import running_nothing

ACCURACY = "MulticlassAccuracy"
LOSS = "CrossEntropy"
# Loss scaling starts at 2^16 and halves at every overflow.
_OVERFLOWS = 20


@dataclass
class Run:
    """A Trainer ready to fit, with the pieces whose numbers are reported afterwards."""

    recipe: schema.Recipe
    trainer: Trainer
    loader: MixSizeLoader
    sampling: MixSizeSampling
    clock: TrainingClock
    times: Times
    curve: LearningCurve
    gradient_norms: GradientNorms
    #: None where the recipe has no calibration.
    calibration: BNCalibrate | None
    folder: Path
    #: The checkpoint that it goes on from, None where it starts anew.
    resumed: Path | None

    @property
    def regime(self) -> Regime | Progression:
        """What is drawn."""
        return self.loader.regime


def run_folder(recipe: schema.Recipe) -> Path:
    """Where a run keeps what it leaves behind."""
    return Path(recipe.output.folder) / recipe.name


def build(recipe: schema.Recipe) -> Run:
    """Open the data, make the network and attach the algorithms; take up a stopped run of the same name.

    Raises:
        ValueError: a recipe that the data, the network, the number of ranks or a stopped run of its name cannot serve.
        OSError: a file that cannot be read or written.
    """
    began = time.perf_counter()
    device = torch_device(recipe.device)
    join_ranks(device)
    rank, world_size = process_rank()
    folder = run_folder(recipe)
    start = find_start(recipe, folder, world_size)
    _agree_on_start(start, folder)
    recipe = start.recipe
    train, evaluation = open_data(recipe.data)
    num_classes = recipe.model.num_classes or train.num_classes
    for beton in (train, evaluation):
        beton.check_labels(num_classes)
    # Weights are drawn here, before the Trainer seeds each rank apart.
    reproducibility.seed_all(recipe.seed)
    model = build_model(recipe, num_classes)
    regime = build_regime(recipe, network_stride(model.module), world_size)
    if start.checkpoint is not None:
        check_ranks(regime, world_size)
    check_stored_sizes(build_augment(recipe.data.augment), train)
    loader = build_loader(recipe, train, regime, device)
    if start.checkpoint is not None:
        check_data(folder, loader.dataset.identity())
    preflight = prepare_execution(recipe, model, regime, device)
    drawn = [choice.size_px for part in regime.regimes for choice in part.choices]
    check_sizes(model.module, recipe.model.name, [*drawn, *recipe.evaluation.sizes])
    evaluators = build_evaluators(recipe, train, evaluation, network_stride(model.module), device)
    optimizer = build_optimizer(recipe.optimizer, model.module, regime)
    clock = TrainingClock(agree=recipe.duration[1] == "sec")
    schedule = build_epoch_schedule(recipe, regime, train.num_samples, clock)
    sampling = build_sampling(recipe, regime)
    smoothing = build_smoothing(recipe.smoothing)
    calibration = build_calibration(recipe, train, device)
    times = Times(sampling, calibration, began)
    curve = LearningCurve(sampling, clock, ACCURACY, {evaluator_label(size): size for size in recipe.evaluation.sizes})
    gradient_norms = GradientNorms(sampling, smoothing)
    companions = [algorithm for algorithm in (smoothing, calibration, preflight) if algorithm is not None]
    # Nothing of an earlier run is touched before all of the above has been found to work.
    dist.barrier()
    if rank == 0 and start.checkpoint is None:
        clear(folder)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
        write_text(folder / RECIPE_FILE, to_yaml(recipe))
        write_text(folder / DATA_FILE, json.dumps(loader.dataset.identity(), indent=1) + "\n")
    dist.barrier()
    watching = build_callbacks(recipe, folder, sampling, gradient_norms, clock)
    with running_nothing(start.checkpoint):
        trainer = Trainer(
            model=model,
            train_dataloader=loader.data_spec(),
            eval_dataloader=evaluators,
            eval_interval=f"{recipe.evaluation.every_epochs}ep",
            optimizers=optimizer,
            algorithms=[StepSeed(), sampling, schedule, *companions],
            max_duration=NO_END if recipe.duration[1] == "sec" else recipe.max_duration,
            seed=recipe.seed,
            precision=recipe.precision,
            device={"auto": None, "cpu": "cpu", "gpu": "gpu"}[recipe.device],
            device_train_microbatch_size=recipe.microbatch_images,
            run_name=recipe.name,
            loggers=build_loggers(recipe, folder),
            callbacks=[clock, times, curve, gradient_norms, *watching],
            progress_bar=False,
            auto_log_hparams=False,
            load_path=None if start.checkpoint is None else str(start.checkpoint),
            # StepSeed sets them at every step, on any number of ranks.
            load_ignore_keys=["rng"],
        )
    parts = (loader, sampling, clock, times, curve, gradient_norms, calibration)
    return Run(recipe, trainer, *parts, folder, start.checkpoint)


def build_callbacks(
    recipe: schema.Recipe,
    folder: Path,
    sampling: MixSizeSampling,
    gradient_norms: GradientNorms,
    clock: TrainingClock,
) -> list[Callback]:
    """What watches the run and saves it."""
    patience_steps = _OVERFLOWS if recipe.precision == "amp_fp16" else 1
    callbacks: list[Callback] = [SharedStatistics(), FiniteLoss(sampling, gradient_norms, patience_steps)]
    if recipe.duration[1] == "sec":
        callbacks.append(TimeBudget(recipe.duration[0], clock))
    if recipe.progress_bar:
        elapsed = elapsed_fraction(recipe.duration[0], clock) if recipe.duration[1] == "sec" else None
        callbacks.append(Progress(ACCURACY, elapsed))
    if recipe.output.log_batches:
        callbacks.append(BatchLog(folder))
    if recipe.output.save_every != "never":
        callbacks.append(
            Checkpoints(folder / CHECKPOINT_FOLDER, recipe.output.save_every, recipe.output.keep_checkpoints)
        )
    return callbacks


def open_data(data: schema.Data) -> tuple[Beton, Beton]:
    """The training and the evaluation file.

    Raises:
        ValueError: files whose classes differ.
        BetonError: a file that cannot be read.
    """
    train, evaluation = Beton.open(data.train), Beton.open(data.eval)
    if train.info and evaluation.info and train.info.classes != evaluation.info.classes:
        differing = sorted(set(train.info.classes) ^ set(evaluation.info.classes)) or ["their order"]
        raise ValueError(f"data.train and data.eval have different classes: {', '.join(differing[:10])}")
    return train, evaluation


def build_model(recipe: schema.Recipe, num_classes: int) -> EngineClassifier:
    """The network with its loss and metrics."""
    module = create_network(recipe.model, num_classes)
    if recipe.optimizer.train == "head_and_batch_norm":
        train_head_and_batch_norm(module)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)
    smoothing = recipe.loss.label_smoothing

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if smoothing:
            return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
        return soft_cross_entropy(outputs, targets)

    return EngineClassifier(
        module,
        num_classes=num_classes,
        val_metrics=MetricCollection(
            {LOSS: CrossEntropy(), ACCURACY: MulticlassAccuracy(num_classes=num_classes, average="micro")}
        ),
        loss_fn=loss,
    )


def prepare_execution(
    recipe: schema.Recipe, model: EngineClassifier, regime: Regime | Progression, device: torch.device
) -> Preflight | None:
    """Set how the network's training passes run; returns what visits their shapes first, where the recipe wants it.

    Raises:
        ValueError: CUDA graphs without CUDA, or on several ranks.
    """
    config = recipe.execution
    ranks = process_rank()[1]
    if config.network == "cuda_graphs":
        if ranks > 1:
            raise ValueError(
                f"execution.network: cuda_graphs runs on one rank, and there are {ranks}, whose gradients are averaged "
                "while the backward pass runs; choose compile"
            )
        if device.type != "cuda":
            raise ValueError(f"execution.network: cuda_graphs needs a GPU, and this runs on the {device}; choose eager")
        # Graphs are of memory, where the Trainer's moving the model later would leave nothing.
        model.to(device)
    model.use_engine(config.network, len(shapes_of(regime, ranks, recipe.microbatch_images)))
    wanted = device.type == "cuda" if config.preflight is None else config.preflight
    if not wanted:
        return None
    # The shapes are few, and each is tuned before training.
    torch.backends.cudnn.benchmark = True
    return Preflight(recipe.channels_last, recipe.progress_bar)


def build_sampling(recipe: schema.Recipe, regime: Regime | Progression) -> MixSizeSampling:
    """The algorithm that keeps the loader's plan and the Trainer in step."""
    config = recipe.regime
    if not isinstance(config, schema.ProgressiveRegime):
        return MixSizeSampling()
    assert isinstance(regime, Progression)
    return ProgressiveResize(
        regime,
        batch_norm=config.batch_norm,
        freeze_steps=config.freeze_steps,
        reset_batches=config.reset_batches,
    )


def build_smoothing(config: schema.Smoothing | None) -> GradSmoothing | None:
    """Gradient smoothing, where the recipe asks for it."""
    return None if config is None else GradSmoothing(config.alpha, config.eps, per_size=config.per_size)


def build_calibration(recipe: schema.Recipe, train: Beton, device: torch.device) -> BNCalibrate | None:
    """Batch-norm calibration, where the recipe asks for it."""
    if recipe.calibration is None:
        return None
    return BNCalibrate(
        lambda size_px: build_calibration_loader(recipe, train, size_px, device),
        num_batches=recipe.calibration.batches,
        when=recipe.calibration.when,
    )


def build_calibration_loader(recipe: schema.Recipe, train: Beton, size_px: int, device: torch.device) -> MixSizeLoader:
    """Training images in random order, cut as evaluation images are, at one size."""
    _, world_size = process_rank()
    batch = min(recipe.evaluation.batch_size, train.num_samples) // world_size * world_size
    return MixSizeLoader(
        train,
        Regime.fixed(Base(size_px, max(batch, world_size))),
        augment=build_augment(recipe.data.eval_transform),
        mean=recipe.data.mean,
        std=recipe.data.std,
        seed=recipe.seed,
        threads=recipe.loader.threads,
        threshold=copies_from(recipe.evaluation.threshold),
        device=device,
        channels_last=recipe.channels_last,
    )


def build_loader(
    recipe: schema.Recipe, train: Beton, regime: Regime | Progression, device: torch.device
) -> MixSizeLoader:
    """The training loader."""
    return MixSizeLoader(
        train,
        regime,
        augment=build_augment(recipe.data.augment),
        mean=recipe.data.mean,
        std=recipe.data.std,
        seed=recipe.seed,
        threads=recipe.loader.threads,
        prefetch=recipe.loader.prefetch,
        threshold=copies_from(recipe.loader.threshold),
        window_mib=recipe.loader.window_mib,
        device=device,
        channels_last=recipe.channels_last,
    )


def build_evaluators(
    recipe: schema.Recipe, train: Beton, evaluation: Beton, stride_px: int, device: torch.device
) -> list[Evaluator]:
    """An evaluator for each size, labelled ``eval_{S}px``, normalised as the training images are."""
    check_stride(recipe.evaluation.sizes, 1 if recipe.regime.stride else stride_px, recipe.model.name)
    evaluators = []
    for size_px in recipe.evaluation.sizes:
        loader = build_eval_loader(recipe, train, evaluation, size_px, recipe.evaluation.batch_size, device)
        evaluators.append(Evaluator(label=evaluator_label(size_px), dataloader=loader, metric_names=[ACCURACY, LOSS]))
    return evaluators


def build_eval_loader(
    recipe: schema.Recipe, train: Beton | None, images: Beton, size_px: int, batch_size: int, device: torch.device
) -> EvalLoader:
    """Each image once at one size, in batches of so many over all ranks, normalised as those of ``train`` are."""
    info = train.info if train else None
    return EvalLoader(
        images,
        size_px,
        max(1, batch_size // process_rank()[1]),
        augment=build_augment(recipe.data.eval_transform),
        mean=recipe.data.mean or (info.mean if info else None),
        std=recipe.data.std or (info.std if info else None),
        threads=recipe.loader.threads,
        threshold=copies_from(recipe.evaluation.threshold),
        device=device,
        channels_last=recipe.channels_last,
    )


def copies_from(threshold: float | None) -> float:
    """A recipe's threshold as the loaders take it."""
    return math.inf if threshold is None else threshold


def evaluator_label(size_px: int) -> str:
    """Composer's name for the evaluation at one size."""
    return f"eval_{size_px}px"


def build_augment(config: schema.Augment | schema.EvalTransform) -> Augment:
    """How views are cut."""
    if isinstance(config, schema.PadCrop):
        return augment.PadCrop(config.padding, config.flip, config.policy, config.cutout_px)
    if isinstance(config, schema.RandomResizedCrop):
        return augment.RandomResizedCrop(config.scale, config.ratio, config.flip)
    if isinstance(config, schema.Resize):
        return augment.Resize(config.flip)
    if isinstance(config, schema.EvalResize):
        return augment.Resize()
    assert isinstance(config, schema.CenterCrop)
    return augment.CenterCrop(config.fraction)


def build_optimizer(
    config: schema.Optimizer, module: torch.nn.Module, regime: Regime | Progression
) -> torch.optim.Optimizer:
    """The optimiser, its learning rate scaled and its weight decay laid on the parameters that the recipe says.

    Raises:
        ValueError: linear scaling for sizes that grow in phases.
    """
    lr = config.lr
    if config.lr_scaling == "linear":
        if isinstance(regime, Progression):
            raise ValueError(
                "optimizer.lr_scaling: linear needs one mean batch for the whole run, which phases do not have; use "
                "none, and regime.phases[].lr_factor"
            )
        lr *= regime.lr_scale
    parameters = [p for p in module.parameters() if p.requires_grad]
    if config.decay == "weights":
        # Biases and the scales and shifts of normalisation are the vectors among the parameters.
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, schema.Sgd):
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    assert isinstance(config, schema.AdamW)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps)


def epochs_of(recipe: schema.Recipe, regime: Regime | Progression, images: int) -> float:
    """The run's length in epochs, the last one counted by its own length; it must not be a time."""
    length, unit = recipe.duration
    assert unit != "sec"
    if unit == "ep":
        return float(length)
    epoch = 0
    while length > (steps := plan_length(regime.at_epoch(epoch), images, recipe.seed, epoch)):
        length -= steps
        epoch += 1
    return epoch + length / steps


def build_epoch_schedule(
    recipe: schema.Recipe, regime: Regime | Progression, images: int, clock: TrainingClock
) -> EpochSchedule:
    """What sets the learning rate, by epochs or, in a run whose length is a time, by the part of it that is over."""
    if recipe.duration[1] == "sec" and not isinstance(recipe.schedule, schema.Constant):
        return EpochSchedule(build_schedule(recipe, 1.0), elapsed_fraction(recipe.duration[0], clock))
    if isinstance(recipe.schedule, schema.Constant):
        return EpochSchedule(build_schedule(recipe, 1.0))
    return EpochSchedule(build_schedule(recipe, epochs_of(recipe, regime, images)))


def build_schedule(recipe: schema.Recipe, epochs: float) -> Schedule:
    """The learning rate as a function of the position in epochs, in a run of so many."""
    config = recipe.schedule
    if isinstance(config, schema.MultiStep):
        return schedules.multistep(config.milestones, config.factors, config.warmup_epochs)
    if isinstance(config, schema.Cosine):
        return schedules.cosine(epochs, config.final_factor, config.warmup_epochs)
    if isinstance(config, schema.OneCycle):
        return schedules.one_cycle(epochs, config.peak_fraction, config.start_factor, config.final_factor)
    assert isinstance(config, schema.Constant)
    return schedules.constant(config.warmup_epochs)


def build_loggers(recipe: schema.Recipe, folder: Path) -> list[LoggerDestination]:
    """Where metrics go besides the terminal and the run's record; the run's folder is there, and holds this run."""
    config = recipe.output.wandb
    if config is None:
        return []
    rank, _ = process_rank()
    # Rank zero alone logs.
    identity = {"id": run_id(config.group, recipe.name, folder), "resume": "allow"} if rank == 0 else {}
    return [
        LenientWandBLogger(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=recipe.name,
            tags=list(config.tags),
            init_kwargs={
                "mode": config.mode,
                "config": recipe.model_dump(mode="json"),
                "settings": settings(),
                **identity,
            },
        )
    ]


def join_ranks(device: torch.device) -> None:
    """Form the process group of the ranks that a launcher started."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.initialize_dist("gpu" if device.type == "cuda" else "cpu")


def _agree_on_start(start: Start, folder: Path) -> None:
    found = dist.all_gather_object(start.checkpoint.name if start.checkpoint else None)
    if len(set(found)) > 1:
        raise ValueError(
            f"output.folder: the ranks find different checkpoints in {folder} ({', '.join(map(str, found))}); to "
            "resume, it must be on a file system that all of them share"
        )


def torch_device(name: str) -> torch.device:
    """Where a recipe's ``device`` is on this machine and rank.

    Raises:
        ValueError: ``gpu`` where there is none.
    """
    available = torch.cuda.is_available()
    if name == "gpu" and not available:
        raise ValueError("device: gpu was asked for and PyTorch sees none; use device=cpu or device=auto")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
