"""Planning: per site the base's bit width, the micro-batch, the depth, the ranks and the number of steps. Pure.

SiteProfile ─▶ choices, each with its memory and time ─▶ the round's length and each site's best plan in it ─▶ Plans, with reasons
"""

from fedpipe_operator.planning.memory_model import RunOptions, Step, predict_peak
from fedpipe_operator.planning.modes import Plans
from fedpipe_operator.planning.planner import MODES, FleetPlans, History, plan_round
from fedpipe_operator.planning.run_facts import RunFacts, facts_of, wrong_base_reason
from fedpipe_operator.planning.summary import PlanRow, plan_rows, plan_status

__all__ = [
    "MODES",
    "FleetPlans",
    "History",
    "PlanRow",
    "Plans",
    "RunFacts",
    "RunOptions",
    "Step",
    "facts_of",
    "plan_round",
    "plan_rows",
    "plan_status",
    "predict_peak",
    "wrong_base_reason",
]
