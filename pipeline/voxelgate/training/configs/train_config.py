"""The configs that train and measure: `train.json` and what is laid over it."""

from voxelgate.bundle.frame import DEVICE, IMPORTS, Config
from voxelgate.core.errors import UsageError
from voxelgate.training.configs.steps import (
    augmentation_steps,
    cleaning_steps,
    inferer_config,
    network_config,
    preparation_steps,
    reading_steps,
)
from voxelgate.training.distributed import STATE
from voxelgate.training.planning.plan import Plan

PRECISION_OF_ALL = (
    "$choose_precision(@device, 'float32' if (@device.type, @precision) == ('cpu', 'auto') else @precision)"
)
"""On CPUs each process would time its own convolution, and two might choose differently."""

LENGTH = "@train#trainer#max_epochs"
"""Epochs of a training: `epochs`, or what MONAI Label asks of the trainer, which alone it knows."""

LAST_EPOCH = f"${LENGTH} if {LENGTH} % @validate_every else {LENGTH} + 1"
"""Interval that makes the last epoch validate too where it is not its turn; otherwise it never comes."""

CLOCKED = 3
"""Version of plans from which on a training can keep minutes."""

CLOSING_PASSES = 2
"""How often validation cases are segmented after the last step, with mirror images: for the ending, and the scores, of
which distances take as long as another validation."""

KEEP_BEST: Config = {"_target_": "monai.utils.first", "iterable": ["@train#keep_best"]}
KEEP_TIME: Config = {"_target_": "monai.utils.first", "iterable": ["@train#keep_time"]}
"""Handlers that `ResumeState` names too; no references, since MONAI Label 0.8.5 takes each handler for a mapping."""

SHOWN_SINCE = 3
"""Version of the plans whose trainings write a page of their progress; before, TensorBoard got losses and mean Dice."""

SET_ASIDE = "$set_aside(@output_dir, @model_path, resume=@resume)"
"""Comes before anything is built that writes into the folder of the training."""

LOSS_EVENTS: Config = {
    "_target_": "TensorBoardStatsHandler",
    "log_dir": "$@output_dir + '/events'",
    "tag_name": "train_loss",
    "output_transform": "$lambda output: output['loss'].item()",
}
DICE_EVENTS: Config = {
    "_target_": "TensorBoardStatsHandler",
    "log_dir": "$@output_dir + '/events'",
    "iteration_log": False,
}

PLACE_LABEL: Config = {
    "_target_": "voxelgate.PlaceLabeld",
    "label_key": "label",
    "image_key": "image",
}
"""For label maps that come from a PACS, which hold a part of their image only."""

LOSSES = {
    "dice_ce": {
        "_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True, "include_background": False
    },
    "batch_dice_ce": {
        "_target_": "DiceCELoss", "softmax": True, "to_onehot_y": True, "include_background": False, "batch": True
    },
    "dice_bce": {"_target_": "voxelgate.BCEDiceLoss"},
    "dice_focal": {
        "_target_": "DiceFocalLoss", "softmax": True, "to_onehot_y": True, "include_background": True
    },
}  # fmt: skip


def train_config(plan: Plan) -> Config:
    """Return `train.json`; everything a user may want to change stands at its top level."""
    pace, is_clocked = plan.training, plan.plan_version >= CLOCKED
    average = "growing_average" if is_clocked else "torch.optim.swa_utils.get_ema_multi_avg_fn"
    return {
        "imports": [
            *IMPORTS,
            *(["$import time", "$from voxelgate import growing_average"] if is_clocked else []),
            "$from voxelgate import datalist",
            "$from voxelgate import choose_precision",
            "$from voxelgate import keep_large_buffers",
            "$from voxelgate import needs_scaler",
            "$from voxelgate import identify",
            "$from voxelgate import set_aside",
            "$from voxelgate import start_from",
            "$from voxelgate import start_process_group",
            "$from voxelgate import world_size",
        ],
        "bundle_root": ".",
        "manifest": "manifest.json",
        "data_root": None,
        "dataset_dir": "@data_root",
        "fold": 0,
        "output_dir": "$@bundle_root + '/training'",
        "model_path": "$@bundle_root + '/models/model.pt'",
        "resume": False,
        "init_weights": plan.adopted.get("from"),
        "device": DEVICE,
        "precision": "auto",
        "precision_used": "$choose_precision(torch.device(@device), @precision)",
        "workers": 0,
        "seed": pace.seed,
        **_minutes(plan),
        "epochs": pace.epochs,
        "steps_per_epoch": pace.steps_per_epoch,
        "batch_size": pace.batch_size,
        "learning_rate": pace.learning_rate,
        "warmup_steps": pace.warmup_steps,
        "validate_every": pace.validate_every,
        "patience": pace.patience,
        "cache_rate": 1.0,
        "network_def": network_config(plan),
        "network": "$start_from(@network_def, @init_weights).to(@device, memory_format=torch.channels_last_3d)",
        "train_network": "@network",
        "averaged": {
            "_target_": "torch.optim.swa_utils.AveragedModel",
            "model": "@network",
            "multi_avg_fn": f"${average}({pace.average_decay})",
            "use_buffers": True,
        },
        "loss": loss(plan),
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@train_network.parameters()",
            "lr": "@learning_rate",
            "weight_decay": pace.weight_decay,
        },
        "lr_scheduler": {
            "_target_": "monai.optimizers.WarmupCosineSchedule",
            "optimizer": "@optimizer",
            "warmup_steps": "@warmup_steps",
            "t_total": f"${LENGTH} * @steps_per_epoch",
            "warmup_multiplier": 0.01,
        },
        "train": _train_section(plan),
        "validate": _validate_section(plan),
        "initialize": [
            *_begun(plan),
            "$keep_large_buffers()",
            "$monai.utils.set_determinism(seed=@seed)",
        ],
        "run": [SET_ASIDE, "$@train#trainer.run()"],
    }


