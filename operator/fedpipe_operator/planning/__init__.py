"""Planning: which site trains what, with which batch, on a base of how many bits. Pure.

SiteProfile ─▶ candidates (priced by memory and duration) ─▶ a mode chooses (auto | uniform) ─▶ Plans, with reasons
"""

from fedpipe_operator.planning.explain import Row, plan_status, rows
from fedpipe_operator.planning.facts import RunFacts, facts_of
from fedpipe_operator.planning.memory import Terms, predict_peak
from fedpipe_operator.planning.planner import MODES, plan_round
from fedpipe_operator.planning.plans import Plans

__all__ = ["MODES", "Plans", "Row", "RunFacts", "Terms", "facts_of", "plan_round", "plan_status", "predict_peak", "rows"]
