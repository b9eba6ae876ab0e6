"""Progress in a log: soon a first line, then one a minute; many short things do not fill it."""

import pytest
from terminals import ESCAPE, on_terminal

from cli.printing.progress import AttackProgress, TrainingProgress
from dgad_tk.training.job import Progress as TrainingState
from evaluators.engine.evaluate import Progress as AttackState


class Clock:
    """Seconds that pass only when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def train(
    progress: TrainingProgress, clock: Clock, epochs: int, steps: int, seconds: float, role: str = "dgad"
) -> None:
    """Epochs of `steps` steps that take `seconds` each."""
    for epoch in range(epochs):
        for step in range(1, steps + 1):
            clock.now += seconds
            progress(TrainingState(role, epoch, epochs, step, steps, {"loss": 1.5}, 100.0))
        progress(TrainingState(role, epoch, epochs, steps, steps, {"loss": 1.5}, 100.0, {"val_robust": 0.5}))


def logged(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = capsys.readouterr()
    assert found.out == ""
    assert ESCAPE not in found.err
    return found.err.splitlines()


def test_a_long_epoch_has_a_line_soon_and_then_one_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch of 600 s: at 5 s, then at 65, 125, ... and its end."""
    with TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=1, steps=600, seconds=1.0)
    lines = logged(capsys)
    assert len(lines) == 1 + 9 + 1
    assert lines[0].startswith("dgad 1% epoch 1/1  loss 1.500  100 images/s, ")
    assert lines[0].endswith(" 10 min left")
    assert lines[9].endswith(", 55 s left")
    assert lines[10] == "dgad epoch 1/1  loss 1.500  val robust 50.0%"


def test_two_hundred_short_epochs_are_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """400 s: 20 at once, in the other 360 s one a minute, and the last epoch."""
    with TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=200, steps=2, seconds=1.0)
    lines = logged(capsys)
    assert lines[0].startswith("dgad epoch 1/200 ")
    assert lines[-1].startswith("dgad epoch 200/200 ")
    assert len(lines) == 20 + 6 + 1


def test_long_epochs_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=100, steps=1, seconds=70.0)
    assert sum(line.startswith("dgad epoch ") for line in logged(capsys)) == 100


def test_an_interrupted_run_ends_with_the_last_epoch_that_was_finished(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), TrainingProgress(quiet=False, clock=clock) as progress:
        for epoch in range(50):
            progress(TrainingState("dgad", epoch, 200, 1, 1, {}, 100.0, {"val_clean": 0.5}))
        raise KeyboardInterrupt
    lines = logged(capsys)
    assert len(lines) == 20 + 1
    assert lines[-1].startswith("dgad epoch 50/200 ")


def test_a_teachers_last_epoch_is_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=30, steps=1, seconds=0.1, role="teacher")
        train(progress, clock, epochs=30, steps=1, seconds=0.1, role="student")
    lines = logged(capsys)
    assert [line for line in lines if "30/30" in line] == lines[-2:]


def test_twenty_short_attacks_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with AttackProgress(quiet=False, clock=(clock := Clock())) as progress:
        for number in range(1, 21):
            clock.now += 0.1
            progress(AttackState(f"row-{number}", number, 20, 500, 500, broken=3, attacked=400))
    assert logged(capsys) == [f"{number}/20 row-{number}: 500/500 images, 3 of 400 broken" for number in range(1, 21)]


def test_no_line_without_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    """What a resumed row had before says nothing about how fast it is now."""
    with AttackProgress(quiet=False, clock=(clock := Clock())) as progress:
        clock.now += 100
        progress(AttackState("pgd", 1, 1, 500, 2000, broken=3, attacked=400))
        clock.now += 60
        progress(AttackState("pgd", 1, 1, 1000, 2000, broken=3, attacked=400))
    assert logged(capsys) == ["1/1 pgd 50% 1000/2000 images, 3 of 400 broken, 2 min left"]


def test_quiet_prints_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(quiet=True, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=2, steps=100, seconds=10.0)
        progress.message("note")
        progress.message("warning: hot")
    assert logged(capsys) == ["warning: hot"]


@pytest.mark.parametrize(("variables", "drawn"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_has_a_live_bar_unless_escape_codes_are_unwelcome(variables: dict[str, str], drawn: bool) -> None:
    with on_terminal(80, **variables) as screen, TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=2, steps=2, seconds=1.0)
    assert (ESCAPE in screen.text) == drawn
    assert "dgad epoch 2/2  loss 1.500  val robust 50.0%" in screen.text


def test_a_log_gets_no_bar_even_in_forced_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with TrainingProgress(quiet=False, clock=(clock := Clock())) as progress:
        train(progress, clock, epochs=2, steps=2, seconds=1.0)
    assert len(logged(capsys)) == 2


@pytest.mark.parametrize("width", [60, 80])
def test_the_live_line_fits(width: int) -> None:
    """Else each of its updates would scroll."""
    with on_terminal(width) as screen, AttackProgress(quiet=False, clock=Clock()) as progress:
        progress(AttackState("transfer:resnet20:autoattack@4.5/255", 10, 14, 500, 10_000, broken=3, attacked=400))
        progress.refresh()
    drawn = screen.text.replace("\r", "\n").splitlines()
    assert any("10/14" in line for line in drawn)
    for line in drawn:
        plain = "".join(part.partition("m")[2] if at else part for at, part in enumerate(line.split(f"{ESCAPE}[")))
        assert len(plain) <= width, plain
