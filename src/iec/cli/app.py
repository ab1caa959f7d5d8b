"""`iec`: exit code 0 only on success, 2 with one sentence for bad input, 1 for a failure, 130 when interrupted."""

import errno
import sys

import typer
from rich.console import Console

from iec.cli import calibrate, compare, convert, demo, evaluate, reproduce, sample, train

app = typer.Typer(
    name="iec",
    help="Make a quantized or feature-cached diffusion model better at test time, and measure what that is worth.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("sample")(sample.sample)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("reproduce")(reproduce.reproduce)
app.command("convert")(convert.convert)
app.command("train")(train.train)
app.command("train-features")(train.train_features)


def main() -> None:
    """The entry point of the `iec` command."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on where that is possible.")
        sys.exit(130)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # an option that the parser refused
            _say(error.format_message())
        elif isinstance(error, (ValueError, TypeError)) or _unsupported(error):
            _say(str(error))
        elif _disk_full(error):
            _say("the disk is full: free some space and run the same command again; what it had finished is kept.")
            sys.exit(1)
        elif isinstance(error, OSError):
            _say(f"{error}.")
            sys.exit(1)
        else:
            raise
        sys.exit(2)
    sys.exit(code or 0)


def _unsupported(error: Exception) -> bool:
    """Whether a pipeline cannot be corrected; asked only once something failed, since it loads the library."""
    from iec.pipelines import IECUnsupportedError

    return isinstance(error, IECUnsupportedError)


def _disk_full(error: Exception) -> bool:
    """Whether writing failed for want of space; safetensors has errors of its own that say so in their text."""
    return getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error)


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"iec: {sentence}", markup=False)
