import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from trustml import config, specs
from trustml.specs import tune


def _made(**changes):
    """A valid config with dotted fields changed; experiment 'train' at epsilon 8."""
    cfg = config.default()
    cfg.privacy.epsilon = 8.0
    for field, value in changes.items():
        *path, last = field.split("__")
        node = cfg
        for name in path:
            node = node[name]
        with node.ignore_type():
            node[last] = value
    return cfg


def test_default_is_the_dataclasses():
    assert config.from_config_dict(_made(privacy__enabled=False)) == specs.RunConfig(
        privacy=specs.PrivacySpec(enabled=False, epsilon=8.0)
    )
    assert config.from_config_dict({"privacy": {"epsilon": 8}}).privacy.epsilon == 8.0


def test_it_is_frozen_and_hashable():
    run = config.from_config_dict(_made())
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 3
    assert hash(run) == hash(config.from_config_dict(_made()))


# One row a wrong config: what is changed, and what the sentence must contain.
WRONG = [
    ({"experiment": "trian"}, ["experiment='trian'", "did you mean 'train'?"]),
    ({"seed": -1}, ["seed=-1", ">= 0"]),
    ({"seed": 1.5}, ["seed=1.5", "an integer"]),
    ({"data__name": "snip"}, ["data.name='snip'", "did you mean 'snips'?"]),
    ({"data__name": "file"}, ["data.name='file'", "set data.path"]),
    ({"data__path": "no.tsv"}, ["data.path='no.tsv'", "looked for /"]),
    ({"data__max_length": 0}, ["data.max_length=0", ">= 1"]),
    ({"data__vocabulary": "hash"}, ["data.vocabulary='hash'", "'hashed'"]),
    ({"data__vocabulary_size": 1}, ["data.vocabulary_size=1", ">= 2"]),
    ({"data__valid_fraction": 1.0}, ["data.valid_fraction=1.0", "below 1"]),
    ({"data__limit": -5}, ["data.limit=-5", "0 takes all"]),
    ({"data__pth": "x"}, ["'data.pth'", "did you mean data.path?"]),
    ({"model__name": "bert2"}, ["model.name='bert2'", "'bert'"]),
    ({"model__width": 0}, ["model.width=0", ">= 1"]),
    ({"model__hidden": 3}, ["model.hidden=3", "must be a tuple"]),
    ({"model__hidden": (3, -1)}, ["model.hidden=-1", ">= 1"]),
    ({"model__hidden": ("a",)}, ["model.hidden='a'", "an integer"]),
    ({"model__dropout": 1.0}, ["model.dropout=1.0", "below 1"]),
    ({"model__pooling": "sqrt"}, ["model.pooling='sqrt'", "'sqrtn'"]),
    ({"model__wide": True}, ["model.wide=True", "'bag'", "model.name='bert'"]),
    ({"model__cache_features": True}, ["cache_features=True", "model.name='bert'"]),
    (
        {"model__name": "bert", "model__cache_features": True, "model__dropout": 0.1},
        ["model.dropout=0.1", "cache_features", "set it to 0"],
    ),
    (
        {"model__name": "bert", "model__cache_features": True},
        ["privacy.trainable=()", "classifier/*"],
    ),
    (
        {
            "model__name": "bert",
            "model__cache_features": True,
            "privacy__trainable": ("classifier/*", "layer_5/*"),
        },
        ["layer_5", "trains the encoder"],
    ),
    ({"privacy__bands": 0}, ["privacy.bands=0", ">= 1"]),
    (
        {"privacy__bands": 4, "privacy__sampler": "shuffled"},
        ["privacy.sampler='shuffled'", "bands=4"],
    ),
    (
        {"privacy__bands": 4, "privacy__rule": "quantile"},
        ["privacy.rule='quantile'", "set privacy.bands=1"],
    ),
    ({"model__pooling": "cls"}, ["model.pooling='cls'", "'bag'", "mean, sqrtn"]),
    ({"model__compute_dtype": "float16"}, ["model.compute_dtype", "bfloat16"]),
    ({"model__checkpoint": "no/dir"}, ["model.checkpoint='no/dir'", "looked for /"]),
    ({"model__name": "transformer", "model__heads": 3}, ["model.heads=3", "divide"]),
    ({"model__adapter": "lora"}, ["model.adapter='lora'", "model.name='bag'"]),
    (
        {"model__name": "bert", "model__adapter": "lroa"},
        ["model.adapter='lroa'", "'lora'"],
    ),
    ({"model__lora_rank": 0}, ["model.lora_rank=0", ">= 1"]),
    ({"model__lora_alpha": 0.0}, ["model.lora_alpha=0.0", "> 0"]),
    ({"optimizer__name": "adm"}, ["optimizer.name='adm'", "'adam'"]),
    ({"optimizer__learning_rate": 0.0}, ["optimizer.learning_rate=0.0", "> 0"]),
    ({"optimizer__schedule": "cos"}, ["optimizer.schedule='cos'", "'cosine'"]),
    ({"optimizer__warmup_steps": 1000}, ["warmup_steps=1000", "train.steps=1000"]),
    ({"optimizer__weight_decay": -1.0}, ["optimizer.weight_decay=-1.0", ">= 0"]),
    ({"optimizer__momentum": 1.0}, ["optimizer.momentum=1.0", "below 1"]),
    ({"optimizer__variance_floor": 0.0}, ["optimizer.variance_floor=0.0", "> 0"]),
    (
        {"optimizer__name": "adam_bc", "privacy__enabled": False},
        ["optimizer.name='adam_bc'", "privacy.enabled=False", "choose adam"],
    ),
    (
        {"optimizer__name": "adam_bc", "privacy__rule": "quantile"},
        ["optimizer.name='adam_bc'", "privacy.rule='quantile'", "choose adam"],
    ),
    (
        {
            "optimizer__name": "adam_bc",
            "privacy__noise_schedule": "inverse",
            "privacy__noise_decay": 0.1,
        },
        ["optimizer.name='adam_bc'", "noise_schedule='inverse'", "choose adam"],
    ),
    ({"privacy__epsilon": -1.0}, ["privacy.epsilon=-1.0", "enabled=False"]),
    ({"privacy__epsilon": float("nan")}, ["privacy.epsilon=nan", "finite"]),
    ({"privacy__epsilon": None}, ["privacy.epsilon=None", "set exactly one"]),
    ({"privacy__noise_multiplier": 1.0}, ["privacy.epsilon=8.0", "both set"]),
    (
        {"privacy__epsilon": None, "privacy__noise_multiplier": 0.0},
        ["privacy.noise_multiplier=0.0 gives epsilon=inf; set privacy.enabled=False"],
    ),
    ({"privacy__delta": 1.0}, ["privacy.delta=1.0", "between 0 and 1"]),
    ({"privacy__delta": 0.0}, ["privacy.delta=0.0", "between 0 and 1"]),
    ({"privacy__relation": "add_remove"}, ["privacy.relation", "add_or_remove_one"]),
    ({"privacy__l2_clip_norm": -1.0}, ["privacy.l2_clip_norm=-1.0", "> 0"]),
    ({"privacy__l2_clip_norm": float("inf")}, ["privacy.l2_clip_norm=inf", "> 0"]),
    (
        {"privacy__l2_clip_norm": 1e13},
        ["privacy.l2_clip_norm=10000000000000.0", "below 1e+12"],
    ),
    (
        {"model__name": "mlp", "model__hidden": (), "model__dropout": 0.1},
        ["model.dropout=0.1", "no effect", "set model.hidden"],
    ),
    (
        {"baseline__steps": 3, "optimizer__warmup_steps": 4},
        ["baseline.steps=3", "optimizer.warmup_steps=4"],
    ),
    ({"privacy__rule": "flt"}, ["privacy.rule='flt'", "'flat'"]),
    ({"privacy__method": "bookkeeping"}, ["privacy.method", "'book_keeping'"]),
    ({"privacy__microbatch_size": -1}, ["privacy.microbatch_size=-1", ">= 0"]),
    (
        {"privacy__microbatch_size": 64, "train__physical_batch_size": 32},
        ["privacy.microbatch_size=64", "physical_batch_size=32"],
    ),
    ({"privacy__sampler": "poison"}, ["privacy.sampler='poison'", "'poisson'"]),
    ({"privacy__sampler": "fixed_size"}, ["privacy.relation=", "'replace_one'"]),
    ({"privacy__sampler": "shuffled"}, ["privacy.relation=", "'replace_special'"]),
    (
        {"privacy__sampler": "truncated_poisson"},
        ["privacy.relation='add_or_remove_one'", "='replace_special'"],
    ),
    (
        {"privacy__sampler": "balls_in_bins", "privacy__relation": "replace_one"},
        ["privacy.relation='replace_one'", "set privacy.relation='add_or_remove_one'"],
    ),
    (
        {
            "privacy__sampler": "balls_in_bins",
            "privacy__noise_schedule": "stairs",
            "privacy__noise_decay": 0.5,
        },
        ["privacy.noise_schedule='stairs'", "privacy.sampler='balls_in_bins'"],
    ),
    ({"privacy__accountant": "plt"}, ["privacy.accountant='plt'", "'pld'"]),
    ({"privacy__noise_seed": -1}, ["privacy.noise_seed=-1", ">= 0"]),
    ({"privacy__noise_seed": 2**128}, ["privacy.noise_seed=", "2**128"]),
    ({"privacy__trainable": "w/*"}, ["privacy.trainable='w/*'", "tuple"]),
    ({"privacy__check": 1}, ["privacy.check=1", "True or False"]),
    ({"privacy": 3}, ["privacy=3", "set its fields"]),
    ({"train__steps": 0}, ["train.steps=0", ">= 1"]),
    ({"train__batch_size": 0}, ["train.batch_size=0", ">= 1"]),
    ({"train__batch_size": True}, ["train.batch_size=True", "an integer"]),
    ({"train__physical_batch_size": -1}, ["train.physical_batch_size=-1", ">= 0"]),
    ({"train__eval_every": -1}, ["train.eval_every=-1", "only at the end"]),
    ({"train__checkpoint_every": -1}, ["train.checkpoint_every=-1", "at the end"]),
    ({"train__augmentation": "shfit"}, ["train.augmentation", "'shift'"]),
    ({"train__augmentations": 0}, ["train.augmentations=0", ">= 1"]),
    ({"train__augmentations": 4}, ["train.augmentations=4", "choose an augmentation"]),
    ({"train__ema_decay": 1.0}, ["train.ema_decay=1.0", "below 1"]),
    ({"train__log_every": 0}, ["train.log_every=0", ">= 1"]),
    ({"train__backend": "pmp"}, ["train.backend='pmp'", "'pmap'"]),
    ({"train__num_devices": -1}, ["train.num_devices=-1", "0 = all"]),
    ({"report__epsilons": (1.0, 0.0)}, ["report.epsilons=0.0", "> 0"]),
    ({"report__epsilons": (1.0, 1.0)}, ["report.epsilons=(1.0, 1.0)", "repeats"]),
    ({"report__attack_examples": -1}, ["report.attack_examples=-1", ">= 0"]),
    ({"report__level": 1.0}, ["report.level=1.0", "between 0 and 1"]),
    (
        {"experiment": "trust_report"},
        ["privacy.epsilon=8.0", "set report.epsilons", "and privacy.epsilon=None"],
    ),
    (
        {
            "experiment": "trust_report",
            "privacy__epsilon": None,
            "privacy__noise_multiplier": 1.0,
        },
        ["privacy.noise_multiplier=1.0", "and privacy.noise_multiplier=None"],
    ),
    (
        {
            "experiment": "trust_report",
            "privacy__epsilon": None,
            "privacy__enabled": False,
        },
        ["privacy.enabled=False", "report.epsilons=()"],
    ),
    ({"baseline__learning_rate": -1.0}, ["baseline.learning_rate=-1.0", "None takes"]),
    ({"baseline__steps": 0}, ["baseline.steps=0", ">= 1"]),
    ({"baseline__batch_size": 0}, ["baseline.batch_size=0", ">= 1"]),
    ({"baseline__dropout": 1.0}, ["baseline.dropout=1.0", "below 1"]),
    ({"attack__num_models": 1}, ["attack.num_models=1", ">= 2"]),
    ({"attack__num_models": 7}, ["attack.num_models=7", "must be even", "take 8"]),
    (
        {
            "experiment": "membership",
            "privacy__enabled": False,
            "attack__num_models": 2,
        },
        ["attack.num_models=2", "no references", ">= 4"],
    ),
    (
        {
            "experiment": "membership",
            "privacy__enabled": False,
            "attack__references": (4, 3),
        },
        ["attack.references=(4, 3)", "whole pairs", "even"],
    ),
    (
        {
            "experiment": "membership",
            "privacy__enabled": False,
            "privacy__unit": "user",
            "data__user_column": "who",
            "data__path": "a.tsv",
        },
        ["privacy.unit='user'", "experiment='membership'", "'example'"],
    ),
    ({"attack__design": "pair"}, ["attack.design='pair'", "did you mean 'paired'?"]),
    ({"attack__group_size": -1}, ["attack.group_size=-1", "0 finds it out"]),
    (
        {"experiment": "membership", "train__ema_decay": 0.9},
        ["train.ema_decay=0.9", "experiment='membership'"],
    ),
    (
        {"experiment": "membership", "privacy__group_size": 4},
        ["privacy.group_size=4", "experiment='membership'"],
    ),
    ({"model__characters": 9}, ["model.characters=9", "use 'gru'"]),
    ({"model__characters": -1}, ["model.characters=-1", "a vector of its own"]),
    ({"canary__words": ()}, ["canary.words=()", "must not be empty"]),
    ({"canary__words": ("my pin",)}, ["canary.words='my pin'", "single words"]),
    ({"canary__alphabet": ("a", "a")}, ["canary.alphabet", "distinct"]),
    ({"canary__copies": (1, 10)}, ["canary.copies=(1, 10)", "must hold 0"]),
    ({"canary__copies": (0, 1, 1)}, ["canary.copies", "repeats a number"]),
    ({"canary__defence_copies": (0,)}, ["canary.defence_copies=(0,)", "control"]),
    ({"canary__seeds": 0}, ["canary.seeds=0", ">= 1"]),
    ({"canary__candidates": 99}, ["canary.candidates=99", ">= 1000"]),
    ({"canary__code_tags": "slots"}, ["did you mean 'slot'?"]),
    ({"canary__attacks": ()}, ["canary.attacks=()", "try 'relaxed'"]),
    ({"canary__attacks": ("beam", "beam")}, ["canary.attacks", "repeats one"]),
    ({"canary__length": 7}, ["'exhaustive' scores 10000000 codes", "'descent'"]),
    ({"canary__defences": ("dp",)}, ["canary.defences='dp'"]),
    ({"canary__dropout": 0.0}, ["canary.dropout=0.0"]),
    ({"canary__early_stopping": 1.0}, ["canary.early_stopping=1.0"]),
    (
        {"experiment": "canary_extraction", "model__name": "gru"},
        ["privacy.enabled=True contradicts canary.defences=()", "set it to False"],
    ),
    ({"experiment": "canary_extraction"}, ["model.name='bag'", "set it to 'gru'"]),
    (
        {
            "experiment": "canary_extraction",
            "model__name": "gru",
            "data__max_length": 7,
        },
        ["data.max_length=7 cuts the 8 words"],
    ),
    (
        {
            "experiment": "canary_extraction",
            "model__name": "gru",
            "data__vocabulary": "pretrained",
        },
        ["data.vocabulary='pretrained'", "use 'hashed'"],
    ),
    (
        {"experiment": "canary_extraction", "train__eval_every": 5},
        ["train.eval_every=5", "experiment='canary_extraction'"],
    ),
    ({"prvacy": 3}, ["'prvacy'"]),
]


