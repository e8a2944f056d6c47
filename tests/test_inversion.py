"""The optimiser of univ.inversion: against the published procedure, a literal loop, and closed forms; and its parts."""

import contextlib
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts.benchmarks.inversion import pictures, published_inversion, trained_statistics
from univ import attacks, files
from univ.data import open_training
from univ.data.loaders import stream
from univ.errors import InputError
from univ.inversion import MOMENTUM, Inversion, Inverted, Inverter, Parts
from univ.models import DIGITS_ARCHS, HEAD_INPUT, Arch, Classifier, build_model
from univ.models.precision import AUTOCAST, arithmetic
from univ.reps.nodes import Reader

CPU = torch.device("cpu")


def needs_cuda(test):
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")(test))


def make_model(arch):
    return trained_statistics("digits", arch, CPU)


@pytest.fixture(scope="module")
def model():
    return make_model("resnext14_4x32d")


@pytest.fixture(scope="module")
def seeds():
    return pictures("digits", 6, "seeds")


@pytest.fixture(scope="module")
def targets():
    return pictures("digits", 6, "targets")


def classifier(features, width):
    """A classifier whose representation is `features` of the normalised image."""

    def build(num_classes):
        return nn.Sequential(features(), nn.Linear(width, num_classes))

    spec = Arch(build, head="1")
    return Classifier(build(10), spec, "made-up", "digits", 10).eval()


def pixels_as_representation():
    return classifier(nn.Flatten, 3 * 32 * 32)


class BrightPixels(nn.Module):
    """ReLU units that only see pixels brighter than 0.9: at darker images their gradient is 0."""

    def forward(self, x):
        return torch.relu(x.flatten(1) - (0.9 - 0.3054) / 0.3237)


def relative_distances(model, images, targets):
    with Reader(model, HEAD_INPUT) as tap, torch.no_grad():
        model(targets)
        wanted = tap.rep.clone()
        model(images)
        return (tap.rep - wanted).norm(dim=1) / wanted.norm(dim=1)


# --- against the published procedure --------------------------------------------------------------------------------


def noisy(seeds):
    """In float64 and off the digits, so that no processor's rounding decides.

    The digits' pixels are equal in whole squares: which of equal values max pooling takes, a kink, would be chance.
    """
    return 0.5 * (seeds + torch.rand(seeds.shape, dtype=torch.float64, generator=stream("noise")))


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_final_distances_are_those_of_the_published_procedure(arch, seeds, targets):
    """What is left is the 1e-10 that is added to a gradient's norm, there of the batch's mean loss."""
    model, seeds, targets = make_model(arch).double(), noisy(seeds), targets.double()
    settings = Inversion(iterations=20, step_size=0.5)
    ours = Inverter(model, settings)(seeds, targets)
    published = published_inversion(model, seeds, targets, settings)
    expected = relative_distances(model, published, targets)
    torch.testing.assert_close(ours.final_distance, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.images, published, rtol=0, atol=1e-6)
    assert (ours.final_distance < 0.9 * ours.start_distance).all()  # there was something to compare


def train(arch):
    """A classifier of the digits after one epoch: an untrained one is inverted to a distance of nearly nothing."""
    training, _ = open_training("digits")
    pixels, labels = training.floats(slice(None)), training.labels
    model, generator = build_model(arch, "digits", seed=0), stream("order")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for chosen in torch.randperm(len(labels), generator=generator).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_a_hundred_iterations_end_near_the_published_distances(arch, seeds, targets):
    model, settings = train(arch).double(), Inversion(iterations=100)
    seeds, targets = noisy(seeds[:3]), targets[:3].double()
    ours = Inverter(model, settings)(seeds, targets)
    expected = relative_distances(model, published_inversion(model, seeds, targets, settings), targets)
    torch.testing.assert_close(ours.final_distance, expected, rtol=0.05, atol=0)
    assert expected.min() > 1e-3  # below that, rounding is what is compared


def test_the_distance_is_the_unfolded_models(model, seeds, targets):
    inverted = Inverter(model, Inversion(iterations=5))(seeds, targets)
    for images, distance in ((inverted.images, inverted.final_distance), (seeds, inverted.start_distance)):
        torch.testing.assert_close(distance, relative_distances(model, images, targets), rtol=1e-4, atol=1e-6)


# --- against a literal loop -----------------------------------------------------------------------------------------


