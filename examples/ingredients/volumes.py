"""What a prepare script leaves beside itself: `volumes/` with the model and a folder for each claim of a site."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ingredients.folders import digest_of, link_folder, make_once
from ingredients.models import model_folder
from ingredients.packages import cache_folder


def fill_volumes(script: Path, model: str, claims: Mapping[str, Callable[[Path], None]], *, made_from: Sequence[Path] = ()) -> Path:
    """Create what is missing in `volumes/` beside this script; returns that folder.

    Args:
        script: the prepare script. A changed one makes the claims again, as changed ingredients do.
        model: its name among the ingredients' models.
        claims: what fills the folder of each claim.
        made_from: further files that the claims are made from.
    """
    volumes = script.parent / "volumes"
    link_folder(volumes / "models" / model, model_folder(model, cache_folder()))
    code = digest_of([*made_from, script, *sorted(Path(__file__).parent.glob("*.py"))])
    for claim, write in claims.items():
        make_once(volumes / claim, write, made_from=code)
    return volumes