@pytest.mark.parametrize(("changes", "parts"), WRONG, ids=lambda x: str(x)[:60])
def test_wrong_configs_get_one_sentence(changes, parts):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        config.from_config_dict(_made(**changes))
    text = str(error.value)
    for part in parts:
        assert part in text
    assert "\n" not in text and text[-1] in ".?"


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__sampler": "fixed_size", "privacy__relation": "replace_one"},
        {"privacy__sampler": "shuffled", "privacy__relation": "replace_special"},
        {"privacy__sampler": "truncated_poisson", "privacy__relation": "replace_one"},
        {"privacy__sampler": "balls_in_bins", "privacy__accountant": "monte_carlo"},
        {"privacy__epsilon": None, "privacy__noise_multiplier": 1.1},
        {"privacy__epsilon": None, "privacy__enabled": False},
        {"privacy__noise_seed": 2**128 - 1},
        {"optimizer__name": "adam_bc"},
        {"optimizer__name": "adam", "privacy__rule": "quantile"},
        {"privacy__trainable": ["*/bias"]},
        {"experiment": "trust_report", "privacy__epsilon": None},
        {"train__physical_batch_size": 4096},
    ],
    ids=str,
)
def test_right_configs_pass(changes):
    config.from_config_dict(_made(**changes))


