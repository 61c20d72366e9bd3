"""What `fedpipe init` decides: the task that some data and a model are for, and the two objects with comments. Pure."""

from fedpipe_operator.starter.context import CannotTellError, Guess
from fedpipe_operator.starter.document import Choices, Site, write_document
from fedpipe_operator.starter.guess import guess_task
from fedpipe_operator.starter.optional import columns_of_site
from fedpipe_operator.starter.roles import Wanted, common_columns

__all__ = ["CannotTellError", "Choices", "Guess", "Site", "Wanted", "columns_of_site", "common_columns", "guess_task", "write_document"]
