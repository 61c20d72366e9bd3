"""The images: made with buildah, pushed to the cluster's registry, and left alone where they are there already."""

import hashlib
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from testcluster import builder_settings, configs
from testcluster.base_image import BASE, build_base
from testcluster.buildah import buildah, is_built, push
from testcluster.layout import REGISTRY, REPOSITORY, Layout
from testcluster.programs import binary
from testcluster.shell import ClusterError, locked

PRODUCTS = ("operator", "trainer")

_RESULTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def push_our_programs(layout: Layout) -> None:
    """The images that are one static program: what holds a pod's namespaces, and MinIO."""
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
    """Whether the cluster's registry has it."""
    name, _, tag = image.removeprefix(f"{REGISTRY}/").partition(":")
    asked = urllib.request.Request(f"http://{REGISTRY}/v2/{name}/manifests/{tag}", method="HEAD", headers={"Accept": _RESULTS})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=5):
            return True
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        raise ClusterError(f"The registry at {REGISTRY} does not answer ({error}): run `up` first") from error


def names() -> dict[str, str]:
    """The product's images, named after what they are made of: a changed line is another image."""
    return {product: f"{REGISTRY}/fedpipe-{product}:{sources_hash(product)}" for product in PRODUCTS}


def sources_hash(product: str) -> str:
    """Of all that goes into the product's image."""
    files = [
        f"Dockerfile.{product}",
        f"requirements-{product}.lock",
        "requirements-build.lock",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".dockerignore",
    ]
    code = [path for room in PRODUCTS for path in (REPOSITORY / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.sha256(BASE.encode())
    for path in sorted([*(REPOSITORY / file for file in files), *code]):
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build_products(layout: Layout) -> None:
    """Build what has not been built yet, for a registry that may not run; a line an image with its seconds."""
    with locked(layout.cache / "images.lock"):
        for product, image in names().items():
            _build_once(layout, product, image)


def push_products(layout: Layout) -> dict[str, str]:
    """Push what the registry lacks, built before if need be; a line an image with its seconds."""
    images = names()
    with locked(layout.cache / "images.lock"):
        for product, image in images.items():
            if not is_pushed(image):
                _build_once(layout, product, image)
                start = time.monotonic()
                push(layout, image)
                print(f"{image} pushed in {time.monotonic() - start:.0f} s", flush=True)
    return images


def _build_once(layout: Layout, product: str, image: str) -> None:
    if not is_built(layout, image):
        build_base(layout)
        start = time.monotonic()
        build(layout, product, image)
        print(f"{image} built in {time.monotonic() - start:.0f} s", flush=True)


def build(layout: Layout, product: str, image: str) -> None:
    """By the product's Dockerfile; steps that were done before are not done again."""
    with tempfile.TemporaryDirectory() as folder:
        secrets = builder_settings.secrets(Path(folder))
        given = [word for name, file in secrets.items() for word in ("--secret", f"id={name},src={file}")]
        buildah(
            layout,
            *("bud", "--isolation", "chroot", "--format", "oci", "--layers", "--quiet", "--pull-never"),
            *("--build-arg", f"BASE_IMAGE={BASE}", *given, "--file", str(REPOSITORY / f"Dockerfile.{product}")),
            *("--ignorefile", str(REPOSITORY / ".dockerignore"), "--tag", image, str(REPOSITORY)),
        )