def test_without_privacy_adam_has_nothing_to_correct():
    run = config.from_config_dict(_made(optimizer__name="adam_bc")).without_privacy()
    assert run.optimizer.name == "adam" and not run.privacy.enabled
    assert run.privacy.epsilon is None


def test_a_path_makes_it_a_file(tmp_path):
    (tmp_path / "x.tsv").write_text("text\tlabel\n")
    run = config.from_config_dict(_made(data__path=str(tmp_path / "x.tsv")))
    assert run.data.name == "file"


def test_json_round_trip_and_digest():
    run = config.from_config_dict(_made(privacy__noise_seed=2**127 + 1))
    again = config.from_config_dict(json.loads(config.to_json(run)))
    assert again == run and config.digest(again) == config.digest(run)
    assert len(config.digest(run)) == 32
    seen = {config.digest(run)}
    for field, value in [("seed", 1), ("train__steps", 999), ("data__limit", 7)]:
        seen.add(config.digest(config.from_config_dict(_made(**{field: value}))))
    assert len(seen) == 4


def test_digest_is_the_same_in_another_process():
    code = (
        "from trustml import config, specs; "
        "print(config.digest(specs.RunConfig(privacy="
        "specs.PrivacySpec(epsilon=8.0, trainable=('b', 'a')))))"
    )
    run = specs.RunConfig(privacy=specs.PrivacySpec(epsilon=8.0, trainable=("b", "a")))
    root = pathlib.Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=environment, text=True)
    assert printed.strip() == config.digest(run)


