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
from networks import CachesInEvaluation, assert_same_weights, tiny
from PIL import Image
from torch import nn
from torch.nn import functional

from univ.attacks import Attack
from univ.data import loaders, open_training
from univ.data.images import EncodedImages, TensorImages
from univ.data.selection import select
from univ.data.transforms import SmallImageAugmentation
from univ.errors import InputError
from univ.models import DIGITS_ARCHS, build_model, checkpoints
from univ.models.folding import fold_batchnorm
from univ.models.layout import Strided1x1, channels_last
from univ.runs import Distributed
from univ.training import AttackTarget, Data, Recipe, Saving, Trainer, evaluate, loop
from univ.training.recipe import differences

ROOT = Path(__file__).resolve().parent.parent
CPU = Distributed(torch.device("cpu"))
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, weight_decay=5e-4, schedule="onecycle", seed=3)
ATTACK = Attack("l2", eps=0.5, step_size=0.3, steps=2)
pytestmark = pytest.mark.usefixtures("one_thread")
replace = dataclasses.replace


@pytest.fixture(scope="module")
def data() -> Data:
    train, val = open_training("digits")
    return Data(
        TensorImages(train.pixels[:150], train.labels[:150], name="some digits", augment=SmallImageAugmentation()),
        TensorImages(val.pixels[:70], val.labels[:70], name="other digits"),
    )


def train(data: Data, folder, recipe=RECIPE, model=None, start_from=None, process=CPU, **saving):
    model = model or tiny()
    saving = Saving(folder, **{"checkpoint_every": 0, "tensorboard": False, **saving})
    return model, Trainer(model, data, recipe, saving, process, quiet=True).fit(start_from)


# learning rates


def test_step_schedule_divides_by_ten():
    recipe = Recipe(lr=0.1, schedule="step", step_epochs=2, epochs=6)
    rates = [recipe.learning_rate(step, steps_per_epoch=3) for step in range(18)]
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 6 + [0.001] * 6)


def test_onecycle_schedule_rises_linearly_and_falls_along_a_cosine():
    recipe = Recipe(lr=0.1, schedule="onecycle", epochs=5)
    rates = [recipe.learning_rate(step, steps_per_epoch=4) for step in range(20)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])  # up in a fifth of the steps
    assert rates[12] == pytest.approx(0.05)  # half of the way down
    assert 0 < rates[19] == pytest.approx(0.05 * (1 + math.cos(math.pi * 15 / 16)))


# evaluation


@pytest.mark.parametrize("batch_size", [7, 1000])
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
    assert evaluate(model, data.val, process=CPU, quiet=True)[1] is None


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_an_evaluation_of_a_broken_network_is_an_error(attack, data):
    model = tiny()
    model.model.head.weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="tiny: the logits of the evaluation are NaN or infinite"):
        evaluate(model, data.val, attack=attack, process=CPU, quiet=True)


