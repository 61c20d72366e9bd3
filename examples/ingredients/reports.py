"""Reports of service crews and their summaries, made from tables of words: a toy summarisation task of which every row can be made anew.

A report says who was called where, what the day was like, what the crew found and what it did, in an order that varies. Its summary names
machine, fault and repair. Enough to see a model learn what its sites know, and no measure of anything.
"""

import random
from collections.abc import Iterator
from typing import Final

from ingredients.tables import Row

INSTRUCTION: Final = "summarize :"
BASE_MACHINE: Final = "generator"
"""Of which the toy model's own training has reports. Those of the sites are of other machines."""

_FAULTS: Final = {
    BASE_MACHINE: (
        ("fuel was leaking from the hose", "fuel leak", "they changed the hose", "hose changed"),
        ("the battery was empty", "flat battery", "they charged the battery", "battery charged"),
        ("the fan did not turn", "fan stuck", "they freed the fan", "fan freed"),
        ("the filter was full of dust", "dirty filter", "they cleaned the filter", "filter cleaned"),
        ("the belt had torn", "torn belt", "they fitted a belt", "belt fitted"),
        ("the switch was burnt", "burnt switch", "they changed the switch", "switch changed"),
    ),
    "pump": (
        ("oil was leaking from the seal", "oil leak", "they replaced the seal", "seal replaced"),
        ("sand had come into the valve", "blocked valve", "they flushed the valve", "valve flushed"),
        ("the shaft was bent", "bent shaft", "they replaced the shaft", "shaft replaced"),
        ("water stood in the motor", "wet motor", "they dried the motor", "motor dried"),
        ("the gauge showed nothing", "dead gauge", "they wired the gauge", "gauge wired"),
        ("air was trapped in the pipe", "air lock", "they bled the pipe", "pipe bled"),
    ),
    "lift": (
        ("the gate closed on a coat", "gate fault", "they adjusted the sensor", "sensor adjusted"),
        ("the cabin stopped between floors", "cabin stuck", "they lowered the cabin", "cabin lowered"),
        ("a rope was worn", "worn rope", "they ordered a rope", "rope ordered"),
        ("the brake made a noise", "brake noise", "they greased the brake", "brake greased"),
        ("a button gave no light", "dark button", "they changed the lamp", "lamp changed"),
        ("the cabin shook at every floor", "rail wear", "they aligned the rail", "rail aligned"),
    ),
    "turbine": (
        ("ice hung on a blade", "iced blade", "they heated the blade", "blade heated"),
        ("the tower turned away from the wind", "yaw fault", "they reset the drive", "drive reset"),
        ("the gearbox was hot", "hot gearbox", "they filled the cooler", "cooler filled"),
        ("lightning had hit the tip", "split tip", "they glued the tip", "tip glued"),
        ("the mast shook in the wind", "loose bolts", "they tightened the bolts", "bolts tightened"),
        ("the cable was twisted", "twisted cable", "they unwound the cable", "cable unwound"),
    ),
}
"""By machine: what was found and its summary, what was done and its summary."""
MACHINES: Final = tuple(machine for machine in _FAULTS if machine != BASE_MACHINE)
_PLACES: Final = ("north", "south", "harbour", "mill", "airport", "castle", "station", "market")
_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TALK: Final = (
    "the road was wet and the crew came late",
    "the day was cold but dry",
    "a visitor had called in the morning",
    "the key was with the guard",
    "no one was hurt",
    "the crew had coffee in the yard",
    "the old papers could not be found",
    "it was already dark",
)
_ENDS: Final = ("then it ran again", "it was tested twice", "a second visit is planned")
_NUMBERS: Final = 30


def reports(machine: str, count: int, seed: int) -> list[Row]:
    """Reports about one kind of machine, in the columns report and summary."""
    draw = random.Random(f"{machine}/{seed}")  # noqa: S311 - no secret
    return [_report(machine, draw) for _ in range(count)]


def texts(rows: list[Row]) -> Iterator[str]:
    """All texts of these rows."""
    yield from (text for row in rows for text in row.values())


def _report(machine: str, draw: random.Random) -> Row:
    found, fault, done, repair = draw.choice(_FAULTS[machine])
    name, place = f"{machine} {draw.randint(1, _NUMBERS)}", draw.choice(_PLACES)
    middle = [f"the crew found that {found}", *draw.sample(_TALK, 2)]
    draw.shuffle(middle)
    sentences = (f"on {draw.choice(_DAYS)} the crew was called to {name} at the {place}", *middle, done, draw.choice(_ENDS))
    return {"report": f"{' . '.join(sentences)} .", "summary": f"{name} , {place} : {fault} , {repair}"}
