"""Standard and adversarial training: images and a recipe in, checkpoints in the published layout out.

`fit` trains one model, in one process or in each of those torchrun started, and continues an interrupted run to the
same result; `evaluate` measures clean and robust accuracy.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from univ import files, runs
from univ.attacks import Attack, at_least_float32
from univ.data import Images
from univ.data.loaders import Batches, TrainingBatches, stream
from univ.errors import InputError
from univ.files import schemas
from univ.models import Classifier, checkpoints
from univ.models.folding import fold_batchnorm
from univ.models.layout import channels_last
from univ.models.precision import arithmetic
from univ.runs import Distributed

BAR_STEPS = 25  # steps between looks at the device's totals: each look waits for the device
WARM_UP = 0.2  # share of the steps in which "onecycle" raises the learning rate
LOSS_SCALE_FP16 = 1024.0  # keeps the pixel gradients of an attack in fp16's range


@dataclass(frozen=True)
class Recipe:
    """What decides the weights that come out, besides data and architecture.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        lr: learning rate of SGD; with "onecycle" the highest one.
        weight_decay, momentum: of SGD.
        schedule: "step" divides the learning rate by 10 every `step_epochs` epochs; "onecycle" raises it linearly over
            the first fifth of the steps and lowers it to 0 along a cosine.
        attack: train on the images it makes instead of the clean ones; None: standard training.
        seed: of order, augmentation, dropout and random starts.
        precision: fp32, tf32, bf16 or fp16.
        sync_bn: batch norm over the images of all processes instead of each process's own (CUDA only).
    """

    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: Literal["step", "onecycle"] = "step"
    step_epochs: int = 30
    attack: Attack | None = None
    seed: int = 0
    precision: str = "fp32"
    sync_bn: bool = False

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of step `step`, counted from 0 over the whole training."""
        if self.schedule == "step":
            return self.lr * 0.1 ** (step // steps_per_epoch // self.step_epochs)
        total = self.epochs * steps_per_epoch
        warm = max(1, round(WARM_UP * total))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True)
class Data:
    """The images a run works on.

    Attributes:
        train: what is trained on, with its augmentation; from `univ.data.open_training`.
        val: what the best epoch is chosen on.
        workers: processes that decode images, where that is needed.
        identity: what tells these images, and how they are augmented, from others; kept in checkpoints.
    """

    train: Images
    val: Images
    workers: int = 0
    identity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Saving:
    """Where checkpoints go and when.

    Attributes:
        folder: holds checkpoint.pt.latest, checkpoint.pt.best, <epoch>_checkpoint.pt and log.jsonl.
        checkpoint_every: keep <epoch>_checkpoint.pt every so many epochs; 0: never.
        validate_every: measure the accuracies every so many epochs, and also at those checkpoints and in the last one.
        minutes: write checkpoint.pt.latest within an epoch when so much time has passed since the last one; it is
            written at the end of every epoch in any case.
        tensorboard: write TensorBoard curves to <folder>/tensorboard.
    """

    folder: Path
    checkpoint_every: int = 5
    validate_every: int = 5
    minutes: float = 30.0
    tensorboard: bool = True

    def keeps(self, epoch: int) -> bool:
        """Whether <epoch>_checkpoint.pt is written; epochs count from 1."""
        return self.checkpoint_every > 0 and epoch % self.checkpoint_every == 0

    def validates(self, epoch: int, last: int) -> bool:
        """Whether the accuracies are measured after `epoch`."""
        return epoch == last or epoch % self.validate_every == 0 or self.keeps(epoch)


@dataclass(frozen=True)
class Score:
    """What a model reaches on a set of images: accuracy in percent, mean cross-entropy, number of images."""

    accuracy: float
    loss: float
    images: int

    @classmethod
    def of(cls, totals: Tensor) -> "Score":
        """From (3,) sums of losses, of correct predictions and of images."""
        loss, correct, count = totals.tolist()
        return cls(100 * correct / max(count, 1), loss / max(count, 1), round(count))


