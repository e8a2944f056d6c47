"""Classifiers that others define: an entry for any of timm, torchvision, the Hugging Face hub, RobustBench, or a file.

What is made here costs nothing until a network is built or its weights are asked for. Weights come as the path of a
file, which `files.safeload` reads: the libraries' own loaders unpickle. Only `module:` runs code, the user's own.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from univ.errors import InputError
from univ.models.entry import Arch

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_SECONDS = 10  # until the hub counts as out of reach; its own client would try for half a minute


def library_arch(text: str) -> Arch | None:
    """The entry of `timm:NAME`, `torchvision:NAME[.WEIGHTS]`, ... ; None where the text is none of these.

    Raises:
        InputError: no such library here, or no such classifier in it; names the closest.
    """
    kind, _, name = text.partition(":")
    return LIBRARIES[kind](name) if kind in LIBRARIES and name else None


def _unknown(library: str, name: str, names: Iterable[str]) -> InputError:
    close = difflib.get_close_matches(name, names := list(names), n=5) or names[:5]
    return InputError(f"{library} has no classifier called {name!r}: did you mean one of {', '.join(close)}?")


def _square_rgb(source: str, size: tuple[int, int, int]) -> int:
    channels, height, width = size
    if channels != 3 or height != width:
        raise InputError(f"{source} takes {channels} x {height} x {width} inputs: expected square RGB images")
    return height


# --- timm and the hub -----------------------------------------------------------------------------------------------


@functools.cache
def _timm(name: str) -> Arch:
    timm = importlib.import_module("timm")
    base = name.partition(".")[0]  # "convnext_tiny.fb_in1k": architecture and the weights that are meant
    if not timm.is_model(base):  # also keeps out "hf-hub:…" names, which would be fetched
        raise _unknown("timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # the architecture is there, such weights are not
        raise _unknown("timm", name, [base, *timm.list_models(f"{base}*", pretrained=True)]) from error
    return _timm_entry(f"timm:{name}", name, config, weights=functools.partial(_timm_weights, name, config))


@functools.cache
def _hub(name: str) -> Arch:
    if name.count("/") != 1:
        raise InputError(f"hub:{name}: expected hub:USER/REPO, a model of timm's on the Hugging Face hub")
    timm_hub, entrypoint = (importlib.import_module(f"timm.models.{part}") for part in ("_hub", "_registry"))
    config_file = _hub_file(f"hub:{name}", name, ("config.json",), "there is no other place for this file")
    try:
        content = timm_hub.load_cfg_from_json(config_file)
        config, arch, settings = timm_hub._parse_model_cfg(content, {"hf_hub_id": name, "source": "hf-hub"})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"hub:{name}: its config.json is none of timm's ({error})") from error
    if not entrypoint.is_model(arch):
        raise InputError(f"hub:{name} is a model {arch!r}, which this version of timm does not have")
    config = importlib.import_module("timm.models").PretrainedCfg(**config)
    advice = f"or give timm:{arch}=FILE"
    weights = functools.partial(_hub_file, f"hub:{name}", name, HUB_FILES, advice)
    return _timm_entry(f"hub:{name}", arch, config, weights=weights, **(settings or {}))


def _timm_entry(source: str, name: str, config: Any, *, weights: Callable[[], Path], **settings: Any) -> Arch:
    size, create = _square_rgb(source, config.input_size), importlib.import_module("timm").create_model
    offered = bool(config.has_weights or settings)

    def build(num_classes: int | None) -> nn.Module:
        return create(name, pretrained=False, num_classes=num_classes or config.num_classes, **settings)

    def convert(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # timm's own translation of weights as others released them; it reads no file here
        overlay = {"state_dict": dict(state)}
        try:
            return create(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings).state_dict()
        except (RuntimeError, KeyError, AttributeError, ValueError, TypeError):  # they are of another network
            return state

    statistics = {"mean": tuple(config.mean), "std": tuple(config.std), "input_size": size}
    known = {"weights": weights if offered or source.startswith("hub:") else None, "num_classes": config.num_classes}
    return Arch(build, head=None, **statistics, **known, convert=convert)


def _timm_weights(name: str, config: Any) -> Path:
    source = f"timm:{name}"
    advice = f"{_beside(source)}, or give {source}=FILE"
    if config.hf_hub_id:
        names = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
        return _hub_file(source, config.hf_hub_id, names, advice)
    return _url_file(source, config.url, advice)


def _beside(source: str) -> str:
    return f"put it into --model-dir as {source.replace(':', '_')} with its suffix"


def _hub_file(source: str, repository: str, names: Iterable[str], advice: str) -> Path:
    """A file of a repository on the Hugging Face hub, from the hub's cache or fetched: the first name that is there."""
    hub = importlib.import_module("huggingface_hub")
    repository, _, revision = repository.partition("@")
    options, names = {"revision": revision or None}, list(names)
    for name in names:
        if isinstance(path := hub.try_to_load_from_cache(repository, name, **options), str):
            return Path(path)
    wanted = f"{source} wants {' or '.join(names)} of {repository} on the Hugging Face hub"
    try:
        if hub.constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        hub.get_session().head(hub.constants.ENDPOINT, timeout=CONNECT_SECONDS)
        for name in names:
            try:
                return Path(hub.hf_hub_download(repository, name, **options))
            except hub.errors.RemoteEntryNotFoundError:
                continue
        raise OSError("the repository has no such file")
    except InputError:
        raise
    except Exception as error:  # of the client's, of its transport's, of the file system: none says what to do
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        cache = hub.constants.HF_HUB_CACHE
        raise FileNotFoundError(
            f"{wanted}, which is not in {cache} and cannot be fetched ({reason}): {advice}"
        ) from error


