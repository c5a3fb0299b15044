"""The ``holdfast`` command. Each noun is one thin file beside this one, imported only when it is used."""

from __future__ import annotations

import sys
import traceback
import warnings

from cyclopts import App, CycloptsError

from holdfast import __version__
from holdfast.core.errors import HoldfastError, RunError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("holdfast.cli.bench:demo", "Run the main job on the embedded sandbox: every defence, one report."),
    "bench": ("holdfast.cli.bench:bench", "Compare defences: a recipe in, a table and a report out."),
    "align": ("holdfast.cli.stages:align", "Alignment stage: make a model refuse, with a defence or without."),
    "finetune": (
        "holdfast.cli.stages:finetune",
        "Fine-tuning stage: train on a user's data, defended or not.",
    ),
    "repair": ("holdfast.cli.stages:repair", "Post-fine-tuning stage: mend a fine-tuned model."),
    "ask": ("holdfast.cli.ask:ask", "Let a model answer a set of prompts."),
    "judge": ("holdfast.cli.judge:judge", "Rate stored answers and print the rates with intervals."),
    "agree": ("holdfast.cli.agree:agree", "May a judge stand in for people? Agreement, intervals, a verdict."),
    "ensemble": ("holdfast.cli.ensemble:ensemble", "Which of my models to keep, and how to combine their answers."),
    "steer": ("holdfast.cli.steer:steer", "An image must not switch refusals off: restore them."),
    "faces": ("holdfast.cli.faces:faces", "One mask for all my photos: recognisers lose me, my key undoes it."),
    "report": ("holdfast.cli.bench:report", "Write the HTML report of a bench again."),
    "runs": ("holdfast.cli.runs:runs", "List runs."),
    "show": ("holdfast.cli.runs:show", "Show one run: its knobs, costs, rates and files."),
    "list": ("holdfast.cli.listing:listing", "List methods, judges, tasks, recipes and shipped models."),
    "doctor": ("holdfast.cli.doctor:doctor", "Check this installation and machine."),
    "sandbox": ("holdfast.cli.sandbox:sandbox", "The embedded sandbox models: rebuild them from nothing."),
}

app = App(
    name="holdfast",
    help="Keep the safety alignment of models through fine-tuning and beside images, and measure whether it held.",
    version=__version__,
)
for _name, (_target, _summary) in COMMANDS.items():
    app.command(_target, name=_name, help=_summary)


def run(tokens: list[str]) -> int:
    """Run one command; returns its exit code. Only a bug shows a traceback.

    Args:
        tokens: the words after ``holdfast``.
    """
    try:
        code = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2
    except HoldfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print(f"error: no permission for {error.filename}", file=sys.stderr)
        print("  hint: make it readable for this user, or work on a copy", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) went away; nothing is wrong.
        sys.stderr.close()
        return 141
    except Exception:
        traceback.print_exc()
        print("\nThis is a bug in Holdfast: please report it with the lines above.", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the console script."""
    # peft asks transformers for an attribute by its old name; the user can do nothing about that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