class Totals:
    """Sums of losses and correct predictions, kept on the device so that counting does not wait for it."""

    def __init__(self, device: torch.device, start: Tensor | None = None) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device) if start is None else start.to(device)

    def add(self, logits: Tensor, labels: Tensor, loss_sum: Tensor) -> None:
        correct = (logits.argmax(dim=1) == labels).sum()
        self.sums += torch.stack([loss_sum.double(), correct.double(), torch.full_like(loss_sum, len(labels)).double()])

    def over(self, process: Distributed) -> Tensor:
        """The sums over all processes, (3,) on the CPU; those of this process stay as they are."""
        return process.all_reduce_sum(self.sums.clone()).cpu()


class AttackTarget:
    """The network as an attack sees it: fixed, in evaluation mode, its batch norms folded into the convolutions.

    `of_now` repeats the folding with what the weights have become, which costs little against what the attack saves.
    """

    def __init__(self, classifier: Classifier, *, compile: bool = False) -> None:
        self._classifier = classifier
        self._folded = fold_batchnorm(classifier).to(memory_format=torch.channels_last)
        self._network = torch.compile(self._folded) if compile else self._folded

    def of_now(self) -> nn.Module:
        """The network to attack, with the classifier's weights of this moment."""
        self._folded.update(self._classifier)
        self._folded.model.train()  # where networks drop what they cached in evaluation mode, from earlier weights
        self._folded.model.eval()
        return self._network