def literal_inversion(model, seed, target, iterations, step_size):
    """One image, every iterate kept: (iterates, distances), iterations + 1 of each."""
    x, mean, iterates, distances = seed[None], torch.zeros_like(seed[None]), [], []
    for _ in range(iterations + 1):
        x = x.detach().requires_grad_(True)
        with Reader(model, HEAD_INPUT) as tap:
            model(target[None])
            wanted = tap.rep.detach().clone()
            model(x)
            distance = (tap.rep - wanted).norm() / wanted.norm()
        (gradient,) = torch.autograd.grad(distance, x)
        iterates.append(x.detach()[0])
        distances.append(distance.item())
        mean = 0.9 * mean + 0.1 * gradient / gradient.norm()
        moved = x.detach() - step_size * mean - seed[None]
        x = (seed[None] + moved * min(1, 1000 / moved.norm().item())).clamp(0, 1)
    return iterates, distances


def test_the_best_iterate_of_all_is_kept(model, seeds, targets):
    # steps this long overshoot, so that the best iterate is the last for some images and an earlier one for others
    inverted = Inverter(model, Inversion(iterations=12, step_size=4.0))(seeds, targets)
    best = []
    for position in range(3):
        iterates, distances = literal_inversion(model, seeds[position], targets[position], 12, 4.0)
        best.append(min(range(13), key=distances.__getitem__))
        assert inverted.best_iteration[position] == best[-1]
        assert inverted.start_distance[position].item() == pytest.approx(distances[0], rel=1e-4)
        assert inverted.final_distance[position].item() == pytest.approx(min(distances), rel=1e-3)
        torch.testing.assert_close(inverted.images[position], iterates[best[-1]], rtol=0, atol=2e-3)
    assert min(best) < 12


def test_agrees_with_the_loop_of_the_attack(model, seeds, targets):
    inverter = Inverter(model, Inversion(iterations=10, step_size=1.0))
    with Reader(model, HEAD_INPUT) as tap, attacks.frozen(model):
        model(targets)
        wanted = tap.rep.clone()

        def distances(x):
            model(x)
            return (tap.rep - wanted).norm(dim=1) / wanted.norm(dim=1)

        rule = attacks.L2MomentumStep(seeds, eps=1000, step_size=1.0, momentum=MOMENTUM)
        images, losses = attacks.pgd(lambda x: -distances(x), rule, steps=10)
    inverted = inverter(seeds, targets)
    torch.testing.assert_close(inverted.final_distance, -losses, rtol=1e-3, atol=0)
    torch.testing.assert_close(inverted.images, images, rtol=0, atol=2e-3)


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_with_pixels_as_representation_images_go_straight_to_the_target():
    seeds = torch.full((2, 3, 32, 32), 0.4)
    targets = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inverted = Inverter(pixels_as_representation(), Inversion(iterations=5, step_size=0.5))(seeds, targets)
    # the direction to the target stays the same, so after k steps the momentum is (1 - 0.9^k) times it
    travelled = sum(0.5 * (1 - 0.9**k) for k in range(1, 6))
    difference = targets - seeds
    unit = difference / difference.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(inverted.images, seeds + travelled * unit, rtol=0, atol=1e-5)
    assert inverted.best_iteration.tolist() == [5, 5]  # the last iterate, which no step follows, counts


def test_a_seed_that_is_its_target_stays():
    images = pictures("digits", 3, "seeds")
    inverted = Inverter(make_model("vgg11"), Inversion(iterations=3))(images, images)
    assert inverted.start_distance.tolist() == inverted.final_distance.tolist() == [0, 0, 0]
    assert inverted.best_iteration.tolist() == [0, 0, 0]
    assert torch.equal(inverted.images, images)


def test_a_zero_gradient_is_a_zero_step():
    dark, bright = torch.full((2, 3, 32, 32), 0.2), torch.ones(2, 3, 32, 32)
    dark[1] = 0.95  # the second image has a gradient
    inverted = Inverter(classifier(BrightPixels, 3072), Inversion(iterations=4))(dark, bright)
    assert torch.equal(inverted.images[0], dark[0]) and inverted.final_distance[0] == 1
    assert inverted.final_distance[1] < inverted.start_distance[1]


def test_a_target_without_representation_gives_the_distance_itself():
    bright, dark = torch.full((1, 3, 32, 32), 0.95), torch.full((1, 3, 32, 32), 0.2)
    inverted = Inverter(classifier(BrightPixels, 3072), Inversion(iterations=30))(bright, dark)
    # every unit is 0.05 / 0.3237 above its threshold, and there are 3072 of them
    assert inverted.start_distance.item() == pytest.approx(0.05 / 0.3237 * math.sqrt(3072), rel=1e-4)
    assert inverted.final_distance.item() < 0.1 * inverted.start_distance.item()


