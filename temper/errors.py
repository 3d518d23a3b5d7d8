"""What can go wrong in Temper itself.

    TemperError
    ├── RecipeError     the recipe cannot be read, or asks for something impossible
    ├── ReportError     a report or an explanation cannot be read
    ├── GateError       a verdict cannot be given, signed, written or read
    ├── ServerError     the embedded tritonserver did not start, or died
    └── WorkflowError   a run could not be finished; what was measured before is kept

The command line prints the message as one line and exits 1, as it does for `temper.builder.errors.BuilderError`
and `temper.client.errors.ClientError`. Anything else that escapes is a bug of ours.
"""


class TemperError(Exception):
    """The base of every error that Temper raises on purpose; its text is one line for the user."""


class RecipeError(TemperError):
    """A recipe cannot be read or is impossible; the text names the file and the key's full path."""


class ReportError(TemperError):
    """A report.json or explain.json cannot be read, or has a format that is not known; the text names the file."""


class GateError(TemperError):
    """A verdict, or a key that vouches for one, cannot be used; the text names the file or the rule."""


class ServerError(TemperError):
    """The embedded tritonserver did not become ready, or ended by itself."""


class WorkflowError(TemperError):
    """A run stopped before its end; the finished stages are kept and a second run goes on from there."""
