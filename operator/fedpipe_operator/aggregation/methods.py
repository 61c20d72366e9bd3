"""The aggregation methods by the name that `spec.aggregation.method` gives them."""

from typing import Final

from fedpipe_operator.aggregation import exact, fedit, zeropad
from fedpipe_operator.aggregation.values import Method

METHODS: Final[dict[str, Method]] = {"Exact": exact.METHOD, "FedIT": fedit.METHOD, "ZeroPad": zeropad.METHOD}