def test_random_starts_of_an_evaluation_depend_on_the_seed_alone(data):
    model, options = tiny(), {"attack": replace(ATTACK, random_start=True), "process": CPU, "quiet": True}
    losses = [evaluate(model, data.val, seed=seed, **options)[1].loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


# resuming


class Stopped(Exception):
    pass


class Encoded(EncodedImages):
    """Images of a tensor as PNG files, as ImageNet's come: read by worker processes."""

    labels = None

    def __init__(self, images: TensorImages) -> None:
        super().__init__("encoded", to_pixels, augment=lambda image, generator: (to_pixels(image), torch.zeros(3)))
        self.images, self.labels = images, images.labels

    def __len__(self) -> int:
        return len(self.images)

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


@pytest.mark.parametrize(
    ("changes", "workers", "stop"),  # stop: epochs completed, and steps of the next one
    [
        ({}, 1, (0, 2)),  # starting workers and validating must not move the generator that dropout draws from
        ({}, 1, (1, 0)),
        ({}, 1, (1, 2)),
        ({"schedule": "step", "step_epochs": 1}, 0, (1, 0)),
        ({"attack": ATTACK}, 0, (1, 2)),
        ({"attack": replace(ATTACK, norm="linf", random_start=True)}, 0, (1, 2)),
    ],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(changes, workers, stop, data, tmp_path, monkeypatch):
    recipe = replace(RECIPE, **changes)
    data = Data(Encoded(data.train), Encoded(data.val), workers=1) if workers else data
    monkeypatch.setattr(loop, "BAR_STEPS", 2)
    saving = {"validate_every": 1, "minutes": 0}
    straight, records = train(data, tmp_path / "straight", recipe, **saving)
    save = Trainer.save

    def save_and_stop(trainer, **options):
        save(trainer, **options)
        if (trainer.epoch, trainer.step) == stop:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "save", save_and_stop)
        train(data, tmp_path / "broken", recipe, **saving)
    torch.rand(17)  # whatever the new process drew before
    start = checkpoints.newest_readable(tmp_path / "broken")
    assert (start[1]["epoch"], start[1]["resume"]["step"]) == stop
    resumed, rest = train(data, tmp_path / "broken", recipe, tiny(seed=9), start, **saving)
    assert_same_weights(straight, resumed)
    timed = {"images_per_second", "seconds", "seconds_left"}
    assert [{k: v for k, v in record.items() if k not in timed} for record in rest] == [
        {k: v for k, v in record.items() if k not in timed} for record in records[stop[0] :]
    ]
    ends = [checkpoints.load_checkpoint(tmp_path / run / checkpoints.LATEST) for run in ("straight", "broken")]
    for one, other in zip(*(end["optimizer"]["state"].values() for end in ends), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    lines = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_momentum_of_another_memory_layout_is_the_same_momentum(data, tmp_path):
    """Checkpoints of other programs hold contiguous buffers; ours follow the weights, which are channels-last."""
    train(data, tmp_path, replace(RECIPE, epochs=1))
    path, own = checkpoints.newest_readable(tmp_path)
    foreign = checkpoints.load_checkpoint(path)
    for buffers in foreign["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    layouts = [start["optimizer"]["state"][0]["momentum_buffer"].stride() for start in (own, foreign)]
    assert layouts[0] != layouts[1]
    ends = [train(data, tmp_path / name, start_from=(path, start))[0] for name, start in (("a", own), ("b", foreign))]
    assert_same_weights(*ends)


def test_a_longer_run_may_continue_a_shorter_one_with_the_step_schedule_only(data, tmp_path):
    for schedule, expected in (("step", []), ("onecycle", ["epochs was 1, now 2"])):
        recipe = replace(RECIPE, schedule=schedule, epochs=1)
        train(data, tmp_path / schedule, recipe)
        _, checkpoint = checkpoints.newest_readable(tmp_path / schedule)
        assert differences(checkpoint, replace(recipe, epochs=2)) == expected
    assert "attack eps was none, now 0.5" in differences(checkpoint, replace(recipe, attack=ATTACK))


def test_another_recipe_takes_weights_momentum_and_epoch_and_its_own_learning_rate(data, tmp_path):
    train(data, tmp_path / "before", replace(RECIPE, epochs=1))
    start = checkpoints.newest_readable(tmp_path / "before")
    _, records = train(data, tmp_path / "after", replace(RECIPE, schedule="step", lr=0.001), start_from=start)
    assert [(record["epoch"], record["lr"]) for record in records] == [(2, 0.001)]
    assert (tmp_path / "after" / checkpoints.BEST).exists()


def test_weights_alone_start_with_momentum_0_and_another_architecture_is_refused(data, tmp_path):
    for name, model in (("own.pt", tiny(seed=5)), ("other.pt", build_model("resnet10", "digits", seed=0))):
        checkpoints.save_checkpoint(tmp_path / name, model, epoch=1)
    own, other = ((path, checkpoints.load_checkpoint(path)) for path in (tmp_path / "own.pt", tmp_path / "other.pt"))
    _, records = train(data, tmp_path, start_from=own)
    assert [record["epoch"] for record in records] == [2]
    with pytest.raises(InputError, match=r"other\.pt"):
        train(data, tmp_path, start_from=other)


# checkpoints


def test_which_files_are_written_and_what_the_best_one_holds(data, tmp_path):
    recipe = replace(RECIPE, epochs=4, attack=ATTACK)
    saving = {"checkpoint_every": 3, "validate_every": 2, "tensorboard": True}
    model, records = train(data, tmp_path, recipe, **saving)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt.latest", "checkpoint.pt.best", "3_checkpoint.pt", "log.jsonl", "tensorboard"}
    assert ["robust_accuracy" in record for record in records] == [False, True, True, True]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    best = checkpoints.load_checkpoint(tmp_path / checkpoints.BEST)
    accuracies = {record["epoch"]: record["robust_accuracy"] for record in records[1:]}
    assert best["adv_prec1"] == max(accuracies.values())
    assert best["epoch"] == min(epoch for epoch, value in accuracies.items() if value == best["adv_prec1"])
    assert "nat_prec1" not in best and best["amp"] is None and best["arch"] == "tiny"
    loaded, latest = tiny(seed=4), checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)
    checkpoints.load_weights(loaded, latest["model"], "latest")
    assert_same_weights(model, loaded)
    assert latest["epoch"] == 4


def test_the_original_tools_can_read_optimiser_and_schedule(data, tmp_path):
    train(data, tmp_path, replace(RECIPE, schedule="step", step_epochs=1))
    content = torch.load(tmp_path / checkpoints.LATEST, weights_only=True)
    optimizer = torch.optim.SGD(tiny().parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    optimizer.load_state_dict(content["optimizer"])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    schedule.load_state_dict(content["schedule"])
    assert schedule.last_epoch == 2 and schedule.get_last_lr() == pytest.approx([0.0005])
    assert all(name.startswith("module.") for name in content["model"])
    best = checkpoints.load_checkpoint(tmp_path / checkpoints.BEST)
    assert "nat_prec1" in best and "adv_prec1" not in best  # by clean accuracy without an attack


# steps


def test_fp32_runs_take_deterministic_algorithms_of_cudnn(data, tmp_path, monkeypatch):
    cudnn, seen, step = torch.backends.cudnn, {}, Trainer.train_step

    def train_step(trainer, *args):
        seen[trainer.recipe.precision] = cudnn.benchmark, cudnn.deterministic
        return step(trainer, *args)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    for precision in ("fp32", "tf32"):
        train(data, tmp_path / precision, replace(RECIPE, epochs=1, precision=precision))
    assert seen == {"fp32": (False, True), "tf32": (True, False)}
    assert (cudnn.benchmark, cudnn.deterministic) == (False, False)


def test_a_step_is_that_of_plain_sgd_on_the_attacked_images(data, tmp_path):
    data = Data(TensorImages(data.train.pixels, data.train.labels, name="as they are"), data.val)
    model, reference = tiny(), tiny()
    model.model.dropout.p = reference.model.dropout.p = 0.0
    train(data, tmp_path, replace(RECIPE, epochs=1, batch_size=150, schedule="step", attack=ATTACK), model)
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
trainer = training.Trainer(model, training.Data(images, images), recipe, saving, process, quiet=True)
for epoch in range(1, 4):
    trainer.train_epoch(epoch)  # forward and backward, of the folded network too
"""
    words = {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_small_strided_convolutions_stay_what_they_were():
    """Output, gradients, folding: only the memory they go through is another."""
    x = torch.rand(5, 8, 9, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    plain, ours = (nn.Conv2d(8, 16, 1, stride=2).double() for _ in range(2))
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
    rows = Data(TensorImages(data.train.pixels[:65], data.train.labels[:65], name="65"), data.val)
    _, records = train(rows, tmp_path, replace(RECIPE, epochs=1))
    saved = checkpoints.load_checkpoint(tmp_path / checkpoints.LATEST)
    assert saved["resume"]["steps_per_epoch"] == 2 and math.isfinite(records[0]["train_loss"])


def test_attacks_see_the_weights_of_the_moment(data):
    model = tiny(network=CachesInEvaluation).train()
    target = AttackTarget(model)
    images = data.val.floats(slice(None))
    target.of_now()(images)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        model.model.norm1.running_mean += 0.1
    assert torch.allclose(target.of_now()(images), model.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e30, "schedule": "step"}, r"diverged.*--model-lr"),
        ({"batch_size": 1}, "--batch"),
        ({"sync_bn": True}, "--sync-bn"),
    ],
)
def test_what_cannot_be_trained_is_an_error_that_says_what_to_do(changes, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        train(data, tmp_path, replace(RECIPE, **changes))


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_other_precisions_learn_too(precision, data, tmp_path):
    _, records = train(data, tmp_path, replace(RECIPE, precision=precision, attack=ATTACK))
    assert records[-1]["train_loss"] < 2.5


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.cuda
@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda(precision, data, tmp_path):
    recipe = replace(RECIPE, precision=precision, attack=ATTACK, epochs=4)
    _, records = train(data, tmp_path / "cuda", recipe, process=Distributed(torch.device("cuda")))
    _, expected = train(data, tmp_path / "cpu", replace(recipe, precision="fp32"))
    assert records[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], abs=0.2)


@pytest.mark.cuda
@on_cuda
def test_fp32_training_on_cuda_repeats_and_resumes_from_contiguous_momentum(data, tmp_path):
    recipe = replace(RECIPE, attack=ATTACK)
    options = {"process": Distributed(torch.device("cuda:0")), "checkpoint_every": 1}
    first, second = (train(data, tmp_path / name, recipe, **options)[0] for name in ("first", "second"))
    assert_same_weights(first, second)
    path = tmp_path / "first" / "1_checkpoint.pt"
    checkpoint = checkpoints.load_checkpoint(path)
    for buffers in checkpoint["optimizer"]["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    assert_same_weights(first, train(data, tmp_path / "resumed", recipe, start_from=(path, checkpoint), **options)[0])


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
        recipe = replace(recipe, attack=attack)
        _, records = train(Data(some, third), tmp_path / name, recipe, model)
        assert records[-1]["clean_accuracy"] > 85
        _, robust = evaluate(model, third, attack=strong, process=CPU, quiet=True)
        robust_accuracy[name] = robust.accuracy
    assert robust_accuracy["adversarial"] > robust_accuracy["standard"] + 25