# --- what the result does not depend on -----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 5), (4, 2), (2, 2, 2)])
def test_batches_do_not_matter(model, seeds, targets, sizes):
    inverter = Inverter(model, Inversion(iterations=10))
    together = inverter(seeds, targets)
    apart = [inverter(s, t) for s, t in zip(seeds.split(sizes), targets.split(sizes))]
    torch.testing.assert_close(torch.cat([part.images for part in apart]), together.images, rtol=0, atol=1e-4)
    apart = torch.cat([part.final_distance for part in apart])
    torch.testing.assert_close(apart, together.final_distance, rtol=1e-4, atol=0)


def test_the_model_is_left_alone(model, seeds, targets):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Inverter(model, Inversion(iterations=2))(seeds, targets)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not model.training and not model.head._forward_pre_hooks


def test_images_stay_in_range_and_keep_their_layout(model, seeds, targets):
    images = Inverter(model, Inversion(iterations=3, step_size=50.0))(seeds, targets).images
    assert images.shape == seeds.shape and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("precision", AUTOCAST)
def test_low_precision_keeps_images_and_distances_in_float32(model, seeds, targets, precision):
    settings = Inversion(iterations=15, step_size=0.5)
    exact = Inverter(model, settings)(seeds, targets)
    with arithmetic(precision, CPU):
        inverted = Inverter(model, settings)(seeds, targets)
    assert inverted.images.dtype == inverted.final_distance.dtype == torch.float32
    expected = relative_distances(model, inverted.images, targets)  # of the exact network
    torch.testing.assert_close(inverted.final_distance, expected, rtol=1e-5, atol=0)
    # about as near, although the directions of the steps are a little off
    assert expected.median().item() == pytest.approx(exact.final_distance.median().item(), rel=0.05)
    fine = inverted.images[inverted.images > 0.5]
    assert (fine.to(AUTOCAST[precision]) != fine).float().mean() > 0.5


def test_distances_of_low_precision_are_measured_without_tf32(model, seeds, targets):
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    try:
        with arithmetic("bf16", CPU):
            inverter = Inverter(model, Inversion(iterations=1))
            del seen[:]  # of the folding
            inverter(seeds, targets)
            assert torch.backends.cudnn.allow_tf32
    finally:
        hook.remove()
    assert seen and not any(seen)


def test_a_graph_is_captured_beside_threads_that_allocate(model, seeds, targets, monkeypatch):
    """CUDA's default mode lets an allocation in the thread that pins batches invalidate the capture."""
    modes = []

    @contextlib.contextmanager
    def graph(_, stream, capture_error_mode="global"):
        modes.append(capture_error_mode)
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    for name, value in {"Stream": lambda: stream, "current_stream": lambda: stream, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, contextlib.nullcontext)
    inverter = Inverter(model, Inversion(iterations=1))
    inverter._cuda_graph = True
    inverter(seeds, targets)
    assert modes == ["thread_local"]


def test_a_broken_network_is_an_error(seeds, targets):
    model = make_model("vgg11")
    model.model.features[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        Inverter(model, Inversion(iterations=2))(seeds, targets)


def test_a_model_in_training_mode_is_refused(model):
    with pytest.raises(ValueError, match="training mode"):
        Inverter(make_model("vgg11").train(), Inversion())


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"tol": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError):
        Inversion(**settings)


# --- early stop -----------------------------------------------------------------------------------------------------


def start_at(distances):
    """Seeds at these L2 distances from grey targets, of which straight steps of 0.01 take off at most 1 in 100."""
    targets = torch.full((len(distances), 3, 32, 32), 0.5)
    directions = torch.ones_like(targets) / math.sqrt(3072)
    return targets + torch.tensor(distances)[:, None, None, None] * directions, targets


def test_tolerance_stops_an_image_when_it_no_longer_improves():
    model = pixels_as_representation()
    seeds, targets = start_at([0.5, 1.5, 2.5])  # reached after about 60, 160 and 260 iterations
    took_part = []
    settings = Inversion(iterations=1000, step_size=0.01, tol=1e-3)
    stopped = Inverter(model, settings)(seeds, targets, on_step=took_part.append)
    assert took_part == [3] * 200 + [2] * 100 + [1] * 100  # one window more than it takes to arrive
    assert (stopped.final_distance < 2e-3).all()
    alone = [Inverter(model, settings)(s[None], t[None]) for s, t in zip(seeds, targets)]
    torch.testing.assert_close(torch.cat([part.images for part in alone]), stopped.images)
    assert torch.cat([part.best_iteration for part in alone]).tolist() == stopped.best_iteration.tolist()


def test_a_tolerance_never_reached_changes_nothing():
    model, (seeds, targets) = pixels_as_representation(), start_at([3.0, 4.0])
    free = Inverter(model, Inversion(iterations=250, step_size=0.01))(seeds, targets)
    bound = Inverter(model, Inversion(iterations=250, step_size=0.01, tol=1e-6))(seeds, targets)
    assert torch.equal(free.images, bound.images) and torch.equal(free.final_distance, bound.final_distance)


