"""The options of `dgad train --help` under headings."""

from typing import Any

from typer.core import TyperCommand

GROUPS: dict[str, tuple[str, ...]] = {
    "Images": ("dataset", "data_dir", "download", "image_size", "resize", "limit_train", "augment"),
    "Student": ("method", "student", "init", "init_mean", "init_std", "freeze_bn"),
    "Teacher": (
        *("teacher", "teacher_model", "teacher_mean", "teacher_std", "teacher_method", "teacher_epochs"),
        "teacher_in_attack",
    ),
    "Training": (
        *("epochs", "batch_size", "accumulate", "optimizer", "decay_weights_only", "seed", "precision", "compile"),
        "device",
    ),
    "The run": ("config", "settings", "out", "resume", "checkpoint_minutes", "trust", "quiet", "as_json"),
}
"""Parameters of the command by heading. Those without one stand last, as `--help` does."""


class Grouped(TyperCommand):
    """A command whose `--help` shows its options under the headings of GROUPS."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records = {str(each.name): found for each in self.get_params(ctx) if (found := each.get_help_record(ctx))}
        for title, names in GROUPS.items():
            if rows := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        with formatter.section("Others"):
            formatter.write_dl([*records.values()])
