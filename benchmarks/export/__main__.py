"""Merge and upload of a Llama-shaped random model: seconds and peak memory, against `merge_and_unload` and `save_pretrained` of peft.

    python benchmarks/export --shape 1b --folder FOLDER --repetitions 3

Each way runs in a fresh process, and they take turns, so that other load of the machine meets both. Both start from the same base and
adapter in FOLDER, and send their files to the same server, by the same function; the server counts the bytes and discards them. Ours merges
as the export task does it: one file at a time, which is deleted once it is sent. peft's loads in bfloat16, merges, saves the folder, and
sends its files. The comparison of logits, which the export task makes before and peft does not, has a column of its own.

    python benchmarks/export --dry ~/.cache/fedpipe/models/mpnet

measures the dry export of a classifier on this model instead: what a run does before its first round, in a process that has its imports.
FOLDER needs twice the model's size, and 4 GiB: 31 GB for 7b, 18 for 3b, 9 for 1b. The base is written tensor by tensor, so that making it
takes no memory.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))

SHAPES: Final[Mapping[str, dict[str, Any]]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "3b": {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY: Final = 32_000
RANK: Final = 16
LABELS: Final = 20
"""Of the dry export: those of the demo."""
SAMPLE_SECONDS: Final = 0.01
_SHARD_BYTES: Final = 4 << 30


def main() -> None:
    """Make the model, measure both ways in turn, and print a row for each with the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--shape", choices=SHAPES)
    which.add_argument("--dry", type=Path, metavar="MODEL", help="measure the dry export on the model in this folder instead")
    parser.add_argument("--folder", type=Path, help="in which a new one is made, and removed; by default the folder for temporary files")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "peft"], help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry:
        dry(arguments.dry.resolve(), arguments.repetitions)
        return
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.folder, arguments.server)))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        make_base(folder / "base", SHAPES[arguments.shape])
        make_adapter(folder)
        with discarding_server() as (url, received):
            found = [{way: run(way, folder, url) for way in ("ours", "peft")} for _ in range(arguments.repetitions)]
    finally:
        shutil.rmtree(folder)
    show(arguments.shape, found)
    print(f"each way sent {sum(received) / 2 / arguments.repetitions / 1e6:.0f} MB on average")


def dry(model: Path, repetitions: int) -> None:
    """Print seconds, of them those of this process' CPU time, and by how much memory grew at most, of each dry export."""
    from fedpipe_trainer import peak_memory  # noqa: PLC0415 -- each process imports what it measures
    from fedpipe_trainer.contract import DryExportTask, Model, RunRef, SequenceClassification  # noqa: PLC0415
    from fedpipe_trainer.model import facts  # noqa: PLC0415
    from fedpipe_trainer.recipes import dry_export  # noqa: PLC0415
    from fedpipe_trainer.task_runtime import TaskRuntime  # noqa: PLC0415

    objective = SequenceClassification(labels=tuple(f"label {number}" for number in range(LABELS)))
    task = DryExportTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="",
        model=Model(source=model.as_uri()),
        result="file:///nowhere",
        objective=objective,
        ranks=dict.fromkeys((weight.name for weight in facts(model, objective, ()).weights), RANK),
    )
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            runtime = TaskRuntime(Path(scratch), Path(scratch), lambda _progress: None, lambda: False)
            peak_memory.reset_peak()
            before, begun, used = peak_memory.peak_bytes(), time.perf_counter(), time.process_time()
            dry_export.run(task, runtime)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - used
            print(f"{seconds:.1f} s, {cpu:.1f} s of CPU time, {(peak_memory.peak_bytes() - before) / 1e6:.0f} MB more than before")


