"""Whether the data owner allows a task: asked before any row is read.

The policy of the site's `EdgeSite` comes with the task, another may be on the data volume; of the two the stricter counts, field by field.
"""

from fedpipe_trainer.contract import EvaluateTask, FailureReason, ProfileTask, TrainTask, denial, stricter
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.policy_file import policy_of_files

SiteTask = ProfileTask | TrainTask | EvaluateTask


def with_consent(task: SiteTask) -> SiteTask:
    """The task with the policy that counts for it.

    Raises:
        TaskFailed: PolicyDenied, the policy forbids the task, or the policy file cannot be used; BadTask, a template cannot be parsed.
    """
    on_volume = policy_of_files((task.data.train, task.data.validation))
    policy = task.policy if on_volume is None else stricter(task.policy, on_volume)
    try:
        reason = denial(policy, task.use)
    except ValueError as error:
        raise TaskFailed(
            FailureReason.BAD_TASK, f"a template of the task cannot be parsed: {error}; write a literal brace twice"
        ) from error
    if reason:
        raise TaskFailed(FailureReason.POLICY_DENIED, f"the data owner's policy does not allow this task: {reason}")
    return task.model_copy(update={"policy": policy})
