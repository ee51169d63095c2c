import io

from rich.console import Console

from sslpipe.train import Bar, Silent, report, train


def test_the_bar_shows_steps_loss_speed_and_waiting():
    screen = io.StringIO()
    bar = Bar(Console(file=screen, width=120, force_terminal=False))
    bar.start(40, 200)
    bar.step(50)
    bar.row({
        "step": 50, "loss": 1.23456, "images_per_s": 789.4, "data_wait": 0.031, "data_lost": 0.12
    })  # fmt: skip
    bar.message("saved [here]")
    bar.close()
    text = screen.getvalue()
    for part in (
        "50/200",
        "loss 1.2346",
        "789 images/s",
        "data: wait 3%, lost 12%",
        "saved [here]",
    ):
        assert part in text


def test_a_terminal_of_80_columns_shows_all_of_it():
    screen = io.StringIO()
    bar = Bar(Console(file=screen, width=80, force_terminal=False))
    bar.start(0, 12_500)
    bar.step(1_234)
    bar.row({
        "step": 1_234, "loss": 1.23456, "images_per_s": 2_878, "data_wait": 0.31, "data_lost": 0.12
    })  # fmt: skip
    bar.close()
    words = screen.getvalue()
    assert "1234/12500 loss 1.2346  2878 images/s  data: wait 31%, lost 12% eta" in words
    assert "…" not in words


def test_a_file_gets_a_line_a_minute(monkeypatch):
    clock = iter([0.0, 30.0, 61.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    screen = io.StringIO()
    bar = Bar(Console(file=screen, width=120, force_terminal=False))
    bar.start(0, 200)
    for step in (10, 20, 30):
        bar.row({
            "step": step, "loss": 1.5, "images_per_s": 2_878, "data_wait": 0.3, "data_lost": 0.1
        })  # fmt: skip
    assert screen.getvalue().splitlines() == [
        f"step {step} of 200: loss 1.5000  2878 images/s  data: wait 30%, lost 10%"
        for step in (10, 30)
    ]


def test_a_message_is_one_line_of_a_log_and_names_in_it_stay_as_they_are(capfd):
    bar = Bar()
    text = f"saved {'long/' * 40}:x:/[b]/last.pt; go on with the same command and --resume"
    bar.message(text)
    bar.close()
    assert text in capfd.readouterr().err.splitlines()


def test_the_way_on_is_one_that_goes_on(toy, tmp_path):
    """After --max-steps the same command with --resume would end at once."""
    recipe, told = toy.recipe(), []

    class Told(Silent):
        def message(self, text):
            told.append(text)

    for stop, resume in ((3, False), (3, True), (2, True), (4, True), (None, True)):
        train(toy.Pipe(recipe), toy.Toy(), recipe.train, out=tmp_path, resume=resume,
              max_steps=stop, progress=Told())  # fmt: skip
    on = "; go on with --resume and a larger --max-steps, or none"
    last = tmp_path / "last.pt"
    assert told[:4] == [
        f"stopped after step 3 of 20 and saved {last}{on}",
        f"nothing to do up to step 3: {last} holds step 3 of 20 already{on}",
        f"nothing to do up to step 2: {last} holds step 3 of 20 already{on}",
        f"stopped after step 4 of 20 and saved {last}{on}",
    ]
    assert told[4].startswith("finished 20 steps")