def show(shape: str, found: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Print the medians of both ways, and their ratios with the range over the repetitions."""
    middle = {way: {name: median(one[way][name] for one in found) for name in found[0][way]} for way in ("ours", "peft")}
    print("| shape | way | seconds of merging and sending | of comparing, beside them | peak of anonymous memory, MB | peak resident, MB |")
    print("|---|---|---:|---:|---:|---:|")
    for way, one in middle.items():
        print(f"| {shape} | {way} | {one['seconds']:.1f} | {one['compared']:.1f} | {one['anonymous']:.0f} | {one['resident']:.0f} |")
    for name in ("seconds", "anonymous", "resident"):
        ratios = [one["ours"][name] / one["peft"][name] for one in found]
        of_medians = middle["ours"][name] / middle["peft"][name]
        print(f"{name}: {of_medians:.2f} of peft's (of the single pairs: {min(ratios):.2f} to {max(ratios):.2f})")


@contextmanager
def discarding_server() -> Iterator[tuple[str, list[int]]]:
    """Within this context, a server takes files and keeps none, outside of the processes that are measured; its URL, and the sizes."""
    received: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            size = left = int(self.headers["Content-Length"])
            while left and (chunk := self.rfile.read(min(left, 1 << 20))):
                left -= len(chunk)
            received.append(size)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(way: str, folder: Path, url: str) -> dict[str, float]:
    """Measure one way in a process of its own."""
    command = [sys.executable, __file__, "--shape", "tiny", "--folder", str(folder), "--only", way, "--server", url]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(way: str, folder: Path, url: str) -> dict[str, float]:
    """Seconds, and the peaks of memory in MB, of one way; importing libraries is not counted in the seconds."""
    work = {"ours": ours, "peft": by_peft}[way](folder, url)
    peaks, done = {"RssAnon": 0.0, "VmRSS": 0.0}, threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) / 1000)

    sampler = threading.Thread(target=sample)
    sampler.start()
    begun = time.perf_counter()
    compared = work()
    seconds = time.perf_counter() - begun - compared
    done.set()
    sampler.join()
    return {"seconds": seconds, "compared": compared, "anonymous": peaks["RssAnon"], "resident": peaks["VmRSS"]}


def ours(folder: Path, url: str) -> Callable[[], float]:
    """The export task's way."""
    from fedpipe_trainer import transfer  # noqa: PLC0415 -- each process imports what it measures
    from fedpipe_trainer.adapters import read_global_adapter  # noqa: PLC0415
    from fedpipe_trainer.adapters.comparison import largest_difference  # noqa: PLC0415
    from fedpipe_trainer.adapters.streaming_merge import plan_merge, write_shard  # noqa: PLC0415
    from fedpipe_trainer.contract import CausalLM  # noqa: PLC0415
    from fedpipe_trainer.model.skeleton import read_skeleton  # noqa: PLC0415

    objective = CausalLM(prompt="{a}", response="{b}")
    file = folder / "global.safetensors"

    def work() -> float:
        skeleton = read_skeleton(folder / "base", objective)
        adapter = read_global_adapter(file, skeleton.model, skeleton.head)
        plan = plan_merge(skeleton, weights=adapter.weights, shard_bytes=_SHARD_BYTES)
        begun = time.perf_counter()
        largest_difference(objective, skeleton, adapter, plan)
        compared = time.perf_counter() - begun
        scratch = folder / "scratch"
        scratch.mkdir()
        for shard in plan.shards:
            path, artifact = write_shard(shard, skeleton.model, adapter, scratch)
            transfer.send(path, f"{url}/{shard.name}", known=artifact)
            path.unlink()
        scratch.rmdir()
        return compared

    return work


def by_peft(folder: Path, url: str) -> Callable[[], float]:
    """The way that a user without FedPipe goes, with the base in memory."""
    import torch  # noqa: PLC0415 -- as above
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from fedpipe_trainer import transfer  # noqa: PLC0415 -- so that both ways send by the same function

    def work() -> float:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
        merged.save_pretrained(folder / "merged", max_shard_size=f"{_SHARD_BYTES >> 30}GB")
        for path in sorted((folder / "merged").glob("*.safetensors")):
            transfer.send(path, f"{url}/{path.name}")
        shutil.rmtree(folder / "merged")
        return 0.0

    return work


def make_base(folder: Path, shape: Mapping[str, Any]) -> None:
    """Write a model of this shape, with a tokenizer of its vocabulary."""
    from random_bases import write_random_base  # noqa: PLC0415 -- as above
    from tokenizers import Tokenizer, models  # noqa: PLC0415
    from transformers import LlamaConfig, PreTrainedTokenizerFast  # noqa: PLC0415

    write_random_base(folder, LlamaConfig(vocab_size=VOCABULARY, dtype="bfloat16", architectures=["LlamaForCausalLM"], **shape))
    vocabulary = {f"t{number}": number for number in range(VOCABULARY - 1)} | {"</s>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))  # noqa: S106 -- a token of text
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)  # noqa: S106 -- likewise


def make_adapter(folder: Path) -> None:
    """Write the same adapter of rank 16 as the operator has it, and as a PEFT folder."""
    import torch  # noqa: PLC0415 -- as above

    from fedpipe_trainer.adapters import AdapterTensors, Factors, base_name, write_peft_folder, write_tensors  # noqa: PLC0415
    from fedpipe_trainer.adapters.wire import lora_a_key, lora_b_key  # noqa: PLC0415
    from fedpipe_trainer.contract import CausalLM  # noqa: PLC0415
    from fedpipe_trainer.model import facts  # noqa: PLC0415
    from fedpipe_trainer.model.skeleton import read_skeleton  # noqa: PLC0415

    objective, generator = CausalLM(prompt="{a}", response="{b}"), torch.Generator().manual_seed(1)
    weights = {
        one.name: Factors(torch.randn(RANK, one.d_in, generator=generator) * 0.01, torch.randn(one.d_out, RANK, generator=generator) * 0.01)
        for one in facts(folder / "base", objective, ()).weights
    }
    tensors = {lora_a_key(name): one.a for name, one in weights.items()} | {lora_b_key(name): one.b for name, one in weights.items()}
    write_tensors(tensors, folder / "global.safetensors")
    (folder / "adapter").mkdir()
    skeleton = read_skeleton(folder / "base", objective)
    adapter, base = AdapterTensors(weights), base_name((folder / "base").as_uri(), None)
    write_peft_folder(skeleton.model, (), adapter, objective, base=base, folder=folder / "adapter")


if __name__ == "__main__":
    main()