def _url_file(source: str, url: str, advice: str) -> Path:
    """What torch.hub keeps of an address, fetched if it is not there and compared with the hash in its name."""
    hub = importlib.import_module("torch.hub")
    path = Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = hub.HASH_REGEX.search(path.name)
        hub.download_url_to_file(url, str(path), found and found[1], progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network; a file with another hash
        raise FileNotFoundError(
            f"{source} wants {url}, which is not at {path} and cannot be fetched ({error}): put it there, {advice}"
        ) from error
    return path


# --- torchvision ----------------------------------------------------------------------------------------------------


@functools.cache
def _torchvision(name: str) -> Arch:
    models = importlib.import_module("torchvision.models")
    names = models.list_models(module=models)  # classifiers only: detection, video, … live in submodules
    base, _, tag = name.partition(".")
    if base not in names:
        raise _unknown("torchvision", name, names)
    known = models.get_model_weights(base)
    if tag and tag not in known.__members__:
        listed = ", ".join(f"{base}.{member}" for member in known.__members__)
        raise InputError(f"torchvision has no weights {tag!r} of {base}: choose from {listed}")
    weights = known[tag] if tag else known.DEFAULT
    pixels = weights.transforms()
    advice = f"{_beside(f'torchvision:{name}')}, or give torchvision:{name}=FILE"

    def build(num_classes: int | None) -> nn.Module:
        return models.get_model(base, weights=None, num_classes=num_classes or len(weights.meta["categories"]))

    return Arch(
        build,
        head=None,
        mean=tuple(pixels.mean),
        std=tuple(pixels.std),
        input_size=pixels.crop_size[0],
        weights=functools.partial(_url_file, f"torchvision:{name}", weights.url, advice),
        num_classes=len(weights.meta["categories"]),
    )


# --- RobustBench ----------------------------------------------------------------------------------------------------


@functools.cache
def _robustbench(name: str) -> Arch:
    try:
        zoo = importlib.import_module("robustbench.model_zoo").model_dicts
    except ModuleNotFoundError as error:
        where = "https://github.com/RobustBench/robustbench"
        raise InputError(f"robustbench:{name} needs the package robustbench ({where}), but {error}") from error
    held = {
        f"{d.value}/{t.value}/{key}": entry for d, of in zoo.items() for t, e in of.items() for key, entry in e.items()
    }
    found = [full for full in held if full.endswith(f"/{name}") or full == name]
    if not found:
        raise _unknown("robustbench", name, sorted({full.rpartition("/")[2] for full in held}))
    if len(found) > 1:
        listed = ", ".join(f"robustbench:{full}" for full in found)
        raise InputError(f"robustbench:{name} is several models: choose from {listed}")
    full, entry = found[0], held[found[0]]
    if not isinstance(entry["gdrive_id"], str):
        raise InputError(f"robustbench:{name} is an ensemble, or has no file of its own: only single networks are read")

    def build(num_classes: int | None) -> nn.Module:
        return entry["model"]()

    def convert(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own = build(None).state_dict()
        state = {f"model.{key}" if f"model.{key}" in own else key: value for key, value in state.items()}
        buffers = {key: own[key] for key in own if key.split(".")[-1] in ("mu", "sigma", "mean", "std", "mean_cifar")}
        return buffers | state  # pixel statistics are the class's, not the file's

    def weights() -> Path:
        path = Path("models") / f"{full}.pt"  # where the package itself keeps it
        if not path.is_file():
            advice = f"put it there, or give robustbench:{name}=FILE"
            fetch = importlib.import_module("robustbench.utils").download_gdrive
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch(entry["gdrive_id"], str(path))
            except OSError as error:
                reason = str(error)[:200]
                text = f"robustbench:{name} wants {path}, which cannot be fetched ({reason}): {advice}"
                raise FileNotFoundError(text) from error
        return path

    dataset = full.partition("/")[0]
    classes, size = {"cifar10": (10, 32), "cifar100": (100, 32), "imagenet": (1000, 224)}[dataset]
    as_it_is = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # the zoo's networks take pixels
    return Arch(build, None, **as_it_is, input_size=size, weights=weights, num_classes=classes, convert=convert)


# --- the user's own -------------------------------------------------------------------------------------------------


def _module(name: str) -> Arch:
    file, _, function = name.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not function:
        raise InputError(f"module:{name}: expected module:FILE.py:FUNCTION, a function that returns an nn.Module")
    if not path.is_file():
        raise FileNotFoundError(f"module:{name}: there is no file {file}")

    def build(num_classes: int | None) -> nn.Module:
        return _call(name, path, function, num_classes)

    as_it_is = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return Arch(build, head=None, **as_it_is, brings_weights=True, code=path)


def _call(name: str, path: Path, function: str, num_classes: int | None) -> nn.Module:
    """The network that a function of the user's file returns; it gets the number of classes if it asks for it."""
    made: Any = None
    try:
        module = _run_file(path.resolve(), path.stat().st_mtime_ns)
        if callable(maker := getattr(module, function, None)):
            asks = num_classes is not None and "num_classes" in inspect.signature(maker).parameters
            made = maker(num_classes=num_classes) if asks else maker()
    except Exception as error:  # whatever the user's code raises is the user's to read
        line = _line_of(error, path)
        raise InputError(f"module:{name}: {path}{line}: {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        return made
    if maker is None:
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function, functions) or functions[:10]
        raise InputError(f"module:{name}: {path} has no function {function!r}; it has {', '.join(close) or 'none'}")
    raise InputError(f"module:{name} gives a {type(made).__name__}: expected a function that returns an nn.Module")


@functools.cache
def _run_file(path: Path, changed: int) -> ModuleType:
    """Run the user's file, once for each state of it; what lies beside it can be imported from there."""
    spec = importlib.util.spec_from_file_location(f"module_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[spec.name] = module  # dataclasses and pickles look the module up
    spec.loader.exec_module(module)
    return module


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line


LIBRARIES: dict[str, Callable[[str], Arch]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hub": _hub,
    "robustbench": _robustbench,
    "module": _module,
}
