"""What earlier rounds tell the planner: corrected forecasts, what the updates changed, and whether the run still improves. Pure."""

from collections.abc import Mapping
from typing import Final

from fedpipe_operator.api import primary_metric
from fedpipe_operator.planning import History
from fedpipe_operator.rounds.observed import CommitSummary, Observed, Run
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.sites import Correction, Measurement, corrected, correction_note
from fedpipe_trainer.contract import FailureReason

_NONE: Final = Correction()


def history_of(run: Run, observed: Observed, round_: int) -> History:
    """The evidence for the plan of this round."""
    plan, commit = observed.plan, observed.commits.get(round_ - 1)
    adapter_bytes = commit.adapter.size if commit else 0 if round_ == 1 else None
    if plan is None or commit is None or plan.round != round_ - 1:
        return History(round_, adapter_bytes=adapter_bytes)
    measured = measurements(commit)
    corrections = {site: corrected(plan.corrections.get(site, _NONE), one, measured.get(site)) for site, one in plan.plans.items()}
    notes = {site: note for site, now in corrections.items() if (note := correction_note(plan.corrections.get(site, _NONE), now))}
    return History(
        round=round_,
        learned=observed.learned,
        corrections=_kept(plan, corrections),
        notes=notes,
        is_stalled=is_stalled(observed.evaluations, primary_metric(run.spec)),
        adapter_bytes=adapter_bytes,
    )


def measurements(commit: CommitSummary) -> dict[str, Measurement]:
    """By site what its round needed. A site that ran out of memory for good has left no update, but a reason."""
    lost = {site: why for site, why in commit.absent.items() if why.startswith(FailureReason.OUT_OF_MEMORY)}
    measured = {one.site: one.measured for one in commit.contributions if one.measured is not None}
    out_of_memory = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, out_of_memory=True)
    return measured | dict.fromkeys(lost, out_of_memory)


def _kept(plan: RoundPlan, corrections: Mapping[str, Correction]) -> dict[str, Correction]:
    """The corrections of all sites, those without a plan in the last round included."""
    return {site: one for site, one in (dict(plan.corrections) | dict(corrections)).items() if one != _NONE}
