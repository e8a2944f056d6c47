"""Training: schedules, exact resume, the best epoch, what is counted, and that adversarial training makes robust."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from univ.attacks import Attack
from univ.data import loaders, open_training
from univ.data.images import EncodedImages, TensorImages
from univ.data.selection import select
from univ.data.transforms import SmallImageAugmentation
from univ.errors import InputError
from univ.models import Classifier, build_model, checkpoints
from univ.models.architectures import DIGITS_ARCHS, Arch
from univ.models.folding import fold_batchnorm
from univ.models.layout import Strided1x1, channels_last
from univ.runs import Distributed
from univ.training import AttackTarget, Data, Recipe, Saving, Trainer, evaluate
from univ.training import loop as training
from univ.training.recipe import differences

ROOT = Path(__file__).resolve().parent.parent
CPU = Distributed(torch.device("cpu"))
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, weight_decay=5e-4, schedule="onecycle", seed=3)
ATTACK = Attack("l2", eps=0.5, step_size=0.3, steps=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small gain nothing from threads, and lose much where other processes are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(nn.Module):
    """Two convolutions with batch norm, dropout, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu().mean((2, 3))
        return self.head(self.dropout(x))


def tiny(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Tiny(10), Arch(Tiny, head="head"), "tiny", "digits", 10)


@pytest.fixture(scope="module")
def data() -> Data:
    train, val = open_training("digits")
    return Data(
        TensorImages(train.pixels[:150], train.labels[:150], name="some digits", augment=SmallImageAugmentation()),
        TensorImages(val.pixels[:70], val.labels[:70], name="other digits"),
    )


def train(data: Data, folder, recipe: Recipe = RECIPE, model: Classifier | None = None, **kwargs):
    model = model or tiny()
    saving = kwargs.pop("saving", Saving(folder, checkpoint_every=0, tensorboard=False))
    records = Trainer(model, data, recipe, saving, CPU, quiet=True).fit(**kwargs)
    return model, records


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# learning rates


def test_step_schedule_divides_by_ten():
    recipe = Recipe(lr=0.1, schedule="step", step_epochs=2, epochs=6)
    rates = [recipe.learning_rate(step, steps_per_epoch=3) for step in range(18)]
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 6 + [0.001] * 6)


def test_onecycle_schedule_rises_linearly_and_falls_along_a_cosine():
    recipe = Recipe(lr=0.1, schedule="onecycle", epochs=5)
    rates = [recipe.learning_rate(step, steps_per_epoch=4) for step in range(20)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])  # a fifth of the steps
    assert rates[4] == pytest.approx(0.1)
    assert rates[12] == pytest.approx(0.05)  # half of the way down
    assert 0 < rates[19] == pytest.approx(0.05 * (1 + math.cos(math.pi * 15 / 16)))


# evaluation


@pytest.mark.parametrize("batch_size", [7, 70, 1000])
def test_evaluation_counts_every_image_once(batch_size, data):
    model = tiny().train()
    clean, robust = evaluate(model, data.val, attack=ATTACK, batch_size=batch_size, process=CPU, quiet=True)
    assert model.training and model.model.norm1.training
    model.eval()
    images, labels = data.val.floats(slice(None)), data.val.labels
    for score, inputs in ((clean, images), (robust, ATTACK(model, images, labels))):
        logits = model(inputs)
        assert score.images == 70
        assert score.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
        assert score.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_without_an_attack_there_is_no_robust_accuracy(data):
    assert evaluate(tiny(), data.val, process=CPU, quiet=True)[1] is None


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_an_evaluation_of_a_broken_network_is_an_error(attack, data):
    model = tiny()
    model.model.head.weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="tiny: the logits of the evaluation are NaN or infinite"):
        evaluate(model, data.val, attack=attack, process=CPU, quiet=True)


