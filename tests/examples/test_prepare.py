"""The scripts of the examples: the split, the parser, folders that are created atomically, packages verified by hash."""

import csv
import hashlib
import importlib.util
import json
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from crds import ROOT
from hypothesis import given
from hypothesis import strategies as st
from ingredients.folders import link_folder, make_once
from ingredients.newsgroups import parse_tab
from ingredients.packages import Package, download
from ingredients.reports import MACHINES, reports
from ingredients.splitting import balanced_sample, dirichlet_shares, split_rows
from ingredients.tables import write_rows
from ingredients.toy_t5 import make_toy_t5

from fedpipe_operator import conversion
from fedpipe_operator.cli.files import read
from fedpipe_trainer.contract import DataPolicy
from fedpipe_trainer.data import encode, read_rows, select_rows
from fedpipe_trainer.model import load, target_weights

CLASSES = [f"group-{number % 7}" for number in range(1000)]
SIZES = [0.5, 0.3, 0.2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"prepare_{name.replace('-', '_')}", ROOT / "examples" / name / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(classes=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=300), alpha=st.floats(0.05, 100), seed=st.integers(0, 1000))
def test_every_row_goes_to_exactly_one_site(classes: list[str], alpha: float, seed: int) -> None:
    sites = split_rows(classes, dirichlet_shares(classes, SIZES, alpha=alpha, seed=seed), seed=seed)

    assert sorted(row for site in sites for row in site) == list(range(len(classes)))
    assert len(sites) == 3


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (split_rows(CLASSES, dirichlet_shares(CLASSES, SIZES, alpha=0.5, seed=seed), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_large_alpha_splits_every_class_by_size_and_a_small_one_unevenly() -> None:
    even, uneven = (dirichlet_shares(CLASSES, SIZES, alpha=alpha, seed=0) for alpha in (1e6, 0.1))

    assert all(np.allclose(shares, SIZES, atol=0.01) for shares in even.values())
    assert np.mean([shares.max() for shares in uneven.values()]) > 0.8


def test_the_rows_of_a_site_are_in_random_order() -> None:
    (site,) = split_rows(CLASSES, dirichlet_shares(CLASSES, [1.0], alpha=1, seed=0), seed=0)

    assert len({CLASSES[row] for row in site[:50]}) == 7


def test_a_balanced_sample_has_the_same_number_of_rows_of_each_class() -> None:
    sample = balanced_sample([*CLASSES, "rare"], 20, seed=0)

    assert set(Counter([*CLASSES, "rare"][row] for row in sample).items()) == {("rare", 1), *((class_, 20) for class_ in set(CLASSES))}


def test_a_tab_file_has_three_header_lines_and_rows_without_text_are_skipped() -> None:
    text = "Category\tText\nd\tstring\nclass\t\n\nsci.space\tthe moon is far\nsci.med\t \nsci.med\ttwo words\n"

    assert parse_tab(text) == [{"label": "sci.space", "text": "the moon is far"}, {"label": "sci.med", "text": "two words"}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_trainer_reads_the_files_of_the_scripts(tmp_path: Path, suffix: str) -> None:
    rows = [{"label": "a", "text": 'with "quotes",\nand a line'}, {"label": "b", "text": "£20 café"}]
    write_rows(tmp_path / f"rows.{suffix}", rows)

    assert read_rows(tmp_path / f"rows.{suffix}", ("label", "text")).rows == rows


def test_a_folder_is_made_once_and_again_when_its_input_changes(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "file").touch()

    assert make_once(tmp_path / "a", make, made_from="1")
    assert not make_once(tmp_path / "a", make, made_from="1")
    assert make_once(tmp_path / "a", make, made_from="2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made_does_not_exist(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "a", make)

    assert list(tmp_path.iterdir()) == []


def test_files_of_a_killed_script_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "half").touch()

    make_once(tmp_path / "a", lambda folder: (folder / "complete").touch())

    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".made-from", "complete"]


def test_a_link_is_replaced_when_the_cache_moves(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        link_folder(tmp_path / "volumes" / "models" / "base", tmp_path / name)

    assert (tmp_path / "volumes" / "models" / "base").resolve() == tmp_path / "new"


@pytest.mark.parametrize("right", [True, False])
def test_a_package_without_the_pinned_hash_is_refused(tmp_path: Path, *, right: bool) -> None:
    def pip(command: list[str]) -> None:
        assert command[-1] == "tiny==1.0"
        with zipfile.ZipFile(Path(command[-2]) / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/data.txt", "data")

    pip(["--dest", str(tmp_path), "tiny==1.0"])
    (wheel,) = tmp_path.iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest() if right else "0" * 64
    package = Package("tiny", "1.0", digest, 1)

    if right:
        assert download(package, tmp_path / "wheels", pip).name == "tiny-1.0-py3-none-any.whl"
    else:
        with pytest.raises(SystemExit, match=r"tiny==1\.0 does not have the pinned hash"):
            download(package, tmp_path / "wheels", pip)


def test_the_validation_sets_of_the_quick_start_together_are_balanced() -> None:
    prepare = script("quickstart")
    rows = [{"label": f"group-{number % 20:02}", "text": f"text {number}"} for number in range(12000)]

    sites = prepare.sites_rows(rows, rows[:2000])
    trained = Counter(row["label"] for train, _ in sites.values() for row in train)
    validated = Counter(row["label"] for _, validation in sites.values() for row in validation)

    assert set(trained.values()) == {prepare.TRAIN_PER_GROUP}
    assert set(validated.values()) == {prepare.TEST_PER_GROUP}
    assert len({row["text"] for train, _ in sites.values() for row in train}) == 20 * prepare.TRAIN_PER_GROUP


def test_data_to_text_keeps_all_sentences_of_a_meaning_at_one_site() -> None:
    prepare = script("data-to-text")
    rows = [{"mr": f"name[Inn {number % 9}], food[dish {number % 90}]", "ref": f"sentence {number}"} for number in range(900)]

    sites = prepare.sites_rows(rows, rows)
    meanings = [{row["mr"] for row in train} for train, _ in sites.values()]

    assert sorted(row["ref"] for train, _ in sites.values() for row in train) == sorted(row["ref"] for row in rows)
    assert sum(len(site) for site in meanings) == len(set.union(*meanings)) == 90


MADE = [("chat", "desk"), ("questions", "texts"), ("inference", "pairs"), ("preference", "answers"), ("edge", "reports")]
"""Examples without a data set, with how the names of their claims end."""


@pytest.mark.parametrize(("name", "claims"), MADE)
def test_the_trainer_reads_what_an_example_makes_without_a_data_set(tmp_path: Path, name: str, claims: str) -> None:
    prepare = script(name)
    objects, _ = read([ROOT / "examples" / name])
    objective = conversion.objective(objects.runs[0].spec.task)

    for claim, (_, suffix) in prepare.SITES.items():
        (tmp_path / claim).mkdir()
        prepare._write(tmp_path / claim, claim=claim)
        for subset in ("train", "validation"):
            found = select_rows(tmp_path / claim / f"{subset}.{suffix}", objective, DataPolicy())
            assert claim.endswith(claims)
            assert len(found.rows) >= 20
            assert found.skipped == 0


def test_natural_language_inference_reads_the_columns_of_sick(tmp_path: Path) -> None:
    file = tmp_path / "SICK_train.txt"
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    file.write_text(f'{header}\n1\tA "man sings\tNobody sings\t3.5\tCONTRADICTION\n')

    assert script("inference").sick_pairs(file) == [{"premise": 'A "man sings', "hypothesis": "Nobody sings", "label": "CONTRADICTION"}]


def test_the_toy_knows_every_word_of_the_sites_and_trains_as_an_encoder_decoder(tmp_path: Path) -> None:
    make_toy_t5(tmp_path, steps=2)
    objects, _ = read([ROOT / "examples" / "edge"])
    objective = conversion.objective(objects.runs[0].spec.task)
    rows = [row for machine in MACHINES for row in reports(machine, 200, seed=3)]

    base = load(tmp_path, 32, objective)
    examples = encode(rows, objective, base.tokenizer)

    assert base.model.config.is_encoder_decoder
    assert len(target_weights(base.model, base.model.config.model_type, ())) == 4 * 4 + 4 * 8, "q, k, v, o of each attention"
    tokens = {token for one in examples for token in (*one.input_ids, *one.labels)}
    assert base.tokenizer.unk_token_id not in tokens
    assert all(one.input_ids[-1] == one.labels[-1] == base.tokenizer.eos_token_id for one in examples)


def test_reports_are_the_same_every_time_and_their_summaries_say_what_they_are_about() -> None:
    rows = reports("pump", 50, seed=1)

    assert rows == reports("pump", 50, seed=1)
    assert rows != reports("pump", 50, seed=2)
    for row in rows:
        name, place = row["summary"].partition(" : ")[0].split(" , ")
        assert f"called to {name} at the {place} ." in row["report"]


@pytest.mark.parametrize("name", ["quickstart", "data-to-text", "chat", "questions", "inference", "preference", "edge"])
def test_the_scripts_write_the_files_that_the_yaml_names(name: str) -> None:
    objects, _ = read([ROOT / "examples" / name])
    named = {site.spec.data.volume.persistent_volume_claim.claim_name: Path(site.spec.data.train).suffix for site in objects.sites}

    assert named == {claim: f".{suffix}" for claim, (_, suffix) in script(name).SITES.items()}


def test_data_to_text_reads_the_columns_of_the_data_set(tmp_path: Path) -> None:
    prepare = script("data-to-text")
    for name in ("devset.csv", "testset_w_refs.csv"):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([("mr", "ref"), *((f"name[Inn {number}], food[fish]", "A, b.") for number in range(60))])
    (tmp_path / "city").mkdir()

    prepare._write(tmp_path / "city", claim="city-guide", files=prepare._files(tmp_path))

    assert json.loads((tmp_path / "city" / "train.jsonl").read_text().splitlines()[0])["ref"] == "A, b."


def test_data_to_text_without_the_data_says_what_to_do(tmp_path: Path) -> None:
    prepare = script("data-to-text")

    with pytest.raises(SystemExit, match=r"--data FOLDER or E2E_DATA"):
        prepare._files(None)
    with pytest.raises(SystemExit, match=r"devset.csv does not exist"):
        prepare._files(tmp_path)
