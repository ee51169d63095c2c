"""What a training run consists of: built here, driven by loop.py, saved by saving.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..batch import Batch, BatchSpec, ViewSpec, whole_group
from ..encoders import build_encoder
from ..encoders.blocks import blocks_of, can_recompute, recompute_blocks
from ..encoders.image import check_encoder
from ..errors import RecipeError
from ..methods import Method, Output, build_method, check_method
from ..pipeline import Pipeline
from ..recipe import Recipe
from ..recipe.schema import TrainSection
from ..stream.checks import remainder_of
from .clipping import parameters_to_clip
from .compiling import Graphs, compile_forward
from .model_size import check_model_size
from .optimizers import build_optimizer
from .replicas import Parts, Sharded, check_shardable, gathered, replicate, shard
from .schedules import RatePlan
from .warm_start import WarmStart, fill, fill_method
from .world import keyed


@dataclass(frozen=True, slots=True)
class TrainRun:
    """The parts of a run. What changes from step to step changes inside them."""

    pipeline: Pipeline
    recipe: Recipe
    settings: TrainSection
    method: Method
    replica: nn.Module  # its DDP or FSDP wrapper; the method itself where there is one process
    optimizer: torch.optim.Optimizer
    clipped: list[list[nn.Parameter]]  # what `settings.clip` takes together
    scaler: torch.amp.GradScaler
    plan: RatePlan
    start: dict[str, str] | None = None  # the weights that it began with; None: random ones
    graphs: Graphs | None = None  # of the forward pass that were compiled; None: it is not

    @property
    def device(self) -> torch.device:
        """The method and its batches are on this device."""
        return self.pipeline.device

    def autocast(self) -> torch.autocast:
        """Set the precision of forward passes."""
        low = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, low, enabled=self.settings.precision != "fp32")

    def suited(self, batch: Batch) -> Batch:
        """The batch as the forward pass takes it: only autocast takes views of half precision."""
        return batch.in_float32() if self.settings.precision == "fp32" else batch

    def forward(self, batch: Batch) -> Output:
        """Give the method's output, in the precision of the run."""
        with self.autocast():
            made = self.replica(self.suited(batch))
        return Output(*made) if isinstance(made, Parts) else made

    @property
    def sharded(self) -> bool:
        """Each rank holds a part of each parameter."""
        return isinstance(self.replica, Sharded)

    def whole_encoder(self) -> nn.Module:
        """Give what is kept, to be evaluated; of a sharded run a copy, for which all ranks ask."""
        if not self.sharded:
            return self.method.encoder
        state = gathered(self.method.encoder.state_dict())
        assert self.recipe.train is not None
        with keyed("init", seed=self.recipe.stream.seed):
            twin = build_encoder(self.recipe.train.backbone, encoded_view(self.pipeline.spec))
        twin.load_state_dict(state)
        return twin.to(self.device)


def initial_method(
    recipe: Recipe,
    spec: BatchSpec,
    start: WarmStart | None = None,
    say: Callable[[str], None] = print,
) -> Method:
    """Make backbone and method of a recipe; the initial weights are a function of its seed.

    `start`: the backbone has these weights instead, and teachers are copies of it.

    Raises:
        RecipeError: no method or train section, or one that cannot be built or does not fit.
        ContractError: the recipe's batches cannot feed the method.
        StateError: the weights of `start` are not those of such a backbone.
    """
    if recipe.method is None or recipe.train is None:
        missing = "method" if recipe.method is None else "train"
        raise RecipeError(f"{recipe.path}: has no {missing!r} section; add it to train")
    backbone, entry, view = recipe.train.backbone, recipe.method, encoded_view(spec)
    check_model_size(recipe, lambda: build_method(entry, build_encoder(backbone, view), spec))
    with keyed("init", seed=recipe.stream.seed):
        encoder = build_encoder(backbone, view)
        if start is None:
            return build_method(entry, encoder, spec)
        say(fill(encoder, start))
        warm = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        method = build_method(entry, encoder, spec)
        fill_method(method, warm)
        return method


def check_names(recipe: Recipe) -> None:
    """Check names and settings of method and backbone, if the recipe has them; nothing is built.

    Raises:
        RecipeError: an unknown name or setting, one of a wrong type, or a size beyond use.
    """
    if recipe.method is not None:
        check_method(recipe.method)
    if recipe.train is not None:
        check_encoder(recipe.train.backbone)


