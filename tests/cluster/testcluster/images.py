"""The images: built with buildah and pushed to the cluster's registry, unless they exist there."""

import hashlib
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from testcluster import builder_settings, configs, pruning
from testcluster.base_image import BASE, build_base
from testcluster.buildah import buildah, is_built, push
from testcluster.layout import REGISTRY, REPOSITORY, Layout
from testcluster.programs import binary
from testcluster.shell import ClusterError, locked

PRODUCTS = ("operator", "trainer")

_RESULTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def push_our_programs(layout: Layout) -> None:
    """Push the images that consist of one static program: pause and MinIO."""
    with locked(layout.cache / "images.lock"):
        for name, image in (("pause", configs.PAUSE), ("minio", configs.STORE)):
            if not is_pushed(image):
                _push_program(layout, binary(layout, name), name, image)


def _push_program(layout: Layout, program: Path, name: str, image: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy2(program, Path(folder) / name)
        (Path(folder) / "Dockerfile").write_text(f'FROM scratch\nCOPY {name} /{name}\nENTRYPOINT ["/{name}"]\n')
        buildah(layout, "bud", "--isolation", "chroot", "--format", "oci", "--quiet", "--tag", image, folder)
    push(layout, image)


def is_pushed(image: str) -> bool:
    """Whether the cluster's registry has this image."""
    name, _, tag = image.removeprefix(f"{REGISTRY}/").partition(":")
    request = urllib.request.Request(f"http://{REGISTRY}/v2/{name}/manifests/{tag}", method="HEAD", headers={"Accept": _RESULTS})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        raise ClusterError(f"The registry at {REGISTRY} does not answer ({error}): run `up` first") from error


def names() -> dict[str, str]:
    """The product's images by name. The tag is a hash of the sources, so a changed source file means another image."""
    return {product: f"{REGISTRY}/fedpipe-{product}:{sources_hash(product)}" for product in PRODUCTS}


def sources_hash(product: str) -> str:
    """The hash of all files that go into the product's image."""
    files = [
        f"Dockerfile.{product}",
        f"requirements-{product}.lock",
        "requirements-build.lock",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".dockerignore",
    ]
    code = [path for folder in PRODUCTS for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.sha256(BASE.encode())
    for path in sorted([*(REPOSITORY / file for file in files), *code]):
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build_products(layout: Layout) -> None:
    """Build the images that do not exist, without a registry; print a line for each with its seconds."""
    with locked(layout.cache / "images.lock"):
        for product, image in names().items():
            _build_once(layout, product, image)


def push_products(layout: Layout) -> dict[str, str]:
    """Push the images that the registry lacks, built first if needed, and remove older ones; print a line for each."""
    images = names()
    with locked(layout.cache / "images.lock"):
        for product, image in images.items():
            if not is_pushed(image):
                _build_once(layout, product, image)
                start = time.monotonic()
                push(layout, image)
                print(f"{image} pushed in {time.monotonic() - start:.0f} s", flush=True)
        for image in pruning.prune(layout, PRODUCTS, list(images.values())):
            print(f"{image} removed: its sources have changed", flush=True)
    return images


def _build_once(layout: Layout, product: str, image: str) -> None:
    if not is_built(layout, image):
        build_base(layout)
        start = time.monotonic()
        build(layout, product, image)
        print(f"{image} built in {time.monotonic() - start:.0f} s", flush=True)


def build(layout: Layout, product: str, image: str) -> None:
    """Build the image from the product's Dockerfile, with cached layers."""
    with tempfile.TemporaryDirectory() as folder:
        secrets = builder_settings.secrets(Path(folder))
        options = [option for name, file in secrets.items() for option in ("--secret", f"id={name},src={file}")]
        buildah(
            layout,
            *("bud", "--isolation", "chroot", "--format", "oci", "--layers", "--quiet", "--pull-never"),
            *("--build-arg", f"BASE_IMAGE={BASE}", *options, "--file", str(REPOSITORY / f"Dockerfile.{product}")),
            *("--ignorefile", str(REPOSITORY / ".dockerignore"), "--tag", image, str(REPOSITORY)),
        )
