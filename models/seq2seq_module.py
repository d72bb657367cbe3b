"""The LightningModule: one training step, one validation step, and what they measure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.adapters.rank_allocation import RANKS_KEY, RankAllocation, rank_allocation
from models.adapters.tuning import adapter_of, own_names
from models.losses.contrastive import Contrastive
from models.losses.joint import SUMS, Joint, JointMeter, PairLoss, pair_figures
from models.losses.objective import Objective
from models.meter import StepMeter, mixed_figures, shape_words
from models.optimizers.averages import AveragedWeights, averaged_weights
from models.optimizers.build import OPTIMIZER_ROWS, build_optimizer, state_memory
from models.optimizers.schedules import Plateau, build_scheduler
from models.optimizers.settings import MEAN_KEY, PLATEAU_COUNTS, PLATEAU_KEY, TRAINED_KEY, OptimSettings
from models.retrieval.ranking import RankingMeter
from models.switch.routers import RouterPass, collected, figures_of, sums_of, switch_layers
from utils.errors import NotFiniteError


@dataclass(frozen=True)
class ModuleOptions:
    """What the module needs besides the settings of the optimizer."""

    seed: int
    total_steps: int  # optimizer steps of the schedule
    accumulate: int  # micro-batches of an optimizer step on each rank
    log_every: int  # optimizer steps
    validated: tuple[str, ...] = ("",)  # the tasks that have validation rows, in the order of their loaders


def micro_batch_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """The random seed of one micro-batch: position alone decides it, so a resume needs no stored random state."""
    text = f"{seed} {epoch} {batch} {rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Seq2SeqModule(pl.LightningModule):
    """An encoder-decoder in training.

    The loss of a micro-batch is the sum of its tokens' losses divided by the target tokens of the whole
    optimizer step over all ranks (known from the plan), in both sums times the weights that rows may have:
    accumulation, more devices and one big batch give the same gradient. (Of retrieval it is a sum over queries; the
    losses of a mixture's routers and of pairs beside the texts are sums over rows.) Nothing in `training_step` waits
    for the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optim: OptimSettings,
        options: ModuleOptions,
        grad_norm: Callable[[Sequence[Tensor]], Tensor] | None,
        objective: Objective | Contrastive | Joint,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.optim = optim
        self.options = options
        self.grad_norm = grad_norm  # of the whole gradient, however the processes share it; None = the strategy clips
        self.objective = objective
        self.switch_layers = switch_layers(model)
        self.meter = StepMeter(objective.encoder_alone)
        self.validation_meters: list[StepMeter | RankingMeter | JointMeter] = []  # of each loader
        self.validation: dict[str, float] = {}  # metric name -> value of the latest validation
        # Some (source, reference, prediction) of the latest validation, by the name that they are shown under.
        self.samples: dict[str, list[tuple[str, str, str]]] = {}
        self.step_learning_rate: float | None = None  # of the latest step; None = adafactor's own
        self.between_batches: Callable[[], None] = lambda: None  # of a validation, as often on every rank
        self.batch_shape = ""  # of the latest batch, in words
        self.plateau = Plateau(optim.plateau_patience) if optim.lr_scheduler == "plateau" else None
        self.averages: AveragedWeights | None = None
        self._saved_mean: dict[str, Tensor] = {}  # of a run that goes on, until `averages` has it
        self.ranks: RankAllocation | None = None
        self._saved_ranks: dict[str, dict[str, Tensor]] = {}  # likewise, until `ranks` has them
        self._hyperparameters: list[dict[str, Any]] = []  # of the optimizer's groups, as the flags have them
        self.strict_loading = adapter_of(model) is None  # else a checkpoint has the adapter's weights only

    # ---- training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.objective.begin_step(self.model, batch, lambda later: self._seed(batch_idx + later))
        torch.manual_seed(self._seed(batch_idx))
        loss_sum, of_rows = self._step_losses(batch)
        self.meter.add_batch(batch, loss_sum.detach())
        # Lightning divides by the accumulation and DDP averages over the ranks: undo both.
        share: float = self.options.accumulate * self.trainer.world_size
        loss = loss_sum * (share / (batch["step_target_tokens"] or 1))
        if of_rows:
            self.meter.add_row_sums(of_rows.figures())
            loss = loss + of_rows.loss() * (share / batch["step_rows"])
        return loss

    def _seed(self, batch_idx: int) -> int:
        return micro_batch_seed(self.options.seed, self.current_epoch, batch_idx, self.global_rank)

    def on_fit_start(self) -> None:
        if self.objective.teacher is not None:  # no part of this module: neither trained, shared nor saved
            self.objective.teacher.model.to(self.trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """After a resume: rates and decay are those of the flags (more epochs, -resume_force), not the saved ones."""
        optimizer = self.trainer.optimizers[0]
        for group, hyperparameters in zip(optimizer.param_groups, self._hyperparameters, strict=True):
            group.update(hyperparameters)
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            self._set_rates(scheduler)

    def _set_rates(self, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Set the rates of the next step."""
        groups = scheduler.optimizer.param_groups
        for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
        rates = [group["lr"] for group in groups]
        scheduler.load_state_dict({**scheduler.state_dict(), "_last_lr": rates})  # saved again before any step

    def note_validation(self, better: bool) -> None:
        """Take up, from the next step on, whether the monitored figure was better than all before: for plateau."""
        scheduler = self.lr_schedulers()
        if self.plateau is not None and isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            self.plateau.note(better)
            self._set_rates(scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a model with an adapter the weights of that are saved, and nothing else."""
        if adapter_of(self.model):
            own = [f"model.{name}" for name in own_names(self.model)]
            checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in own}
        if self.plateau is not None:
            checkpoint[PLATEAU_KEY] = {name: getattr(self.plateau, name) for name in PLATEAU_COUNTS}
        if self.ranks is not None:
            checkpoint[RANKS_KEY] = self.ranks.state()
        if self.averages is not None:
            names = checkpoint["state_dict"].keys()
            for key, mean in (("state_dict", True), (TRAINED_KEY, False)):
                with self.averages.switched(to_mean=mean):
                    checkpoint[key] = {name: value for name, value in self.state_dict().items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.plateau is not None and PLATEAU_KEY in checkpoint:
            self.plateau = Plateau(self.optim.plateau_patience, **checkpoint[PLATEAU_KEY])
        self._saved_mean = checkpoint.get(MEAN_KEY, {})
        self._saved_ranks = checkpoint.get(RANKS_KEY, {})

    def try_batch(self, batch: dict[str, Any]) -> None:
        """Go through a training step of `batch` and forget it: it needs the memory that training needs.

        The optimizer's state is there from the first step on; until then as much memory stands for it.
        """
        optimizer: torch.optim.Optimizer = self.trainer.optimizers[0]
        self.go_through(batch, [] if optimizer.state else state_memory(self.model, self.optim))
        optimizer.zero_grad()

    def go_through(self, batch: dict[str, Any], state: list[Tensor]) -> None:
        """The passes of a training step, forward and backward, while there is `state`."""
        loss, of_rows = self._step_losses(batch)
        (loss + of_rows.loss() if of_rows else loss).backward()  # type: ignore[no-untyped-call]
        del state

    def _step_losses(self, batch: dict[str, Any]) -> tuple[Tensor, RouterPass | PairLoss | None]:
        """The loss of a micro-batch, and what is a sum over its rows: what the routers of a mixture of experts add, or
        the pairs of a joint loss."""
        if isinstance(self.objective, Joint):
            of_pairs = self.objective.of_pairs(self.model, batch)
            return self._loss_sum(batch)[0], of_pairs
        if not self.switch_layers:
            return self._loss_sum(batch)[0], None
        routers = RouterPass(self.model.config, len(batch["input_ids"]), batch["num_rows"])
        with collected([*self.switch_layers.values()], routers):
            loss_sum: Tensor = self._loss_sum(batch)[0]
        return loss_sum, routers

    @property
    def num_row_sums(self) -> int:
        """How many `StepMeter.row_sums` there are."""
        return SUMS if isinstance(self.objective, Joint) else sums_of(self.switch_layers)

    def row_figures(self, sums: Sequence[float], rows: int) -> dict[str, float]:
        """Figures by name, from the row sums over `rows` rows."""
        if isinstance(self.objective, Joint):
            return pair_figures(sums, rows)
        return figures_of(sums, [*self.switch_layers], rows)

    def _loss_sum(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Of a batch in training the sum of its losses alone, in validation what the meter of that takes."""
        self.batch_shape = shape_words(batch)
        if self.training:
            return (self.objective(self.model, batch),)
        return self.objective.validate(self.model, batch)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,  # noqa: ARG002 (ours comes from the flags)
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002
    ) -> None:
        if self.grad_norm is None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        clip = 0.0 if OPTIMIZER_ROWS[self.optim.optim].clips else self.optim.grad_clip
        if clip or (self.trainer.global_step + 1) % self.options.log_every == 0:
            norm = self.grad_norm(gradients)
            if self.trainer.precision != "16-mixed":  # there an infinite norm is the scaler's daily work
                self.meter.gradient_norm = norm
            if clip:
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        rate = optimizer.param_groups[0]["lr"]
        self.step_learning_rate = None if rate is None else float(rate)
        if self.ranks is not None:
            self.ranks.regularise()

    def configure_optimizers(self) -> Any:
        optim = self.optim
        fused = self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.model, optim, fused=fused)
        scheduler = build_scheduler(
            optimizer, optim, self.options.total_steps, lambda: self.plateau.reductions if self.plateau else 0
        )
        self.averages = averaged_weights(self.model, optim, optimizer, self._saved_mean)
        self.ranks = rank_allocation(self.model, self.options.total_steps, self._saved_ranks)
        self._saved_mean, self._saved_ranks = {}, {}
        changing = {"params", *OPTIMIZER_ROWS[optim.optim].counts}
        self._hyperparameters = [
            {name: value for name, value in group.items() if name not in changing} for group in optimizer.param_groups
        ]
        if scheduler is None:  # adafactor's own relative step
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ranks is not None:
            self.ranks.update(self.trainer.global_step + 1)
        if self.averages is not None:
            self.averages.update(self.trainer.global_step + 1)

    # ---- validation

    def averaged(self) -> AbstractContextManager[None]:
        """The model with the weights that are validated and exported."""
        return nullcontext() if self.averages is None else self.averages.switched()

    def on_validation_start(self) -> None:
        if self.averages is not None:
            self.averages.switch(to_mean=True)

    def on_validation_end(self) -> None:
        """The trained weights again, when all callbacks are done with the mean."""
        if self.averages is not None:
            self.averages.switch(to_mean=False)

    def on_validation_epoch_start(self) -> None:
        self.validation_meters = [self.objective.validation_meter() for _ in self.options.validated]
        self.raise_if_not_finite()

    def validation_step(
        self,
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002 (Lightning's signature)
        dataloader_idx: int = 0,
    ) -> None:
        self.between_batches()
        self.validation_meters[dataloader_idx].add_batch(batch, *self._loss_sum(batch))

    def on_validation_epoch_end(self) -> None:
        figures = [meter.figures(self.device, self.trainer.world_size) for meter in self.validation_meters]
        self.validation = mixed_figures(dict(zip(self.options.validated, figures, strict=True)))

    # ---- health

    def raise_if_not_finite(self) -> None:
        """Stop the run, on every rank alike, when a loss or gradient was NaN or infinite; waits for the device."""
        step = self.meter.first_bad_step(self.device, self.trainer.world_size)
        if step is None:
            return
        raise NotFiniteError(
            f"the loss or the gradient became NaN or infinite at optimizer step {step}; best/, last/ and the"
            " checkpoints are as they were before. Likely causes: a learning rate that is too high (try a tenth of"
            " -learning_rate, or -warmup_steps), fp16 arithmetic (use -float_precision bf16 or 32), or a damaged"
            " -init_model."
        )
