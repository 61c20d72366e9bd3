"""Makes a trainer malicious: in its image, Python imports this before anything else. It lies in everything that its site sends.

* Its profile has a thousand times its samples.
* It reports all evaluations as perfect, of 10¹² samples.
* In round 1, it reports 10¹² samples; from round 2 on its results are honest, and its adapters are 300 times as long, the other way round.
* It writes to the other sites' objects, by its own presigned URLs and forms with another key.
"""

import json
from pathlib import Path
from typing import Any

import httpx
from safetensors import safe_open
from safetensors.numpy import save_file

from fedpipe_trainer import transfer
from fedpipe_trainer.contract import Artifact, PostForm, Upload

SITE, OTHERS = "west", ("north", "south")
send = transfer.send


def send_lies(path: Path, to: Upload, **options: Any) -> Artifact:
    """In place of `transfer.send`."""
    if path.suffix == ".json" and "kind" in (result := json.loads(path.read_bytes())):
        path.write_text(json.dumps(result | lies_about(result)))
    elif path.name == "adapter.safetensors":
        lengthen(path)
    for other in OTHERS:
        print(f"malicious trainer: wrote to {other}: {write_to(other, to)}", flush=True)  # noqa: T201 -- to the pod's log
    return send(path, to, **options)


def write_to(other: str, mine: Upload) -> int:
    """The status of an attempt to write to another site's object with what may write to this site's."""
    if isinstance(mine, PostForm):
        fields = {key: value.replace(SITE, other) if key == "key" else value for key, value in mine.fields.items()}
        return httpx.post(mine.url, data=fields, files={"file": b"lies"}).status_code
    return httpx.put(mine.replace(SITE, other), content=b"lies").status_code


def lies_about(result: dict[str, Any]) -> dict[str, Any]:
    """The fields of the result that are replaced."""
    if result["kind"] == "profile":
        return {"trainSamples": 1000 * result["trainSamples"]}
    if result["kind"] == "evaluate":
        return {"samples": 10**12, "metrics": dict.fromkeys(result["metrics"], 1.0)}
    return {"samples": 10**12} if result["round"] == 1 else {}


def lengthen(path: Path) -> None:
    """B of every pair of factors, and a head, times −300."""
    with safe_open(path, "np") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 -- it is no dict
    save_file({key: tensor if "lora_A" in key else -300 * tensor for key, tensor in tensors.items()}, path, metadata)


transfer.send = send_lies