def test_random_starts_of_an_evaluation_depend_on_the_seed_alone(data):
    model, attack = tiny(), dataclasses.replace(ATTACK, random_start=True)
    losses = [
        evaluate(model, data.val, attack=attack, process=CPU, seed=seed, quiet=True)[1].loss for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


# resuming

VARIANTS = {
    "standard": RECIPE,
    "step": dataclasses.replace(RECIPE, schedule="step", step_epochs=1),
    "adversarial": dataclasses.replace(RECIPE, attack=ATTACK),
    "random start": dataclasses.replace(RECIPE, attack=dataclasses.replace(ATTACK, norm="linf", random_start=True)),
}


class Stopped(Exception):
    pass


def interrupt(monkeypatch, when) -> None:
    """Make the run end with an exception right after the first checkpoint for which `when(run)` holds."""
    save = training.Trainer.save

    def save_and_stop(run, **kwargs):
        save(run, **kwargs)
        if when(run):
            raise Stopped

    monkeypatch.setattr(training.Trainer, "save", save_and_stop)


@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(recipe, data, tmp_path, monkeypatch):
    straight, records = train(data, tmp_path / "straight", recipe)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, lambda run: run.epoch == 1)
        train(data, tmp_path / "broken", recipe)
    torch.rand(17)  # whatever the new process drew before
    resumed, rest = train(
        data, tmp_path / "broken", recipe, tiny(seed=9), start_from=checkpoints.newest_readable(tmp_path / "broken")
    )
    assert_same_weights(straight, resumed)
    keys = ("epoch", "train_loss", "train_accuracy", "clean_accuracy", "lr", "best")
    assert [[record[key] for key in keys] for record in rest] == [
        [record[key] for key in keys] for record in records[1:]
    ]
    first, second = (checkpoints.load_checkpoint(tmp_path / run / checkpoints.LATEST) for run in ("straight", "broken"))
    for one, other in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values()):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    lines = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_a_run_interrupted_within_an_epoch_goes_on_in_it(data, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, attack=ATTACK)
    monkeypatch.setattr(training, "BAR_STEPS", 2)
    saving = Saving(tmp_path / "broken", checkpoint_every=0, minutes=0, tensorboard=False)
    straight, records = train(data, tmp_path / "straight", recipe)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, lambda run: run.epoch == 1 and run.step == 2)
        train(data, tmp_path / "broken", recipe, saving=saving)
    start = checkpoints.newest_readable(tmp_path / "broken")
    assert start[1]["epoch"] == 1 and start[1]["resume"]["step"] == 2
    resumed, rest = train(data, tmp_path / "broken", recipe, tiny(seed=9), saving=saving, start_from=start)
    assert_same_weights(straight, resumed)
    assert rest[0]["train_loss"] == records[1]["train_loss"]


class Encoded(EncodedImages):
    """Images of a tensor as PNG files, as ImageNet's come: read by worker processes."""

    def __init__(self, images: TensorImages) -> None:
        super().__init__("encoded", to_pixels, augment=lambda image, generator: (to_pixels(image), torch.zeros(3)))
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> torch.Tensor:
        return self.images.labels

    def record(self, index: int) -> tuple[bytes, int]:
        file = io.BytesIO()
        Image.fromarray(self.images.pixels[index].permute(1, 2, 0).numpy()).save(file, "png")
        return file.getvalue(), int(self.images.labels[index])

    def location(self, index: int) -> str:
        return f"image {index}"

    def stored_in(self) -> list[Path]:
        return []


def to_pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)


to_pixels.name = "as they are"