# --- CUDA -----------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("arch", DIGITS_ARCHS)
def test_a_cuda_graph_computes_what_single_launches_do(arch, seeds, targets):
    model = make_model(arch).cuda()
    settings = Inversion(iterations=10, step_size=0.5)
    with arithmetic("fp32", torch.device("cuda")):
        eager = Inverter(model, settings, cuda_graph=False)(seeds.cuda(), targets.cuda())
        inverter = Inverter(model, settings)
        for chosen in (slice(None), slice(3), slice(None)):  # another size captures anew
            inverted = inverter(seeds[chosen].cuda(), targets[chosen].cuda())
            torch.testing.assert_close(inverted.final_distance, eager.final_distance[chosen], rtol=1e-3, atol=0)
            assert torch.equal(inverted.best_iteration, eager.best_iteration[chosen])


@needs_cuda
def test_images_that_have_converged_leave_a_cuda_graph():
    seeds, targets = start_at([0.5, 1.5, 2.5])
    settings = Inversion(iterations=1000, step_size=0.01, tol=1e-3)
    inverted = Inverter(pixels_as_representation().cuda(), settings)(seeds.cuda(), targets.cuda())
    assert (inverted.final_distance < 2e-3).all() and (inverted.best_iteration < 400).all()


@needs_cuda
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_distances_on_cuda_are_those_of_the_cpu(precision, model, seeds, targets):
    with arithmetic(precision, torch.device("cuda")):
        on_cuda = copy.deepcopy(model).cuda()
        found = Inverter(on_cuda, Inversion(iterations=5, step_size=0.5))(seeds.cuda(), targets.cuda())
    expected = relative_distances(model, found.images.cpu(), targets)
    torch.testing.assert_close(found.final_distance.cpu(), expected, rtol=1e-4, atol=0)


# --- parts ----------------------------------------------------------------------------------------------------------


def some(first, last):
    """What inverting positions first … last - 1 might have given: every value tells its position."""
    values = torch.arange(first, last, dtype=torch.float32) / 255
    return Inverted(values[:, None, None, None].expand(-1, 3, 2, 2).clone(), values, values, torch.arange(first, last))


@pytest.fixture
def parts(tmp_path):
    parts = Parts(tmp_path / "net_eps0.pt", {"iterations": 3}, count=10)
    parts.open()
    yield parts
    parts.close()


def test_parts_come_together_whatever_their_order_and_size(parts):
    assert parts.missing(4) == [range(0, 4), range(4, 8), range(8, 10)]
    parts.save(8, some(8, 10))
    parts.save(0, some(0, 3))
    assert parts.missing(10) == [range(3, 8)]
    parts.save(5, some(5, 8))
    assert parts.missing(4) == [range(3, 4), range(4, 5)]  # one run in pieces: what follows keeps to the multiples of 4
    assert parts.missing(100) == [range(3, 5)]
    parts.save(3, some(3, 5))
    assert parts.missing(4) == []
    parts.wait()
    whole = parts.collect()
    assert whole.best_iteration.tolist() == list(range(10))
    said = []
    parts.finish(whole, said.append)
    assert said == [files.file_hash(parts.output)]
    assert torch.equal(torch.load(parts.output, weights_only=True), some(0, 10).images)
    assert not parts.folder.exists()


def test_parts_keep_eight_bits_where_asked(tmp_path):
    parts = Parts(tmp_path / "net_eps0.pt", {"uint8": True}, count=3)
    parts.open()
    parts.save(0, some(0, 3))
    whole = parts.collect()
    parts.finish(whole, lambda sha256: None)
    stored = torch.load(parts.output, weights_only=True)
    assert stored.dtype == torch.uint8 and stored[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_parts_of_other_settings_are_not_mixed(parts):
    parts.save(0, some(0, 4))
    parts.close()
    other = Parts(parts.output, {"iterations": 5}, count=10)
    with pytest.raises(InputError, match="iterations was 3, now 5"):
        other.open()
    other.close()
    assert parts.missing(10) == [range(4, 10)]  # still there
    other.open(discard=True)
    assert other.missing(10) == [range(10)]
    other.close()


def test_a_damaged_part_is_named_and_made_again(parts):
    parts.save(0, some(0, 4))
    parts.save(4, some(4, 10))
    (damaged,) = parts.folder.glob("*-00000004.pt")
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(InputError, match=damaged.name):
        parts.collect()
    assert parts.missing(10) == [range(0, 4)]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Parts(tmp_path / "file" / "net_eps0.pt", {}, count=1).open()