def _minutes(plan: Plan) -> Config:
    """Return the time a training has, as planned unless another length is asked for, and when it began."""
    pace = plan.training
    if plan.plan_version < CLOCKED:
        return {}
    steps = pace.epochs * pace.steps_per_epoch
    planned = f"${pace.minutes:g} if {LENGTH} * @steps_per_epoch == {steps} else None" if pace.minutes else None
    return {"minutes": planned, "started_s": "$time.monotonic()"}


def _begun(plan: Plan) -> list[str]:
    """Return what looks at the clock before anything is read."""
    return ["$@started_s"] if plan.plan_version >= CLOCKED else []


def loss(plan: Plan) -> Config:
    """Return the loss of a plan, summed over the levels of deep supervision."""
    if plan.training.loss not in LOSSES:
        raise UsageError(f"there is no loss {plan.training.loss!r}; choose of {', '.join(LOSSES)}")
    return {"_target_": "voxelgate.NetworkLoss", "loss": LOSSES[plan.training.loss]}


def evaluate_config(plan: Plan) -> Config:
    """Return `evaluate.json`, laid over `train.json`: measure the weights on the validation cases of a fold."""
    steps = cleaning_steps(plan)
    cleaned = {"validate#postprocessing": {"_target_": "Compose", "transforms": [*steps, _one_hot(plan)]}}
    return {
        **({"init_weights": None} if plan.adopted else {}),
        "validate#inferer": inferer_config(plan),
        **(cleaned if steps else {}),
        "validate#handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@model_path",
                "load_dict": {"model": "$@averaged.module"},
                "map_location": "@device",
            },
            "@score_cases",
        ],
        "score_cases": {
            "_target_": "voxelgate.ScoreCases",
            "path": "$@output_dir + '/scores.csv'",
            "names": plan.label_table.to_mapping(),
        },
        "run": ["$@validate#evaluator.run()"],
    }


def multi_gpu_config(plan: Plan) -> Config:
    """Return `multi_gpu_train.json`, laid over `train.json` and started by torchrun; gloo where there is no GPU."""
    return {
        "device": "$start_process_group()",
        "precision_used": PRECISION_OF_ALL,
        "train_network": {
            "_target_": "torch.nn.parallel.DistributedDataParallel",
            "module": "@network",
            "device_ids": "$None if @device.type == 'cpu' else [@device]",
        },
        "initialize": [*_begun(plan), "$keep_large_buffers()", "$@device", "$monai.utils.set_determinism(seed=@seed)"],
        "run": [SET_ASIDE, "$@train#trainer.run()", "$torch.distributed.destroy_process_group()"],
    }


def _train_section(plan: Plan) -> Config:
    keys = ["image", "label"]
    return {
        "deterministic_transforms": [
            *reading_steps(plan, keys),
            PLACE_LABEL,
            *preparation_steps(plan, keys),
            {"_target_": "voxelgate.ForegroundIndicesd", "label_key": "label"},
        ],
        "random_transforms": augmentation_steps(plan),
        "preprocessing": {
            "_target_": "Compose",
            "transforms": "$@train#deterministic_transforms + @train#random_transforms",
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$datalist(@manifest, data_root=@data_root, fold=@fold, part='training')",
            "transform": "@train#preprocessing",
            "cache_rate": "@cache_rate",
            "num_workers": 2,
            "progress": False,
        },
        "sampler": {
            "_target_": "voxelgate.ShardedRandomSampler",
            "cases": "$len(@train#dataset)",
            "samples": "$@steps_per_epoch * @batch_size",
            "seed": "@seed",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@train#dataset",
            "batch_size": "@batch_size",
            "sampler": "@train#sampler",
            "num_workers": "@workers",
        },
        "inferer": {
            "_target_": "voxelgate.MixedPrecisionInferer",
            "precision": "@precision_used",
        },
        "keep_best": {
            "_target_": "voxelgate.KeepBest",
            "path": "@model_path",
            "network": "$@averaged.module",
            "validator": "@validate#evaluator",
            "patience": "@patience",
        },
        **({"keep_time": _keep_time(plan)} if plan.plan_version >= CLOCKED else {}),
        "handlers": _train_handlers(plan),
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "epoch_length": "@steps_per_epoch",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@train_network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
            "train_handlers": "@train#handlers",
            "decollate": False,
            "amp": "$needs_scaler(@precision_used)",
        },
    }


