"""The training loop: a model, images and a recipe in, checkpoints in the published layout out.

A `Trainer` trains one model, in one process or in each of those torchrun started, and continues an interrupted run to
the same result.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from univ import files, runs
from univ.data import dataset_name
from univ.data.loaders import TrainingBatches
from univ.errors import InputError
from univ.models import Classifier, checkpoints
from univ.models.layout import channels_last
from univ.models.precision import arithmetic, training_arithmetic
from univ.runs import Distributed
from univ.training.evaluation import LOSS_SCALE, AttackTarget, Score, Totals, evaluate, random_starts
from univ.training.log import open_log
from univ.training.recipe import Data, Recipe, Saving, differences

BAR_STEPS = 25  # steps between looks at the device's totals: each look waits for the device

Start = tuple[Path, Mapping[str, Any]]
"""Path and content of the checkpoint a run goes on from, as `checkpoints.newest_readable` gives them."""


class Trainer:
    """A model in training: what lives from step to step, and what of it a checkpoint keeps.

    Every process passes the same arguments but its `process`. Together they take the steps a single process would
    take at the same batch size, up to batch norm, which sees each process's images only (`Recipe.sync_bn`); its
    running statistics are averaged over the processes after every step.

    Args:
        model: moved to `process.device`, in channels-last layout; it holds the last epoch's weights afterwards.
        compile: torch.compile the network.
        quiet: no progress bars.

    Raises:
        InputError: sync_bn without CUDA, or a batch that leaves a process less than two images.
    """

    def __init__(
        self,
        model: Classifier,
        data: Data,
        recipe: Recipe,
        saving: Saving,
        process: Distributed,
        *,
        compile: bool = False,
        quiet: bool = False,
    ) -> None:
        device = process.device
        self.data, self.recipe, self.saving, self.process = data, recipe, saving, process
        self.quiet = quiet or not process.is_main
        if recipe.batch_size < 2 * process.world_size:
            raise InputError(
                f"a batch of {recipe.batch_size} leaves a process less than the 2 images batch norm needs: there are "
                f"{process.world_size} processes (-b/--batch)"
            )
        if recipe.sync_bn and device.type != "cuda":
            raise InputError("--sync-bn needs CUDA: PyTorch has no synchronised batch norm for the CPU")
        if recipe.sync_bn and process.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(device).train()
        channels_last(self.model)
        self.network: nn.Module = torch.compile(self.model) if compile else self.model
        if process.world_size > 1:
            self.network = DistributedDataParallel(
                self.network,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # _average_statistics does better than taking the first process's
                gradient_as_bucket_view=True,
            )
        self.attack, self.target = None, None
        if recipe.attack is not None:
            self.attack = dataclasses.replace(recipe.attack, restarts=1)  # more are for evaluations
            self.target = AttackTarget(self.model, compile=compile)
        weights, settings = self.model.parameters(), {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        self.optimizer = torch.optim.SGD(weights, lr=recipe.lr, **settings, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.batches = TrainingBatches(
            data.train,
            recipe.batch_size,
            device=device,
            workers=data.workers,
            seed=recipe.seed,
            rank=process.rank,
            world_size=process.world_size,
            # batch norm cannot normalise a single value, so a last batch that leaves a process one image is left out
            drop_last=0 < len(data.train) % recipe.batch_size < 2 * process.world_size,
        )
        self.epoch = 0  # completed
        self.step = 0  # completed in the epoch after it
        self.totals = Totals(device)
        self.best: float | None = None
        self.scores: dict[str, float] = {}  # of the last epoch, if it was validated; as the published files name them
        self._saved_at = time.monotonic()

    def fit(self, start_from: Start | None = None) -> list[dict[str, Any]]:
        """Train to the last epoch and write the checkpoints.

        Args:
            start_from: a checkpoint of a run with this recipe is continued exactly, also within an epoch; of others
                the weights, the momentum and the epoch are taken, with a warning that says why.

        Returns:
            One record per epoch this call completed, the same as in log.jsonl.

        Raises:
            InputError: the checkpoint does not fit, or the loss became NaN or infinite.
        """
        recipe, saving, process = self.recipe, self.saving, self.process
        runs.seed_everything(recipe.seed + process.rank)  # dropout draws from the global generators, per process
        if start_from is not None:
            self.restore(*start_from)
        log, records = None, []
        if process.is_main:
            log = open_log(saving.folder, recipe.epochs, after=self.epoch, tensorboard=saving.tensorboard)
        with training_arithmetic(recipe.precision, process.device):
            for epoch in range(self.epoch + 1, recipe.epochs + 1):
                began = time.monotonic()
                trained = self.train_epoch(epoch)
                validated, best = self.validate(epoch)
                seconds = time.monotonic() - began
                times = {"seconds": seconds, "seconds_left": seconds * (recipe.epochs - epoch)}
                records.append({"epoch": epoch, **trained, **validated, **times, "best": best})
                if log is not None:
                    log(records[-1])
                self.save(best=best, keep=saving.keeps(epoch))
        return records

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train from the current step to the end of `epoch` (from 1)."""
        began, first_step, images = time.monotonic(), self.step, 0
        self.batches.set_epoch(epoch - 1, first_step=first_step)
        steps, title = len(self.batches), f"epoch {epoch}/{self.recipe.epochs}"
        with tqdm(total=steps, initial=first_step, desc=title, unit="batch", leave=False, disable=self.quiet) as bar:
            for pixels, labels in self.batches:
                images += self.batches.global_size(self.step)
                rate = self.train_step(epoch, pixels, labels)
                self.step += 1
                bar.update()
                if self.step % BAR_STEPS == 0 and self.step < steps:
                    bar.set_postfix(loss=f"{self._check_loss(epoch).loss:.3f}", refresh=False)
                    self._save_within_epoch()
        trained = self._check_loss(epoch)
        speed = images / (time.monotonic() - began)
        self.epoch, self.step, self.totals = epoch, 0, Totals(self.process.device)
        totals = {"train_loss": trained.loss, "train_accuracy": trained.accuracy}
        return totals | {"lr": rate, "images_per_second": speed}

    def train_step(self, epoch: int, pixels: Tensor, labels: Tensor) -> float:
        """One step of the optimiser; returns its learning rate."""
        recipe, process = self.recipe, self.process
        rate = recipe.learning_rate((epoch - 1) * len(self.batches) + self.step, len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with arithmetic(recipe.precision, process.device):
            if self.attack is not None:
                keys = ("attack", recipe.seed, epoch, self.step, process.rank)
                starts = random_starts(self.attack, process.device, *keys)
                scale = LOSS_SCALE.get(recipe.precision, 1.0)
                pixels = self.attack(self.target.of_now(), pixels, labels, generator=starts, loss_scale=scale)
            logits = self.network(pixels)
        # DistributedDataParallel averages over processes: this makes it the mean over the images of all of them,
        # also where their shares differ by one
        loss = self.totals.add(logits, labels) * (process.world_size / self.batches.global_size(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if process.world_size > 1 and not recipe.sync_bn:
            _average_statistics(self.model)
        return rate

    def _check_loss(self, epoch: int) -> Score:
        """The training score so far in this epoch, over all processes."""
        score = Score.of(self.totals.over(self.process))
        if not math.isfinite(score.loss):
            raise InputError(
                f"training diverged: the loss is {score.loss} in epoch {epoch}, step {self.step}; lower --model-lr "
                f"(now {self.recipe.lr:g}) or choose another --precision (now {self.recipe.precision})"
            )
        return score

    def validate(self, epoch: int) -> tuple[dict[str, float], bool]:
        """Accuracies and losses, if they are due after `epoch`, and whether it is the best epoch so far."""
        self.scores = {}
        if not self.saving.validates(epoch, self.recipe.epochs):
            return {}, False
        clean, robust = evaluate(
            self.model,
            self.data.val,
            attack=self.recipe.attack,
            batch_size=self.recipe.batch_size,
            process=self.process,
            workers=self.data.workers,
            precision=self.recipe.precision,
            seed=self.recipe.seed,
            target=self.target,
            quiet=self.quiet,
        )
        validated = {"clean_loss": clean.loss, "clean_accuracy": clean.accuracy}
        self.scores = {"nat_prec1": clean.accuracy}
        if robust is not None:
            validated |= {"robust_loss": robust.loss, "robust_accuracy": robust.accuracy}
            self.scores = {"adv_prec1": robust.accuracy}
        (score,) = self.scores.values()
        best = self.best is None or score > self.best
        self.best = score if best else self.best
        return validated, best

    # checkpoints

    def save(self, *, best: bool = False, keep: bool = False) -> None:
        """Write checkpoint.pt.latest and, when asked for, the other two. Every process has to call it."""
        resume = {
            "recipe": dataclasses.asdict(self.recipe),
            "data": dict(self.data.identity),
            "steps_per_epoch": len(self.batches),
            "step": self.step,
            "totals": self.totals.over(self.process),
            "best": self.best,
            "scaler": self.scaler.state_dict(),
            "random_states": self.process.gather(checkpoints.random_state()),
        }
        self._saved_at = time.monotonic()
        if not self.process.is_main:
            return
        # latest comes last: whoever finds it finds the others too
        names = [checkpoints.BEST] * best + [f"{self.epoch}_checkpoint.pt"] * keep + [checkpoints.LATEST]
        first, *copies = [self.saving.folder / name for name in names]
        checkpoints.save_checkpoint(
            first,
            self.model,
            epoch=self.epoch,
            optimizer=self.optimizer.state_dict(),
            schedule=self._schedule_state(),
            **self.scores,
            arch=self.model.arch,
            train_set=dataset_name(self.model.train_set),
            resume=resume,
        )
        for path in copies:  # copies, not links: damage to one file must leave the others readable
            files.copy(first, path)

    def _save_within_epoch(self) -> None:
        """Write checkpoint.pt.latest if the last one is old; the first process's clock decides."""
        due = time.monotonic() - self._saved_at > 60 * self.saving.minutes
        if self.process.broadcast(due):
            self.save()

    def _schedule_state(self) -> dict[str, Any]:
        """What the StepLR of the original tools reads back; we compute the rate from the step."""
        steps = len(self.batches)
        return {
            "name": self.recipe.schedule,
            "step_size": self.recipe.step_epochs,
            "gamma": 0.1,
            "base_lrs": [self.recipe.lr],
            "last_epoch": self.epoch,
            "_last_lr": [self.recipe.learning_rate(self.epoch * steps, steps)],
        }

    def restore(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Continue from a checkpoint: exactly if it is of a run with this recipe, else from its epoch and weights."""
        checkpoints.load_weights(self.model, checkpoint["model"], path)
        self.epoch = checkpoints.epochs_of(checkpoint)
        self._restore_momentum(path, checkpoint.get("optimizer"))
        resume = checkpoint.get("resume")
        differing = differences(checkpoint, self.recipe, self.data.identity)
        if resume is None or differing or resume["steps_per_epoch"] != len(self.batches):
            reason = ", ".join(differing) or ("another number of images" if resume else "not written by this program")
            logger.warning("taking weights, momentum and epoch {} from {} ({})", self.epoch, path, reason)
            return
        self.step = resume["step"]
        if (self.saving.folder / checkpoints.BEST).exists():  # else this folder's best is still to come
            self.best = resume["best"]
        if self.process.is_main:  # the sums over all processes
            self.totals = Totals(self.process.device, resume["totals"])
        self.scaler.load_state_dict(resume["scaler"])
        states = resume["random_states"]
        if self.process.rank < len(states):  # more processes than before: the new ones start as seeded
            checkpoints.restore_random_state(states[self.process.rank])

    def _restore_momentum(self, path: Path, saved: Any) -> None:
        """The momentum buffers of a checkpoint; rates and decay are the recipe's."""
        weights = dict(enumerate(self.model.parameters()))
        state = saved.get("state") if isinstance(saved, Mapping) else None
        fits = isinstance(state, Mapping) and all(
            number in weights
            and isinstance(buffers, Mapping)
            and isinstance(buffers.get("momentum_buffer"), Tensor)
            and buffers["momentum_buffer"].shape == weights[number].shape
            for number, buffers in state.items()
        )
        if not fits:
            logger.warning("{} holds no momentum of this network: it starts at 0", path)
            return
        # in the weights' own layout: the fused step walks through the memory of both side by side
        state = {
            number: {"momentum_buffer": torch.empty_like(weights[number]).copy_(buffers["momentum_buffer"])}
            for number, buffers in state.items()
        }
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _average_statistics(model: nn.Module) -> None:
    """Batch norm's running statistics become their mean over the processes, in one message."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if not statistics:
        return
    flat = torch.cat(statistics)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    torch._foreach_copy_(statistics, list(flat.split([len(buffer) for buffer in statistics])))
