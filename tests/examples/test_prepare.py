"""What the examples' scripts are made of: the split, the parser, folders that are whole or absent, packages checked by hash."""

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
from ingredients.folders import linked, made_once
from ingredients.newsgroups import parse_tab
from ingredients.packages import Package, download
from ingredients.splitting import dealt, even_sample, uneven_shares
from ingredients.tables import write_rows

from fedpipe_operator.cli.files import read
from fedpipe_trainer.data import read_rows

KINDS = [f"group-{number % 7}" for number in range(1000)]
SIZES = [0.5, 0.3, 0.2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"prepare_{name.replace('-', '_')}", ROOT / "examples" / name / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(kinds=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=300), alpha=st.floats(0.05, 100), seed=st.integers(0, 1000))
def test_every_row_goes_to_exactly_one_site(kinds: list[str], alpha: float, seed: int) -> None:
    sites = dealt(kinds, uneven_shares(kinds, SIZES, alpha=alpha, seed=seed), seed=seed)

    assert sorted(row for site in sites for row in site) == list(range(len(kinds)))
    assert len(sites) == 3


def test_the_split_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (dealt(KINDS, uneven_shares(KINDS, SIZES, alpha=0.5, seed=seed), seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_a_large_alpha_deals_evenly_by_size_and_a_small_one_unevenly_by_kind() -> None:
    even, uneven = (uneven_shares(KINDS, SIZES, alpha=alpha, seed=0) for alpha in (1e6, 0.1))

    assert all(np.allclose(shares, SIZES, atol=0.01) for shares in even.values())
    assert np.mean([shares.max() for shares in uneven.values()]) > 0.8


def test_a_site_s_rows_stand_in_an_order_by_chance() -> None:
    (site,) = dealt(KINDS, uneven_shares(KINDS, [1.0], alpha=1, seed=0), seed=0)

    assert len({KINDS[row] for row in site[:50]}) == 7


def test_an_even_sample_has_as_many_rows_of_each_kind() -> None:
    sample = even_sample([*KINDS, "rare"], 20, seed=0)

    assert set(Counter([*KINDS, "rare"][row] for row in sample).items()) == {("rare", 1), *((kind, 20) for kind in set(KINDS))}


def test_a_tab_file_has_three_lines_of_header_and_rows_without_text_are_passed_over() -> None:
    text = "Category\tText\nd\tstring\nclass\t\n\nsci.space\tthe moon is far\nsci.med\t \nsci.med\ttwo words\n"

    assert parse_tab(text) == [{"label": "sci.space", "text": "the moon is far"}, {"label": "sci.med", "text": "two words"}]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_trainer_reads_what_the_scripts_write(tmp_path: Path, suffix: str) -> None:
    rows = [{"label": "a", "text": 'with "quotes",\nand a line'}, {"label": "b", "text": "£20 café"}]
    write_rows(tmp_path / f"rows.{suffix}", rows)

    assert read_rows(tmp_path / f"rows.{suffix}", ("label", "text")).rows == rows


def test_a_folder_is_made_once_and_anew_when_what_it_is_made_from_changes(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "file").touch()

    assert made_once(tmp_path / "a", make, made_from="1")
    assert not made_once(tmp_path / "a", make, made_from="1")
    assert made_once(tmp_path / "a", make, made_from="2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_whose_making_fails_is_not_there(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "a", make)

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_script_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "half").touch()

    made_once(tmp_path / "a", lambda folder: (folder / "whole").touch())

    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".made-from", "whole"]


def test_a_link_follows_a_cache_that_moved(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        linked(tmp_path / "volumes" / "models" / "base", tmp_path / name)

    assert (tmp_path / "volumes" / "models" / "base").resolve() == tmp_path / "new"


@pytest.mark.parametrize("right", [True, False])
def test_a_package_whose_bytes_are_not_those_pinned_is_refused(tmp_path: Path, *, right: bool) -> None:
    def pip(command: list[str]) -> None:
        assert command[-1] == "tiny==1.0"
        with zipfile.ZipFile(Path(command[-2]) / "tiny-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/data.txt", "data")

    pip(["--dest", str(tmp_path), "tiny==1.0"])
    (made,) = tmp_path.iterdir()
    digest = hashlib.sha256(made.read_bytes()).hexdigest() if right else "0" * 64
    package = Package("tiny", "1.0", digest, 1)

    if right:
        assert download(package, tmp_path / "wheels", pip).name == "tiny-1.0-py3-none-any.whl"
    else:
        with pytest.raises(SystemExit, match=r"tiny==1\.0 is not the file that was pinned"):
            download(package, tmp_path / "wheels", pip)


def test_the_quick_start_s_validation_sets_together_are_every_group_evenly() -> None:
    prepare = script("quickstart")
    rows = [{"label": f"group-{number % 20:02}", "text": f"text {number}"} for number in range(12000)]

    sites = prepare.sites_rows(rows, rows[:2000])
    trained = Counter(row["label"] for train, _ in sites.values() for row in train)
    judged = Counter(row["label"] for _, validation in sites.values() for row in validation)

    assert set(trained.values()) == {prepare.TRAIN_PER_GROUP}
    assert set(judged.values()) == {prepare.TEST_PER_GROUP}
    assert len({row["text"] for train, _ in sites.values() for row in train}) == 20 * prepare.TRAIN_PER_GROUP


def test_data_to_text_keeps_all_sentences_of_a_meaning_at_one_site() -> None:
    prepare = script("data-to-text")
    rows = [{"mr": f"name[Inn {number % 9}], food[dish {number % 90}]", "ref": f"sentence {number}"} for number in range(900)]

    sites = prepare.sites_rows(rows, rows)
    held = [{row["mr"] for row in train} for train, _ in sites.values()]

    assert sorted(row["ref"] for train, _ in sites.values() for row in train) == sorted(row["ref"] for row in rows)
    assert sum(len(one) for one in held) == len(set.union(*held)) == 90


@pytest.mark.parametrize("name", ["quickstart", "data-to-text"])
def test_the_scripts_write_what_the_yaml_names(name: str) -> None:
    objects, _ = read([ROOT / "examples" / name])
    named = {site.spec.data.volume.persistent_volume_claim.claim_name: Path(site.spec.data.train).suffix for site in objects.sites}

    assert named == {claim: f".{suffix}" for claim, (_, suffix) in script(name).SITES.items()}


def test_data_to_text_reads_the_data_set_s_own_columns(tmp_path: Path) -> None:
    prepare = script("data-to-text")
    for name in ("devset.csv", "testset_w_refs.csv"):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([("mr", "ref"), *((f"name[Inn {number}], food[fish]", "A, b.") for number in range(60))])
    (tmp_path / "city").mkdir()

    prepare._write(tmp_path / "city", claim="city-guide", files=prepare._files(tmp_path))

    assert json.loads((tmp_path / "city" / "train.jsonl").read_text().splitlines()[0])["ref"] == "A, b."


def test_data_to_text_says_what_to_do_without_the_data(tmp_path: Path) -> None:
    prepare = script("data-to-text")

    with pytest.raises(SystemExit, match=r"--data FOLDER or E2E_DATA"):
        prepare._files(None)
    with pytest.raises(SystemExit, match=r"there is no .*devset.csv"):
        prepare._files(tmp_path)