def test_arguments_of_a_config_file():
    assert config.check_argument("") == ""
    assert config.check_argument("smoke") == "smoke"
    assert config.check_argument("atis", ("", "atis")) == "atis"
    wrong = r"argument 'smok' is not one of 'atis', 'smoke'; did you mean 'smoke'\?$"
    with pytest.raises(ValueError, match=wrong):
        config.check_argument("smok", ("", "atis", "smoke"))
    with pytest.raises(ValueError, match=r"'xx' is not one of 'smoke'; .* whole run\."):
        config.check_argument("xx")


def test_field_names():
    names = config.field_names()
    assert "seed" in names and "privacy.epsilon" in names and "privacy" not in names
    assert config.check_field("train.steps") == "train.steps"
    with pytest.raises(ValueError, match=r"'epsilon'; did you mean privacy\.epsilon\?"):
        config.check_field("epsilon")


def test_a_limit_and_users_exclude_each_other_under_privacy_only(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text("text\tlabel\twho\n")
    changes = {"privacy__unit": "user", "data__user_column": "who", "data__limit": 50}
    changes |= {"data__path": str(file), "privacy__enabled": False}
    assert config.from_config_dict(_made(**changes)).data.limit == 50
    with pytest.raises(ValueError, match="data.limit=50 is one draw among"):
        config.from_config_dict(_made(**changes | {"privacy__enabled": True}))


def test_the_grid_of_fednlp_marks_the_cells_of_its_rule():
    cells = list(tune.grid(("iid", "natural"), shared_rate=0.03, centralised_steps=9))
    assert len(cells) == 2 * 2 * 3 * 4 + 3
    marked = [cell for cell in cells if cell.get("tune.shared_rate")]
    assert [
        (cell["optimizer.name"], cell["federated.server_optimizer"]) for cell in marked
    ] == 2 * [("sgd", "sgd"), ("adamw", "adam")]
    assert all(cell["federated.prox"] == 0.0 for cell in marked)
    assert [cell["train.steps"] for cell in cells[-3:]] == [9] * 3
