"""Options: presets, their order of precedence, and checks at the start."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from fl_i2moe.training.arguments import (
    EncodingArguments,
    Job,
    ModelArguments,
    OutputArguments,
    TrainingArguments,
    check_metric,
    option,
    starts_from_features,
)
from fl_i2moe.training.command_line import given_path, parse_arguments, parse_command

TYPES = (EncodingArguments, ModelArguments, TrainingArguments, OutputArguments)
PRESETS = {"small": {"hidden_size": 32, "num_epochs": 3}, "large": {"hidden_size": 512, "seeds": [1, 2]}}


COUNTED = ("num_fusion_layers", "num_reweighting_layers", "num_workers", "encoding_workers", "num_threads")
"""Of which so many are made that a machine comes to a standstill long before its memory is full."""


def parse(*arguments):
    return parse_arguments(TYPES, PRESETS, lambda given: "small", "a job", list(arguments))


def test_preset_replaces_defaults_and_the_user_the_preset():
    _, model, training, _ = parse()
    assert (model.hidden_size, training.num_epochs, training.seeds) == (32, 3, [0])
    _, model, training, _ = parse("--preset=large", "--hidden_size=64")
    assert (model.hidden_size, training.num_epochs, training.seeds) == (64, 40, [1, 2])


def test_an_objective_brings_what_belongs_to_it_unless_more_is_said():
    """The command line before the preset, the preset before the objective, the objective before the defaults."""
    presets = {**PRESETS, "own": {"objective": "specialised", "lr_scheduler": "linear"}}

    def brought(*arguments):
        encoding, model, training, output = parse_arguments(TYPES, presets, arguments=[*arguments])
        job = Job(encoding, model, training, output)
        settings = job.settings()
        assert settings["masked_copies"] == job.masked_copies
        return model.feature_dropout, training.ema_decay, training.lr_scheduler, job.masked_copies

    plain, whole = (0.0, 0.0, "constant", 0), (0.5, 0.98, "cosine", 3)
    assert brought("--preset=small", "--objective=published") == plain
    assert brought("--preset=small", "--objective=specialised") == whole
    assert brought("--preset=own") == (0.5, 0.98, "linear", 3)
    assert brought("--preset=own", "--objective=published") == (0.0, 0.0, "linear", 0)
    assert brought("--objective=specialised", "--architecture=dense") == plain
    assert brought("--objective=specialised", "--level=pooled") == (0.5, 0.98, "cosine", 0)
    assert brought("--objective=specialised", "--feature_dropout=0") == (0.0, 0.98, "cosine", 0)
    assert brought("--objective=specialised", "--masked_copies=5", "--ema_decay=0") == (0.5, 0.0, "cosine", 5)


def test_options_reach_the_configuration():
    _, model, _, _ = parse("--dropout=0.25", "--attention_dropout=0", "--architecture=dense", "--level=pooled")
    sizes = {name: {"feature_size": 4, "max_features": 2} for name in ("b", "a")}
    config = model.to_config(sizes, num_labels=5)
    assert (config.residual_dropout, config.activation_dropout, config.attention_dropout) == (0.25, 0.25, 0)
    assert (config.architecture, config.level, config.num_labels) == ("dense", "pooled", 5)
    assert config.modality_order == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden_size=10"], "divisible"),
        (["--seeds", "1", "1"], "different numbers"),
        (["--dropout=1.5"], "[0, 1)"),
        (["--hiden_size=8"], "hiden_size"),
        (["--level=pool"], "invalid choice"),
        (["--num_epochs=0"], "`num_epochs` must be at least 1"),
        (["--weight_decay=0.1"], "adamw"),
        (["--learning_rate=0"], "`learning_rate` must be positive"),
        (["--threshold=1"], "`threshold`"),
        (["--no_load_best_model_at_end", "--early_stopping_patience=2"], "needs `load_best_model_at_end`"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--num_perturbed_views=1"], "`num_perturbed_views` must be at least 2, got 1"),
        *(([f"--{name}={2**40}"], f"`{name}` must lie in ") for name in COUNTED),
        (["--output_dir=runs/a\udcff"], "`output_dir` 'runs/a\\udcff' is no UTF-8"),
        (["--features=~nobody-of-this-name/x"], "begins with a home folder that is not known"),
    ],
)
def test_wrong_options_end_with_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert message in capsys.readouterr().err


def test_every_option_has_help(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for kind in TYPES:
        for item in fields(kind):
            assert f"--{item.name}" in shown
            assert item.metadata["help"]


def test_help_as_a_newcomer_reads_it(capsys):
    """The description line by line, headings, one spelling an option, the defaults that would hold."""
    description = (
        "Train.\n\n    accelerate launch train.py --data_dir films\n\n    small   a preset\n    large   another\n"
    )
    for options, hidden_size in ((["--help"], 256), (["--help", "--preset=large"], 512)):
        with pytest.raises(SystemExit):
            parse_arguments(TYPES, PRESETS, lambda given: "small", description, options)
        shown = capsys.readouterr().out
        assert description in shown
        assert len(shown.split(description)[0].splitlines()) == 2  # a short usage
        assert "What the model is:\n" in shown
        assert f"Width of the experts. (default: {hidden_size})" in " ".join(shown.split())
        assert "--hidden-size" not in shown
        assert "None" not in shown
        assert "Not --hard_gate." in shown


def test_metric_must_fit_the_task():
    assert check_metric(None, "regression") == "mae"
    assert check_metric("mAP", "multi_label_classification") == "mAP"
    with pytest.raises(ValueError, match="micro_f1"):
        check_metric("mae", "multi_label_classification")


@dataclass
class Films:
    data_dir: str | None = option(None, "A folder.")
    labels: list[str] = option([], "Genres.")


def test_features_stand_alone():
    features = EncodingArguments(features="someone/features", text_max_length=77)  # presets set the length
    assert starts_from_features(features, Films(), needs="data_dir")
    assert not starts_from_features(EncodingArguments(), Films())
    assert not starts_from_features(EncodingArguments(cache_dir="x"), Films("films", ["Drama"]), needs="data_dir")
    with pytest.raises(ValueError, match=r"`data_dir` is needed.* or `features`"):
        starts_from_features(EncodingArguments(), Films(), needs="data_dir")
    for written in ("--text_max_length=512", "--text_max_length=128", "--encoding_dtype=float32", "--cache_dir=x"):
        [encoding] = parse_arguments(
            (EncodingArguments,), {"paper": {"text_max_length": 512}}, lambda _: "paper", "", ["--features=x", written]
        )
        with pytest.raises(ValueError, match=f"`features` and `{written[2:].split('=')[0]}` exclude each other"):
            starts_from_features(encoding, Films())
    for encoding, data, name in (
        (features, Films("films"), "data_dir"),
        (features, Films(labels=["Drama"]), "labels"),
        (EncodingArguments(features="x", special_features="drop"), Films(), "special_features"),
        (EncodingArguments(features="x", cache_dir="y"), Films(), "cache_dir"),
    ):
        with pytest.raises(ValueError, match=f"`features` and `{name}` exclude each other"):
            starts_from_features(encoding, data)


@dataclass
class Read:
    """Read a book."""

    pages: int = option(3, "How many.")
    aloud: bool = option(False, "So that others hear it.")

    def __post_init__(self):
        if self.pages < 1:
            raise ValueError(f"`pages` must be at least 1, got {self.pages}.")


@dataclass
class Write:
    """Write one."""

    share: float = option(0.5, "Of the day.")


def test_the_first_word_says_what_to_do(capsys):
    commands = {"read": Read, "write": Write}
    assert parse_command(commands, "a job", ["read", "--pages=5", "--aloud"]) == ("read", Read(5, True))
    assert parse_command(commands, "a job", ["write"]) == ("write", Write(0.5))
    for arguments, message in (
        ([], "required: command"),
        (["sell"], "invalid choice: 'sell'"),
        (["read", "--pages=0"], "`pages` must be at least 1, got 0."),
        (["read", "--share=1"], "unrecognized arguments: --share=1"),
        (["write", "--share=nan"], "`share` must be a finite number"),
    ):
        with pytest.raises(SystemExit):
            parse_command(commands, "a job", arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_command(commands, "a job", ["read", "--help"])
    assert "How many. (default: 3)" in capsys.readouterr().out


def test_a_regulariser_brings_its_warmup_unless_more_is_said():
    def warmup(*arguments):
        return parse("--preset=large", "--regulariser_weight=1", *arguments)[2].regulariser_warmup_epochs

    assert [warmup(f"--regulariser={name}") for name in ("rep_cos", "rep_cka", "rep_barlow")] == [0, 0, 5]
    assert warmup("--regulariser=rep_barlow", "--regulariser_warmup_epochs=2") == 2
    assert warmup("--regulariser=rep_barlow", "--objective=specialised") == 5


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("--regulariser=barlow --regulariser_weight=1", "invalid choice: 'barlow'"),
        ("--regulariser=rep_cos", "`regulariser_weight` above 0 go together, got 'rep_cos' and 0"),
        ("--regulariser_weight=1", "go together, got None and 1.0"),
        ("--regulariser=rep_cos --regulariser_weight=nan", "`regulariser_weight` must be a finite number"),
        ("--regulariser=rep_cos --regulariser_weight=-1", "`regulariser_weight` must be at least 0"),
        ("--regulariser=rep_cos --regulariser_weight=1 --architecture=dense", "compares experts, and .* has one"),
        ("--regulariser=rep_cos --regulariser_weight=1 --regulariser_warmup_epochs=-1", "must be at least 0, got -1"),
        ("--regulariser=rep_cos --regulariser_weight=1 --regulariser_warmup_epochs=1.5", "invalid int value: '1.5'"),
    ],
)
def test_wrong_regularisers_are_refused(written, message, capsys):
    with pytest.raises(SystemExit):
        parse(*written.split())
    assert re.search(message, capsys.readouterr().err)


def test_a_warmup_needs_a_regulariser_and_epochs():
    def job(model, **training):
        return Job(EncodingArguments(), ModelArguments(**model), TrainingArguments(**training), OutputArguments())

    model = {"regulariser": "rep_barlow", "regulariser_weight": 1.0}
    with pytest.raises(ValueError, match="`regulariser_warmup_epochs` 2 needs `regulariser`"):
        job({}, regulariser_warmup_epochs=2)
    with pytest.raises(ValueError, match="`regulariser_warmup_epochs` 5 must be at most `num_epochs`, 4"):
        job(model, regulariser_warmup_epochs=5, num_epochs=4)
    assert job(model, regulariser_warmup_epochs=4, num_epochs=4).settings()["regulariser"] == "rep_barlow"


def test_a_start_needs_something_that_starts():
    def job(training, **model):
        return Job(EncodingArguments(), ModelArguments(**model), training, OutputArguments())

    for training in (TrainingArguments(feature_dropout_start=0), TrainingArguments(feature_dropout_start=0.5)):
        with pytest.raises(ValueError, match=r"`feature_dropout_start` .* needs `feature_dropout`"):
            job(training)
        assert job(training, feature_dropout=0.1).training == training
    job(TrainingArguments())


def test_streaming_options_go_together():
    assert starts_from_features(
        EncodingArguments(features="someone/x", stream_features=True, shuffle_buffer_size=64), Films()
    )
    with pytest.raises(ValueError, match="`stream_features` needs `features`"):
        EncodingArguments(stream_features=True)
    with pytest.raises(ValueError, match="`shuffle_buffer_size` needs `stream_features`"):
        EncodingArguments(features="someone/x", shuffle_buffer_size=64)
    streamed = EncodingArguments(features="someone/x", stream_features=True, shuffle_buffer_size=64)
    for training, message in (
        (TrainingArguments(num_workers=2), "`num_workers` can be 0 or 1"),
        (TrainingArguments(batch_size=65), "at least `batch_size`"),
    ):
        with pytest.raises(ValueError, match=message):
            Job(streamed, ModelArguments(), training, OutputArguments())


def test_a_path_from_home_is_that_of_the_home_folder(monkeypatch):
    """Shells replace `~` at the start of a word alone, so that `--output_dir=~/x` made a folder of that name."""
    monkeypatch.setenv("HOME", "/the/home")
    encoding, _, _, output = parse("--output_dir=~/runs", "--features=~")
    assert (output.output_dir, encoding.features) == ("/the/home/runs", "/the/home")
    assert given_path("~/x") == Path("/the/home/x")
    assert parse("--output_dir=a~/b~")[3].output_dir == "a~/b~"