def evaluate(
    model: Classifier,
    images: Images,
    *,
    attack: Attack | None = None,
    batch_size: int = 256,
    process: Distributed,
    workers: int = 0,
    precision: str = "fp32",
    seed: int = 0,
    target: AttackTarget | None = None,
    quiet: bool = False,
) -> tuple[Score, Score | None]:
    """Clean and robust accuracy, in one pass over the images, each counted once however many processes share them.

    Args:
        model: on `process.device`; in evaluation mode meanwhile.
        images: read without augmentation.
        attack: threat model of the robust accuracy; None leaves it out.
        seed: of the attack's random starts.
        target: what to attack, where the caller has it already.

    Returns:
        Score on the clean images, and on the attacked ones (None without an attack).

    Raises:
        InputError: a loss is NaN or infinite.
    """
    device = process.device
    mine = torch.arange(process.rank, len(images), process.world_size)
    share = max(1, batch_size // process.world_size)
    loader = Batches(images, share, device=device, workers=workers, indices=mine)
    clean, robust = Totals(device), Totals(device)
    if attack is not None:
        network = (target or AttackTarget(model)).of_now()
        generator = _generator(device, "evaluation", seed, process.rank) if attack.random_start else None
    training = model.training
    model.eval()
    try:
        for pixels, labels in tqdm(loader, desc="evaluation", unit="batch", leave=False, disable=quiet):
            with arithmetic(precision, device):
                if attack is not None:
                    adversarial = attack(
                        network, pixels, labels, generator=generator, loss_scale=_loss_scale(precision)
                    )
                with torch.no_grad():
                    _count(clean, model(pixels), labels)
                    if attack is not None:
                        _count(robust, model(adversarial), labels)
    finally:
        model.train(training)
    scores = [Score.of(totals.over(process)) for totals in ([clean] if attack is None else [clean, robust])]
    if not all(math.isfinite(score.loss) for score in scores):
        raise InputError(
            f"{model.arch}: the logits of the evaluation are NaN or infinite (a broken checkpoint, or --precision too "
            f"low, now {precision})"
        )
    return scores[0], scores[1] if attack is not None else None


def _count(totals: Totals, logits: Tensor, labels: Tensor) -> None:
    totals.add(logits, labels, functional.cross_entropy(at_least_float32(logits), labels, reduction="sum"))


def _loss_scale(precision: str) -> float:
    return LOSS_SCALE_FP16 if precision == "fp16" else 1.0


def _generator(device: torch.device, *keys: int | str) -> torch.Generator:
    """A generator on the device whose numbers depend on the keys alone."""
    return torch.Generator(device).manual_seed(stream(*keys).initial_seed())


# --- training -------------------------------------------------------------------------------------------------------


def fit(
    model: Classifier,
    data: Data,
    recipe: Recipe,
    saving: Saving,
    *,
    process: Distributed,
    start_from: tuple[Path, Mapping[str, Any]] | None = None,
    compile: bool = False,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train a model and write its checkpoints; the model holds the last epoch's weights afterwards.

    Every process passes the same arguments but its `process`. Together they take the steps a single process would
    take at the same batch size, up to batch norm, which sees each process's images only (`Recipe.sync_bn`); its
    running statistics are averaged over the processes after every step.

    Args:
        model: new, or to be overwritten by `start_from`. Moved to `process.device`, in channels-last layout.
        start_from: path and content of a checkpoint, as `checkpoints.newest_readable` gives them. One of a run with
            this recipe continues it exactly, also within an epoch; of others the weights, the momentum and the epoch
            are taken, with a warning that says why.
        compile: torch.compile the network.
        quiet: no progress bars.

    Returns:
        One record per epoch this call completed, the same as in log.jsonl.

    Raises:
        InputError: the checkpoint does not fit, sync_bn without CUDA, a batch that leaves a process less than two
            images, or the loss became NaN or infinite.
    """
    run = Run(model, data, recipe, saving, process, compile=compile, quiet=quiet)
    runs.seed_everything(recipe.seed + process.rank)  # dropout draws from the global generators, per process
    check_start(start_from, process)
    if start_from is not None:
        run.restore(*start_from)
    records = []
    tf32 = "fp32" if recipe.precision == "fp32" else "tf32"  # holds for backward passes too; autocast is per step
    with run.logs() as write_record, arithmetic(tf32, process.device), _cudnn(recipe.precision):
        for epoch in range(run.epoch + 1, recipe.epochs + 1):
            record = run.train_epoch(epoch)
            write_record(record)
            run.save(best=record["best"], keep=saving.keeps(epoch))
            records.append(record)
    return records


def check_start(start_from: tuple[Path, Mapping[str, Any]] | None, process: Distributed) -> None:
    """See that all processes start from the same epoch; every process has to call it.

    Raises:
        InputError: some found another checkpoint, or none, as on nodes that do not share --save.
    """
    found = process.gather(None if start_from is None else int(start_from[1].get("epoch") or 0))
    if len(set(found)) > 1:
        each = ", ".join("none" if epoch is None else f"epoch {epoch}" for epoch in found)
        raise InputError(f"the processes found different checkpoints, by rank: {each}; they must share -s/--save")


@contextlib.contextmanager
def _cudnn(precision: str) -> Iterator[None]:
    """Let cuDNN choose its fastest algorithms by trial, except for fp32, whose runs are to be repeatable."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = precision != "fp32"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Run:
    """One training run: what lives from step to step, and what of it a checkpoint keeps."""

    def __init__(
        self,
        model: Classifier,
        data: Data,
        recipe: Recipe,
        saving: Saving,
        process: Distributed,
        *,
        compile: bool,
        quiet: bool,
    ) -> None:
        device = process.device
        self.data, self.recipe, self.saving, self.process = data, recipe, saving, process
        self.quiet = quiet or not process.is_main
        if recipe.batch_size < 2 * process.world_size:
            raise InputError(
                f"a batch of {recipe.batch_size} leaves a process less than the 2 images batch norm needs: there are "
                f"{process.world_size} processes (-b/--batch)"
            )
        if recipe.sync_bn:
            if device.type != "cuda":
                raise InputError("--sync-bn needs CUDA: PyTorch has no synchronised batch norm for the CPU")
            if process.world_size > 1:
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(device).train()
        channels_last(self.model)
        network: nn.Module = torch.compile(self.model) if compile else self.model
        if process.world_size > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # _average_statistics does better than taking the first process's
                gradient_as_bucket_view=True,
            )
        self.network = network
        self.target = AttackTarget(self.model, compile=compile) if recipe.attack is not None else None
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
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
        self.scores: dict[str, float] = {}
        self._saved_at = time.monotonic()

    # one epoch

    def train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train from the current step to the end of `epoch` (from 1) and, where it is due, validate."""
        recipe, process = self.recipe, self.process
        began, first_step = time.monotonic(), self.step
        self.batches.set_epoch(epoch - 1, first_step=first_step)
        bar = tqdm(
            total=len(self.batches),
            initial=first_step,
            desc=f"epoch {epoch}/{recipe.epochs}",
            unit="batch",
            leave=False,
            disable=self.quiet,
        )
        images_seen = 0
        with bar:
            for pixels, labels in self.batches:
                images_seen += self.batches.global_size(self.step)
                rate = self.train_step(epoch, pixels, labels)
                self.step += 1
                bar.update()
                if self.step % BAR_STEPS == 0 and self.step < len(self.batches):
                    bar.set_postfix(loss=f"{self._check_loss(epoch).loss:.3f}", refresh=False)
                    self._save_within_epoch()
        trained = self._check_loss(epoch)
        seconds = time.monotonic() - began
        self.epoch, self.step, self.totals = epoch, 0, Totals(process.device)
        record = {
            "epoch": epoch,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "lr": rate,
            "images_per_second": images_seen / seconds,
        }
        self.scores, is_best = {}, False
        if self.saving.validates(epoch, recipe.epochs):
            clean, robust = self._validate()
            record |= {"clean_loss": clean.loss, "clean_accuracy": clean.accuracy}
            self.scores = {"nat_prec1": clean.accuracy}
            if robust is not None:
                record |= {"robust_loss": robust.loss, "robust_accuracy": robust.accuracy}
                self.scores = {"adv_prec1": robust.accuracy}
            (score,) = self.scores.values()
            is_best = self.best is None or score > self.best
            self.best = score if is_best else self.best
        seconds = time.monotonic() - began
        return record | {"seconds": seconds, "seconds_left": seconds * (recipe.epochs - epoch), "best": is_best}

    def train_step(self, epoch: int, pixels: Tensor, labels: Tensor) -> float:
        """One step of the optimiser; returns its learning rate."""
        recipe, process = self.recipe, self.process
        rate = recipe.learning_rate((epoch - 1) * len(self.batches) + self.step, len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with arithmetic(recipe.precision, process.device):
            if recipe.attack is not None:
                pixels = self._attacked(epoch, pixels, labels)
            logits = self.network(pixels)
        loss_sum = functional.cross_entropy(at_least_float32(logits), labels, reduction="sum")
        # DistributedDataParallel averages over processes: this makes it the mean over the images of all of them,
        # also where their shares differ by one
        loss = loss_sum * (process.world_size / self.batches.global_size(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if process.world_size > 1 and not recipe.sync_bn:
            _average_statistics(self.model)
        self.totals.add(logits.detach(), labels, loss_sum.detach())
        return rate

    def _attacked(self, epoch: int, pixels: Tensor, labels: Tensor) -> Tensor:
        attack, process, seed = self.recipe.attack.once(), self.process, self.recipe.seed
        generator = None
        if attack.random_start:
            generator = _generator(process.device, "attack", seed, epoch, self.step, process.rank)
        scale = _loss_scale(self.recipe.precision)
        return attack(self.target.of_now(), pixels, labels, generator=generator, loss_scale=scale)

    def _check_loss(self, epoch: int) -> Score:
        """The training score so far in this epoch, over all processes."""
        score = Score.of(self.totals.over(self.process))
        if not math.isfinite(score.loss):
            raise InputError(
                f"training diverged: the loss is {score.loss} in epoch {epoch}, step {self.step}; lower --model-lr "
                f"(now {self.recipe.lr:g}) or choose another --precision (now {self.recipe.precision})"
            )
        return score

    def _validate(self) -> tuple[Score, Score | None]:
        return evaluate(
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

    # logs

    @contextlib.contextmanager
    def logs(self) -> Iterator[Any]:
        """Yield a function that logs an epoch's record to the terminal, log.jsonl and TensorBoard."""
        if not self.process.is_main:
            yield lambda record: None
            return
        path = self.saving.folder / "log.jsonl"
        # of an interrupted run, the epochs that are done again
        earlier = _read_log(path) if path.exists() and self.epoch else []
        files.write_text(path, "".join(f"{line}\n" for epoch, line in earlier if epoch <= self.epoch))
        board = self.saving.folder / "tensorboard"
        add_scalar = runs.scalars(board, purge_step=self.epoch + 1) if self.saving.tensorboard else None

        def write(record: dict[str, Any]) -> None:
            logger.info("{}", _line(record, self.recipe.epochs))
            files.append_text(path, json.dumps(record) + "\n")
            for name, value in record.items() if add_scalar is not None else ():
                if name not in ("epoch", "best"):
                    add_scalar(name, value, record["epoch"])

        yield write

    # checkpoints

    def save(self, *, best: bool = False, keep: bool = False) -> None:
        """Write checkpoint.pt.latest and, when asked for, the other two. Every process has to call it."""
        random_states = self.process.gather(checkpoints.random_state())
        totals = self.totals.over(self.process)
        self._saved_at = time.monotonic()
        if not self.process.is_main:
            return
        resume = {
            "recipe": dataclasses.asdict(self.recipe),
            "data": dict(self.data.identity),
            "steps_per_epoch": len(self.batches),
            "step": self.step,
            "totals": totals,
            "best": self.best,
            "scaler": self.scaler.state_dict(),
            "random_states": random_states,
        }
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
            train_set=self.model.train_set,
            resume=resume,
        )
        for path in copies:  # copies, not links: damage to one file must leave the others readable
            files.copy(first, path)

    def _schedule_state(self) -> dict[str, Any]:
        """What the StepLR of the original tools reads back; we compute the rate from the step."""
        return {
            "name": self.recipe.schedule,
            "step_size": self.recipe.step_epochs,
            "gamma": 0.1,
            "base_lrs": [self.recipe.lr],
            "last_epoch": self.epoch,
            "_last_lr": [self.recipe.learning_rate(self.epoch * len(self.batches), len(self.batches))],
        }

    def _save_within_epoch(self) -> None:
        """Write checkpoint.pt.latest if the last one is old; the first process's clock decides."""
        due = time.monotonic() - self._saved_at > 60 * self.saving.minutes
        if self.process.broadcast(due):
            self.save()

    def restore(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Continue from a checkpoint: exactly if it is of a run with this recipe, else from its epoch and weights."""
        checkpoints.load_weights(self.model, checkpoint["model"], path)
        self.epoch = int(checkpoint.get("epoch") or 0)
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
        own = self.optimizer.state_dict()
        state = saved.get("state") if isinstance(saved, Mapping) else None
        weights = list(self.model.parameters())
        fits = isinstance(state, Mapping) and all(
            isinstance(number, int)
            and 0 <= number < len(weights)
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
            number: {**buffers, "momentum_buffer": torch.empty_like(weight).copy_(buffers["momentum_buffer"])}
            for number, buffers in state.items()
            for weight in (weights[number],)
        }
        self.optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def differences(checkpoint: Mapping[str, Any], recipe: Recipe, data: Mapping[str, str] | None = None) -> list[str]:
    """What differs between how a checkpoint of ours was made and `recipe`, in words; empty if nothing.

    The images are compared where both sides say which they are (`Data.identity`). With the "step" schedule the number
    of epochs may differ: it changes nothing of the epochs that are done.
    """
    resume = checkpoint.get("resume")
    if resume is None:
        return []
    before, now = _flat(resume["recipe"]), _flat(dataclasses.asdict(recipe))
    if data and resume.get("data"):
        before, now = before | resume["data"], now | data
    free = {"epochs"} if recipe.schedule == "step" else set()
    return [
        f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]


def _read_log(path: Path) -> list[tuple[int, str]]:
    """Epoch and line of every record of a log; a damaged line, such as the last one after a crash, is left out."""
    lines = []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        try:
            lines.append((schemas.parse_json(line, schemas.EpochRecord, f"{path}, line {number},").epoch, line))
        except InputError as error:
            logger.warning("left out: {}", error)
    return lines


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    attack = recipe["attack"] or {}
    return {name: value for name, value in recipe.items() if name != "attack"} | {
        f"attack {name}": value for name, value in attack.items()
    }


def _average_statistics(model: nn.Module) -> None:
    """Batch norm's running statistics become their mean over the processes, in one message."""
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
    ]
    if not statistics:
        return
    flat = torch.cat(statistics)
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    torch._foreach_copy_(statistics, list(flat.split([len(buffer) for buffer in statistics])))


def _line(record: Mapping[str, Any], epochs: int) -> str:
    """An epoch's record as one line for people."""
    parts = [f"train loss {record['train_loss']:.3f}, accuracy {record['train_accuracy']:.2f} %"]
    if "clean_accuracy" in record:
        parts.append(f"validation {record['clean_accuracy']:.2f} % clean")
        if "robust_accuracy" in record:
            parts[-1] += f", {record['robust_accuracy']:.2f} % robust"
        parts[-1] += " (best so far)" if record["best"] else ""
    parts.append(f"lr {record['lr']:.2g}")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    if record["seconds_left"] > 0:
        parts.append(f"{_duration(record['seconds_left'])} left")
    return f"epoch {record['epoch']}/{epochs}: " + "; ".join(parts)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"
