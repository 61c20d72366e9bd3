"""Planning: per site the base's bit width, the batch size, the ranks and the number of steps. Pure.

SiteProfile ─▶ candidates, each with its memory and time forecast ─▶ a mode chooses (Auto | Uniform) ─▶ Plans, with reasons
"""

from fedpipe_operator.planning.memory_model import RunOptions, predict_peak
from fedpipe_operator.planning.planner import MODES, Plans, plan_round
from fedpipe_operator.planning.run_facts import RunFacts, facts_of
from fedpipe_operator.planning.summary import PlanRow, plan_rows, plan_status

__all__ = ["MODES", "PlanRow", "Plans", "RunFacts", "RunOptions", "facts_of", "plan_round", "plan_rows", "plan_status", "predict_peak"]