def _keep_time(plan: Plan) -> Config:
    views = 1 if plan.adopted else 2 ** len(inferer_config(plan)["flip_axes"])
    return {
        "_target_": "voxelgate.KeepTime",
        "minutes": "@minutes",
        "schedule": "@lr_scheduler",
        "validator": "@validate#evaluator",
        "interval": "@validate_every",
        "closing": f"$0 if @fold < 0 else {CLOSING_PASSES * views + 1}",
        "started_s": "@started_s",
    }


def _validation_handlers(plan: Plan) -> list[Config]:
    if plan.plan_version >= CLOCKED:
        return [
            {
                "_target_": "voxelgate.ValidateEpochs",
                "validator": "@validate#evaluator",
                "interval": "@validate_every",
            }
        ]
    return [
        {
            "_target_": "ValidationHandler",
            "validator": "@validate#evaluator",
            "epoch_level": True,
            "interval": interval,
        }
        for interval in ("@validate_every", LAST_EPOCH)
    ]


def _train_handlers(plan: Plan) -> list[Config]:
    is_clocked = plan.plan_version >= CLOCKED
    return [
        {
            "_target_": "voxelgate.SeedEpochs",
            "seed": "@seed",
            "sampler": "@train#sampler",
            "transform": "@train#preprocessing",
        },
        {
            "_target_": "voxelgate.WatchTraining",
            "network": "@network",
            "log_dir": "$@output_dir + '/events'",
        },
        {"_target_": "voxelgate.StopOnBadLoss"},
        {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": False, "epoch_level": False},
        {"_target_": "voxelgate.UpdateAverage", "averaged": "@averaged", "network": "@network"},
        *_validation_handlers(plan),
        KEEP_BEST,
        _progress_page(plan) if plan.plan_version >= SHOWN_SINCE else LOSS_EVENTS,
        {"_target_": "voxelgate.ShowProgress", "validator": "@validate#evaluator"},
        {
            "_target_": "voxelgate.ResumeState",
            "path": f"$@output_dir + '/{STATE}'",
            "objects": {
                "network": "@network",
                "averaged": "@averaged",
                "optimizer": "@optimizer",
                "lr_scheduler": "@lr_scheduler",
                "keep_best": "@train#keep_best",
                **({"keep_time": "@train#keep_time"} if is_clocked else {}),
            },
            "identity": {
                "fold": "@fold",
                "init_weights": "$str(@init_weights)",
                "seed": "@seed",
                "epochs": LENGTH,
                "steps_per_epoch": "@steps_per_epoch",
                "batch_size": "@batch_size",
                "learning_rate": "@learning_rate",
                "warmup_steps": "@warmup_steps",
                "validate_every": "@validate_every",
                "patience": "@patience",
                "cases": "$identify(@train#dataset.data)",
                "validation": "$identify(@validate#dataset.data)",
                "processes": "$world_size()",
                "precision": "$str(@precision_used)",
            },
            "resume": "@resume",
        },
        *([KEEP_TIME] if is_clocked else []),
    ]


def _progress_page(plan: Plan) -> Config:
    return {
        "_target_": "voxelgate.WriteProgressPage",
        "path": "$@output_dir + '/progress.html'",
        "validator": "@validate#evaluator",
        "optimizer": "@optimizer",
        "names": plan.label_table.to_mapping(),
        "title": plan.name,
        "fold": "@fold",
    }


def _one_hot(plan: Plan) -> Config:
    return {
        "_target_": "voxelgate.OneHotLabelsd",
        "keys": ["pred", "label"],
        "label_key": "label",
        "classes": len(plan.labels),
    }


def _validate_section(plan: Plan) -> Config:
    return {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [*reading_steps(plan, ["image", "label"]), PLACE_LABEL, *preparation_steps(plan, ["image"])],
        },
        "dataset": {
            "_target_": "CacheDataset",
            "data": "$datalist(@manifest, data_root=@data_root, fold=@fold, part='validation')",
            "transform": "@validate#preprocessing",
            "cache_rate": "@cache_rate",
            "num_workers": 2,
            "progress": False,
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@validate#dataset",
            "batch_size": 1,
            "num_workers": 0,
        },
        "inferer": inferer_config(plan) | ({} if plan.adopted else {"flip_axes": []}),
        "postprocessing": _one_hot(plan),
        "key_metric": {
            "val_mean_dice": {
                "_target_": "MeanDice",
                "include_background": False,
                "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
            }
        },
        "handlers": [] if plan.plan_version >= SHOWN_SINCE else [DICE_EVENTS],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@validate#dataloader",
            "network": "$@averaged.module",
            "inferer": "@validate#inferer",
            "postprocessing": "@validate#postprocessing",
            "key_val_metric": "@validate#key_metric",
            "val_handlers": "@validate#handlers",
        },
    }