@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (1, 2)], ids=lambda place: f"epoch {place[0]} step {place[1]}")
def test_dropout_goes_on_where_it_was_with_worker_processes(stop, data, tmp_path, monkeypatch):
    """What starting workers and validating draw at random must not move the generator that dropout draws from."""
    data = Data(Encoded(data.train), Encoded(data.val), workers=1)
    monkeypatch.setattr(training, "BAR_STEPS", 2)
    saving = Saving(tmp_path / "broken", checkpoint_every=0, validate_every=1, minutes=0, tensorboard=False)
    straight, _ = train(data, tmp_path / "straight", saving=dataclasses.replace(saving, folder=tmp_path / "straight"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, lambda run: (run.epoch, run.step) == stop)
        train(data, tmp_path / "broken", saving=saving)
    start = checkpoints.newest_readable(tmp_path / "broken")
    resumed, _ = train(data, tmp_path / "broken", model=tiny(seed=9), saving=saving, start_from=start)
    assert_same_weights(straight, resumed)


def test_momentum_of_another_memory_layout_is_the_same_momentum(data, tmp_path):
    """Checkpoints of other programs hold contiguous buffers; ours follow the weights, which are channels-last."""
    train(data, tmp_path, dataclasses.replace(RECIPE, epochs=1))
    path, own = checkpoints.newest_readable(tmp_path)
    foreign = checkpoints.load_checkpoint(path)
    for buffers in foreign["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    layouts = [start["optimizer"]["state"][0]["momentum_buffer"].stride() for start in (own, foreign)]
    assert layouts[0] != layouts[1]
    ends = [train(data, tmp_path / name, start_from=(path, start))[0] for name, start in (("a", own), ("b", foreign))]
    assert_same_weights(*ends)


def test_a_longer_run_may_continue_a_shorter_one_with_the_step_schedule_only(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, schedule="step", epochs=1)
    train(data, tmp_path, recipe)
    _, checkpoint = checkpoints.newest_readable(tmp_path)
    assert differences(checkpoint, dataclasses.replace(recipe, epochs=2)) == []
    train(data, tmp_path, dataclasses.replace(recipe, schedule="onecycle"))
    _, checkpoint = checkpoints.newest_readable(tmp_path)
    longer = dataclasses.replace(recipe, schedule="onecycle", epochs=2, attack=ATTACK)
    differing = differences(checkpoint, longer)
    assert "epochs was 1, now 2" in differing and "attack eps was none, now 0.5" in differing


def test_another_recipe_takes_weights_momentum_and_epoch_and_its_own_learning_rate(data, tmp_path):
    train(data, tmp_path / "before", dataclasses.replace(RECIPE, epochs=1))
    start = checkpoints.newest_readable(tmp_path / "before")
    recipe = dataclasses.replace(RECIPE, schedule="step", lr=0.001)
    _, records = train(data, tmp_path / "after", recipe, start_from=start)
    assert [(record["epoch"], record["lr"]) for record in records] == [(2, 0.001)]
    assert (tmp_path / "after" / checkpoints.BEST).exists()


def test_a_checkpoint_without_momentum_starts_it_at_zero(data, tmp_path):
    path = tmp_path / "weights.pt"
    checkpoints.save_checkpoint(path, tiny(seed=5), epoch=1)
    _, records = train(data, tmp_path, start_from=(path, checkpoints.load_checkpoint(path)))
    assert [record["epoch"] for record in records] == [2]


def test_another_architecture_is_refused(data, tmp_path):
    path = tmp_path / "other.pt"
    checkpoints.save_checkpoint(path, build_model("resnet10", "digits", seed=0), epoch=1)
    with pytest.raises(InputError, match=r"other\.pt"):
        train(data, tmp_path, start_from=(path, checkpoints.load_checkpoint(path)))


# checkpoints


def test_which_files_are_written_and_what_the_best_one_holds(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=4, attack=ATTACK)
    saving = Saving(tmp_path, checkpoint_every=3, validate_every=2)
    model, records = train(data, tmp_path, recipe, saving=saving)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt.latest", "checkpoint.pt.best", "3_checkpoint.pt", "log.jsonl", "tensorboard"}
    assert ["robust_accuracy" in record for record in records] == [False, True, True, True]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    best = checkpoints.load_checkpoint(tmp_path / checkpoints.BEST)
    accuracies = {record["epoch"]: record["robust_accuracy"] for record in records[1:]}
    assert best["adv_prec1"] == max(accuracies.values())
    assert best["epoch"] == min(epoch for epoch, value in accuracies.items() if value == best["adv_prec1"])
    assert "nat_prec1" not in best and best["amp"] is None and best["arch"] == "tiny"
    loaded = tiny(seed=4)
    latest = checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)
    checkpoints.load_weights(loaded, latest["model"], "latest")
    assert_same_weights(model, loaded)
    assert latest["epoch"] == 4


def test_the_original_tools_can_read_optimiser_and_schedule(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, schedule="step", step_epochs=1)
    train(data, tmp_path, recipe)
    content = torch.load(tmp_path / checkpoints.LATEST, weights_only=True)
    optimizer = torch.optim.SGD(tiny().parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    optimizer.load_state_dict(content["optimizer"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    schedule.load_state_dict(content["schedule"])
    assert schedule.last_epoch == 2 and schedule.get_last_lr() == pytest.approx([0.0005])
    assert all(name.startswith("module.") for name in content["model"])


def test_best_is_by_clean_accuracy_without_an_attack(data, tmp_path):
    train(data, tmp_path)
    best = checkpoints.load_checkpoint(tmp_path / checkpoints.BEST)
    assert "nat_prec1" in best and "adv_prec1" not in best


# the rest


def test_fp32_runs_take_deterministic_algorithms_of_cudnn(data, tmp_path, monkeypatch):
    cudnn, seen = torch.backends.cudnn, {}
    for precision in ("fp32", "tf32"):
        step = training.Trainer.train_step

        def train_step(*args, step=step, precision=precision):
            seen[precision] = cudnn.benchmark, cudnn.deterministic
            return step(*args)

        with monkeypatch.context() as patch:
            patch.setattr(training.Trainer, "train_step", train_step)
            train(data, tmp_path / precision, dataclasses.replace(RECIPE, epochs=1, precision=precision))
    assert seen == {"fp32": (False, True), "tf32": (True, False)}
    assert (cudnn.benchmark, cudnn.deterministic) == (False, False)


def test_training_is_the_same_on_every_run(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1, attack=ATTACK)
    first, _ = train(data, tmp_path / "a", recipe)
    second, _ = train(data, tmp_path / "b", recipe)
    assert_same_weights(first, second)


def test_a_step_is_that_of_plain_sgd_on_the_attacked_images(data, tmp_path):
    data = Data(TensorImages(data.train.pixels, data.train.labels, name="as they are"), data.val)
    recipe = dataclasses.replace(RECIPE, epochs=1, batch_size=150, schedule="step", attack=ATTACK)
    model = tiny()
    model.model.dropout.p = 0.0
    reference = tiny()
    reference.model.dropout.p = 0.0
    train(data, tmp_path, recipe, model)
    images, labels = data.train.floats(slice(None)), data.train.labels
    optimizer = torch.optim.SGD(reference.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    functional.cross_entropy(reference(ATTACK(reference, images, labels)), labels).backward()
    optimizer.step()
    for one, other in zip(model.parameters(), reference.parameters()):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_a_step_on_an_odd_batch_with_two_threads(arch):
    """In a process of its own: oneDNN's fault on AVX-512 (`univ.models.layout`) ends the process."""
    program = f"""
import torch
from univ import training
from univ.attacks import Attack
from univ.data.images import TensorImages
from univ.models import build_model
from univ.runs import Distributed
images = TensorImages(torch.randint(256, (29, 3, 32, 32), dtype=torch.uint8), torch.arange(29) % 10, name="odd")
recipe = training.Recipe(epochs=3, batch_size=29, attack=Attack(steps=1))
saving = training.Saving(None, tensorboard=False)
process = Distributed(torch.device("cpu"))
model = build_model({arch!r}, "digits", seed=0)
run = training.Trainer(model, training.Data(images, images), recipe, saving, process, compile=False, quiet=True)
for epoch in range(1, 4):
    run.train_epoch(epoch)  # forward and backward, of the folded network too
"""
    words = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_small_strided_convolutions_stay_what_they_were():
    """Output, gradients, folding: only the memory they go through is another."""
    x = torch.rand(5, 8, 9, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(8, 16, 1, stride=2).double()
    ours = nn.Conv2d(8, 16, 1, stride=2).double()
    ours.load_state_dict(plain.state_dict())
    channels_last(ours)
    assert isinstance(ours, Strided1x1)
    for conv in (plain, ours):
        conv(x).square().sum().backward()
    assert torch.allclose(ours(x), plain(x)) and torch.allclose(ours.weight.grad, plain.weight.grad)
    model = build_model("resnet10", "digits", seed=0)
    before = fold_batchnorm(model).pairs
    channels_last(model)
    assert sum(isinstance(module, Strided1x1) for module in model.modules()) == 1
    assert fold_batchnorm(model).pairs == before


def test_a_last_batch_of_one_image_is_left_out(data, tmp_path):
    rows = Data(
        TensorImages(data.train.pixels[:65], data.train.labels[:65], name="65"),
        data.val,
    )
    _, records = train(rows, tmp_path, dataclasses.replace(RECIPE, epochs=1))
    saved = checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)
    assert saved["resume"]["steps_per_epoch"] == 2 and math.isfinite(records[0]["train_loss"])


class CachesInEvaluation(Tiny):
    """Keeps the scale of its pixels from the first forward in evaluation mode, as tiny_vit its attention biases."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(()))
        self.cached = None

    def train(self, mode: bool = True) -> nn.Module:
        self.cached = None if mode else self.cached
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.cached is None:
            self.cached = 1 * self.scale
        return super().forward(x * (self.scale if self.training else self.cached))


def test_attacks_see_the_weights_of_the_moment(data):
    model = Classifier(CachesInEvaluation(10), Arch(CachesInEvaluation, head="head"), "tiny", "digits", 10).train()
    target = AttackTarget(model)
    images = data.val.floats(slice(None))
    target.of_now()(images)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        model.model.norm1.running_mean += 0.1
    found = target.of_now()(images)
    assert torch.allclose(found, model.eval()(images), atol=1e-5)


def test_divergence_is_an_error_that_says_what_to_do(data, tmp_path):
    with pytest.raises(InputError, match=r"diverged.*--model-lr"):
        train(data, tmp_path, dataclasses.replace(RECIPE, lr=1e30, schedule="step"))


def test_a_batch_of_one_and_sync_bn_on_the_cpu_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="--batch"):
        train(data, tmp_path, dataclasses.replace(RECIPE, batch_size=1))
    with pytest.raises(InputError, match="--sync-bn"):
        train(data, tmp_path, dataclasses.replace(RECIPE, sync_bn=True))


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_other_precisions_learn_too(precision, data, tmp_path):
    recipe = dataclasses.replace(RECIPE, precision=precision, attack=ATTACK)
    _, records = train(data, tmp_path, recipe)
    assert records[-1]["train_loss"] < 2.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda(precision, data, tmp_path):
    recipe = dataclasses.replace(RECIPE, precision=precision, attack=ATTACK, epochs=4)
    model = tiny()
    saving = Saving(tmp_path, checkpoint_every=0, tensorboard=False)
    records = Trainer(model, data, recipe, saving, Distributed(torch.device("cuda")), quiet=True).fit()
    _, expected = train(data, tmp_path / "cpu", dataclasses.replace(recipe, precision="fp32"))
    assert records[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], abs=0.2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp32_training_on_cuda_repeats_and_resumes_from_contiguous_momentum(data, tmp_path):
    process, recipe = Distributed(torch.device("cuda:0")), dataclasses.replace(RECIPE, attack=ATTACK)

    def ends(name, start_from=None):
        saving = Saving(tmp_path / name, checkpoint_every=1, tensorboard=False)
        model = tiny()
        Trainer(model, data, recipe, saving, process, quiet=True).fit(start_from)
        return model

    first = ends("first")
    assert_same_weights(first, ends("second"))
    path = tmp_path / "first" / "1_checkpoint.pt"
    checkpoint = checkpoints.load_checkpoint(path)
    for buffers in checkpoint["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    assert_same_weights(first, ends("resumed", (path, checkpoint)))


def test_adversarial_training_makes_robust(tmp_path, monkeypatch):
    """On 512 digits: under PGD-20 at the training radius the two ways of training differ by far.

    In float64, and from weights whose draws need no logarithm, all processors train the same networks (the losses
    agree to 1e-8); in float32 their rounding moves the accuracies by ten percent.
    """
    monkeypatch.setattr(loaders, "to_float", lambda pixels: pixels.double() / 255)
    train_images, val_images = open_training("digits")
    some, third = select(train_images, torch.arange(512)), select(val_images, torch.arange(0, 360, 3))
    recipe = Recipe(epochs=4, batch_size=32, lr=0.1, weight_decay=5e-4, schedule="onecycle")
    strong = Attack("l2", eps=1.0, step_size=0.25, steps=20)
    robust_accuracy = {}
    for name, attack in (("standard", None), ("adversarial", Attack("l2", eps=1.0, step_size=2 / 3, steps=3))):
        model = build_model("resnext14_4x32d", "digits", seed=0).double()
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        nn.init.zeros_(model.head.bias)
        recipe = dataclasses.replace(recipe, attack=attack)
        _, records = train(Data(some, third), tmp_path / name, recipe, model)
        assert records[-1]["clean_accuracy"] > 85
        _, robust = evaluate(model, third, attack=strong, process=CPU, quiet=True)
        robust_accuracy[name] = robust.accuracy
    assert robust_accuracy["adversarial"] > robust_accuracy["standard"] + 25
