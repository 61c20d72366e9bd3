"""Planning: per site the base's bit width, the micro-batch, the depth, the ranks and the number of steps. Pure.

SiteProfile ─▶ choices, each with its memory and time ─▶ the round's length and each site's best plan in it ─▶ Plans, with reasons
"""

from fedpipe_operator.planning.hyperparameters import (
    DEFAULT_LEARNING_RATE,
    FROM_SPEC,
    Hyperparameter,
    LearningRate,
    choose_learning_rate,
    hyperparameters,
    learning_rate_share,
    range_test,
    rate_of,
)
from fedpipe_operator.planning.label_notes import label_notes
from fedpipe_operator.planning.memory_model import RunOptions, Step, training_peak
from fedpipe_operator.planning.modes import Plans
from fedpipe_operator.planning.out_of_memory import limit_after
from fedpipe_operator.planning.planner import MODES, FleetPlans, History, plan_round
from fedpipe_operator.planning.rank_lines import rank_lines
from fedpipe_operator.planning.run_facts import (
    RunFacts,
    dropped_labels_note,
    facts_as_fixed,
    facts_of,
    sites_without_label,
    too_few_labels,
)
from fedpipe_operator.planning.summary import PlanRow, forecast_text, hyperparameter_status, hyperparameter_text, plan_rows, plan_status

__all__ = [
    "DEFAULT_LEARNING_RATE",
    "FROM_SPEC",
    "MODES",
    "FleetPlans",
    "History",
    "Hyperparameter",
    "LearningRate",
    "PlanRow",
    "Plans",
    "RunFacts",
    "RunOptions",
    "Step",
    "choose_learning_rate",
    "dropped_labels_note",
    "facts_as_fixed",
    "facts_of",
    "forecast_text",
    "hyperparameter_status",
    "hyperparameter_text",
    "hyperparameters",
    "label_notes",
    "learning_rate_share",
    "limit_after",
    "plan_round",
    "plan_rows",
    "plan_status",
    "range_test",
    "rank_lines",
    "rate_of",
    "sites_without_label",
    "too_few_labels",
    "training_peak",
]
