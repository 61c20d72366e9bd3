"""The images: their packages, pip's settings during the build, and what no image may contain."""

import re
import tomllib
from pathlib import Path

import pytest
from testcluster import builder_settings, images, machine, pruning
from testcluster.layout import REGISTRY, REPOSITORY

PRODUCTS = ("operator", "trainer")


def pins(lock: str) -> set[str]:
    """The pins of a lock file, each with its hashes."""
    text = (REPOSITORY / lock).read_text().replace("\\\n", "")
    return {" ".join(line.split()) for line in text.splitlines() if line and line[0] not in "# "}


def names(lock: str) -> set[str]:
    return {line.partition("==")[0] for line in pins(lock)}


def required(extra: str) -> set[str]:
    """The requirements of an image in pyproject.toml, as `name==version` in lower case and without extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return {re.sub(r"\[.*\]", "", line).lower() for line in project["dependencies"] + project["optional-dependencies"][extra]}


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_images_packages_are_pinned_as_in_the_lock(product: str) -> None:
    assert pins(f"requirements-{product}.lock") <= pins("requirements.lock")


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_image_has_every_package_that_its_part_requires(product: str) -> None:
    pinned = {line.partition(" ")[0] for line in pins(f"requirements-{product}.lock")}

    assert required(product) <= pinned


def test_the_operators_image_has_no_deep_learning_library() -> None:
    assert not names("requirements-operator.lock") & {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "scipy"}


def test_the_build_backend_is_pinned_as_pyproject_names_it() -> None:
    [backend] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]

    assert backend in {line.partition(" ")[0] for line in pins("requirements-build.lock")}


def test_the_benchmarks_rival_is_installed_without_changing_any_other_package() -> None:
    rival, others = ({pin.split()[0] for pin in pins(lock)} for lock in ("requirements-rival.lock", "requirements.lock"))

    assert {pin.partition("==")[0] for pin in rival - others} == {"ray"}


LOCKS = ["requirements-build.lock", "requirements-operator.lock", "requirements-trainer.lock", "requirements-rival.lock"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash_and_no_index_is_named(lock: str) -> None:
    assert all("--hash=sha256:" in pin for pin in pins(lock))
    assert "://" not in (REPOSITORY / lock).read_text()


@pytest.mark.parametrize("product", PRODUCTS)
def test_dockerignore_admits_what_a_dockerfile_copies(product: str) -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (REPOSITORY / f"Dockerfile.{product}").read_text(), re.MULTILINE)

    copied = {word for words in copies for word in words.split()}

    assert copied <= allowed
    assert all((REPOSITORY / name).exists() for name in copied)


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_image_runs_as_a_numeric_user_other_than_root(product: str) -> None:
    lines = (REPOSITORY / f"Dockerfile.{product}").read_text().splitlines()

    assert [line for line in lines if line.startswith("USER")] == ["USER 65532:65532"]
    assert f'ENTRYPOINT ["python", "-m", "fedpipe_{product}"]' in lines


def test_an_image_is_named_after_its_sources() -> None:
    found = images.names()

    assert {product: image.rpartition(":")[0] for product, image in found.items()} == {
        product: f"{REGISTRY}/fedpipe-{product}" for product in PRODUCTS
    }
    assert found == images.names()
    assert len(set(found.values())) == 2


def test_of_each_products_images_the_needed_and_the_newest_besides_are_kept() -> None:
    listed = [
        {"created": 1, "names": [f"{REGISTRY}/fedpipe-trainer:needed"]},
        {"created": 2, "names": [f"{REGISTRY}/fedpipe-trainer:older", f"{REGISTRY}/fedpipe-trainer:0.1.0"]},
        {"created": 3, "names": [f"{REGISTRY}/fedpipe-trainer:newest"]},
        {"created": 1, "names": [f"{REGISTRY}/fedpipe-operator:only"]},
        {"created": 0, "names": ["localhost/fedpipe-base:bookworm"]},
        {"created": 0, "names": None},
    ]

    removed = pruning.outdated(listed, PRODUCTS, [f"{REGISTRY}/fedpipe-trainer:needed"])

    assert sorted(removed) == [f"{REGISTRY}/fedpipe-trainer:0.1.0", f"{REGISTRY}/fedpipe-trainer:older"]


def test_a_node_loses_all_names_of_an_image_that_is_not_kept() -> None:
    trainer = f"{REGISTRY}/fedpipe-trainer"
    digests = {
        f"{trainer}:kept": "sha256:1",
        f"{trainer}@sha256:1": "sha256:1",
        "sha256:kept-id": "sha256:1",
        f"{trainer}:old": "sha256:2",
        "sha256:old-id": "sha256:2",
        f"{trainer}@sha256:3": "sha256:3",
        f"{REGISTRY}/pause:v1": "sha256:4",
        "sha256:pause-id": "sha256:4",
    }

    removed = pruning.outdated_on_a_node(digests, PRODUCTS, {f"{trainer}:kept"})

    assert sorted(removed) == [f"{trainer}:old", f"{trainer}@sha256:3", "sha256:old-id"]


def test_pip_conf_has_the_package_indexes_and_nothing_of_this_machine() -> None:
    listing = """\
:env:.index-url='https://second.example/simple'
:env:.find-links='/opt/wheels'
global.index-url='https://first.example/simple'
global.extra-index-url='https://a.example\\nhttps://b.example'
global.cert='/etc/here.pem'
"""

    assert builder_settings.pip_conf(listing, ca="/run/secrets/ca.pem").splitlines() == [
        "[global]",
        "index-url = https://second.example/simple",
        "extra-index-url = https://a.example https://b.example",
        "cert = /run/secrets/ca.pem",
    ]


def test_certificates_come_from_the_first_variable_that_names_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("pem")

    assert builder_settings.certificates_named({"PIP_CERT": "/nowhere", "SSL_CERT_FILE": str(file)}) == str(file)
    assert builder_settings.certificates_named({}) == ""


def test_the_mirror_is_that_of_the_suites_component_main() -> None:
    listing = "bookworm-security main http://s.example\nbookworm contrib http://c.example\nbookworm main http://m.example/debian\n"

    assert builder_settings.mirror_in(listing) == ("http://m.example/debian",)
    assert builder_settings.mirror_in("") == ()


def test_mounts_are_listed_from_the_last_to_the_first() -> None:
    mounts = "proc /proc proc rw 0 0\na /c/run/x tmpfs rw 0 0\nb /c/run/x/y\\040z tmpfs rw 0 0\nc /c/runner tmpfs rw 0 0\n"

    assert machine.mounts_below(Path("/c/run"), mounts) == ["/c/run/x/y z", "/c/run/x"]