def check_training(recipe: Recipe, spec: BatchSpec) -> None:
    """Check all that training makes of a recipe and its batches; without method or train, names.

    spec: of batches of any size; those of the recipe's own size are checked, on one rank.

    Method and optimizer are built without memory for their weights (torch's device `meta`), so a
    ViT-H takes as little as a ResNet-18; what cannot be built so, such as a user's own method that
    looks at its weights, is built as it is.

    Raises:
        RecipeError: as `check_names`, `check_length`, `initial_method` and `prepare_run` do, but
            for what depends on the device.
        ContractError: the recipe's batches cannot feed the method.
    """
    check_names(recipe)
    settings = recipe.train
    if recipe.method is None or settings is None:
        return
    size = recipe.stream.batch_size
    length = max(1, -(-(spec.epoch_size or 0) // size))
    check_length(settings, length, recipe.where("train", "accumulate"))
    epoch = length * size
    spec = replace(spec, size=size, global_size=size, epoch_size=epoch)
    try:
        with torch.device("meta"):
            method = initial_method(recipe, spec)
    except RuntimeError:
        method = initial_method(recipe, spec)
    scale = lr_scale(settings, spec.global_size)
    build_optimizer(settings.optimizer, method, scale=scale)
    parameters_to_clip(settings.clip, method, recipe.where("train", "clip"))
    check_large_model(method, settings, recipe)


def encoded_view(spec: BatchSpec) -> ViewSpec:
    """Find the views that the encoder is built for: the global ones, or the first group's."""
    return spec.views[whole_group(spec.views)]


def prepare_run(
    pipeline: Pipeline,
    method: Method,
    settings: TrainSection,
    start: dict[str, str] | None = None,
) -> TrainRun:
    """Put the method on the device and everything else around it.

    `start` tells which weights the method has, for the record.

    Raises:
        RecipeError: unknown optimizer or setting, fp16 without CUDA, no modules to clip, or
            batches of two sizes; or a run of no steps.
        SslpipeError: a distributed pipeline outside a process group.
    """
    recipe = pipeline.recipe.model_copy(update={"train": settings})
    if settings.precision == "fp16" and pipeline.device.type != "cuda":
        raise RecipeError(
            f"{recipe.where('train', 'precision')}: train.precision = 'fp16' needs a CUDA device, "
            f"this is {pipeline.device}; set bf16 or fp32"
        )
    if remainder_of(recipe) == "short":  # a queue would fail at the end of the epoch
        said = "remainder" if recipe.stream.remainder else "order"
        raise RecipeError(
            f"{recipe.where('stream', said)}: methods are built for one batch size, and "
            "stream.order and stream.remainder make a short last batch; set stream.remainder "
            "to wrap or drop"
        )
    method.train()
    check_large_model(method, settings, recipe)
    if settings.checkpoint_activations:
        recompute_blocks(method)
    graphs = compile_forward(method) if settings.compile else None
    replica = placed(method, pipeline, settings)
    scale = lr_scale(settings, pipeline.spec.global_size)
    optimizer = build_optimizer(settings.optimizer, method, scale=scale)
    return TrainRun(
        pipeline=pipeline,
        recipe=recipe,
        settings=settings,
        method=method,
        replica=replica,
        optimizer=optimizer,
        clipped=parameters_to_clip(settings.clip, method, recipe.where("train", "clip")),
        scaler=torch.amp.GradScaler(pipeline.device.type, enabled=settings.precision == "fp16"),
        plan=plan_of(settings, len(pipeline), optimizer),
        start=start,
        graphs=graphs,
    )


def check_large_model(method: Method, settings: TrainSection, recipe: Recipe) -> None:
    """Check that a method can be sharded and computed again, where settings ask for it.

    Raises:
        RecipeError: it cannot.
    """
    if settings.parallel == "fsdp":
        check_shardable(method, recipe.where("train", "parallel"))
    if settings.checkpoint_activations and not any(map(can_recompute, blocks_of(method))):
        where = recipe.where("train", "checkpoint_activations")
        raise RecipeError(
            f"{where}: train.checkpoint_activations: backbone {settings.backbone.name!r} has no "
            "blocks without batch norm, whose statistics would move twice; set it to false, or "
            "choose a ViT or another transformer"
        )


def placed(method: Method, pipeline: Pipeline, settings: TrainSection) -> nn.Module:
    """Put a method on its device, and on all ranks.

    Raises:
        SslpipeError: there is no process group, or a batch norm that cannot be joined.
    """
    if settings.parallel == "fsdp" and pipeline.world_size > 1:
        # each block moves to the device when it is cut, so that the whole need not fit there;
        # FSDP takes contiguous weights only
        return shard(method.to(memory_format=torch.contiguous_format), pipeline)
    move_module(method, pipeline.device)
    return replicate(method, pipeline)


def move_module(module: nn.Module, device: torch.device) -> None:
    """Move a module to the device that trains it: on CUDA with channels-last weights.

    They are what convolutions are faster on there. On CPUs with AVX-512 the channels-last backward
    of a 1x1 convolution of stride 2 with 8 to 16 channels can end the process (SIGSEGV): there,
    weights are contiguous, whatever they were.
    """
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    module.to(device, memory_format=layout)  # type: ignore[call-overload]


def lr_scale(settings: TrainSection, batch_size: int) -> float:
    """Compute what the recipe's lr is multiplied by: linear (Goyal et al. 2017), or a root."""
    ratio = batch_size * settings.accumulate / settings.lr_batch
    return math.sqrt(ratio) if settings.lr_rule == "sqrt" else ratio


def check_length(settings: TrainSection, length: int, where: str) -> None:
    """Check that `settings.epochs` epochs of `length` batches make a step.

    Raises:
        RecipeError: there are fewer batches than one step takes.
    """
    if settings.epochs * length < settings.accumulate:
        raise RecipeError(
            f"{where}: {settings.epochs} epochs of {length} batches are less than one step of "
            f"{settings.accumulate}; lower train.accumulate or raise train.epochs"
        )


def plan_of(settings: TrainSection, length: int, optimizer: torch.optim.Optimizer) -> RatePlan:
    """Plan the rates of a run of `settings.epochs` epochs of `length` batches.

    Raises:
        RecipeError: as `check_length`.
    """
    check_length(settings, length, "train")
    total = settings.epochs * length // settings.accumulate
    lr, ratio = optimizer.defaults["lr"], settings.final_lr_ratio
    return RatePlan(
        total=total,
        length=length,
        accumulate=settings.accumulate,
        schedule=settings.schedule,
        stretch=settings.schedule_stretch,
        warmup=min(round(settings.warmup_epochs * length / settings.accumulate), total),
        warmup_lr=settings.warmup_lr,
        lr=lr,
        final_lr=settings.final_lr if ratio is None else ratio * lr,
        milestones=settings.milestones,
        gamma=settings.gamma,
        weight_decay=optimizer.defaults["weight_decay"],
        final_weight_decay=settings.final_weight_decay,
    )
