"""The admission: where everything that a site sends becomes a value of the operator's own, or is refused.

Pure. A site controls every byte of its results. What does not fit its task, its plan or its metric is refused with a reason and costs
that site the attempt; behind this place nothing checks again. The types say what has passed: `AdmittedProfile` and its like.
Adapters are admitted where they are read, by `aggregation.gate`, for the same reasons.
"""

from fedpipe_operator.admission.document import MAX_RESULT_BYTES as MAX_RESULT_BYTES
from fedpipe_operator.admission.document import clean_message as clean_message
from fedpipe_operator.admission.document import values_of as values_of
from fedpipe_operator.admission.refusal import RefusalReason as RefusalReason
from fedpipe_operator.admission.refusal import Refused as Refused
from fedpipe_operator.admission.refusal import RefusedError as RefusedError
from fedpipe_operator.admission.results import LARGEST_MFU as LARGEST_MFU
from fedpipe_operator.admission.results import LARGEST_RATE as LARGEST_RATE
from fedpipe_operator.admission.results import AdmittedDryExport as AdmittedDryExport
from fedpipe_operator.admission.results import AdmittedEvaluation as AdmittedEvaluation
from fedpipe_operator.admission.results import AdmittedExport as AdmittedExport
from fedpipe_operator.admission.results import AdmittedProfile as AdmittedProfile
from fedpipe_operator.admission.results import AdmittedProgress as AdmittedProgress
from fedpipe_operator.admission.results import AdmittedUpdate as AdmittedUpdate
from fedpipe_operator.admission.results import Asked as Asked
from fedpipe_operator.admission.results import EvaluationBounds as EvaluationBounds
from fedpipe_operator.admission.results import UpdateBounds as UpdateBounds
from fedpipe_operator.admission.results import admit_dry_export as admit_dry_export
from fedpipe_operator.admission.results import admit_evaluation as admit_evaluation
from fedpipe_operator.admission.results import admit_export as admit_export
from fedpipe_operator.admission.results import admit_profile as admit_profile
from fedpipe_operator.admission.results import admit_progress as admit_progress
from fedpipe_operator.admission.results import admit_update as admit_update
from fedpipe_operator.admission.results import hash_of as hash_of
from fedpipe_operator.admission.results import max_update_bytes as max_update_bytes
from fedpipe_operator.admission.results import plausible as plausible
