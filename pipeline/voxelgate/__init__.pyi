from .bundle.export import export
from .bundle.metadata import image_spec_of
from .bundle.opened import open_bundle
from .bundle.predict import Bundle, Segmentation
from .core.errors import BundleError, EngineError, InputError, ManifestError, OutputError, UsageError, VoxelgateError
from .core.findings import Finding, Severity
from .core.geometry import Grid
from .core.labels import LabelTable
from .core.verdict import Quality, Verdict
from .datasets.build_manifest import build_manifest, write_manifest
from .datasets.manifest import Manifest, datalist, load_manifest
from .datasets.survey import Fingerprint, Survey, survey
from .dicom.read.reader import CheckedDicomReader
from .dicom.read.series import Series, scan_dicom
from .evaluation.handler import ScoreCases
from .evaluation.scores import LabelScores, evaluate
from .images.spec import ImageOnGrid, ImageSpec, read_image
from .images.volumes import write_label_map
from .inference.chain.chain_inferer import ChainInferer
from .inference.chain.inverting import InvertingInferer
from .inference.composed.cascade_inferer import CascadeInferer
from .inference.composed.cropped_inferer import CroppedInferer
from .inference.composed.ensemble_inferer import EnsembleInferer
from .inference.composed.part import Part
from .inference.composed.parts_inferer import PartsInferer
from .inference.nnunet.nnunet_inferer import NnUNetInferer
from .inference.precision import MixedPrecisionInferer, choose_precision, keep_large_buffers, needs_scaler
from .inference.sliding_window import RestoringSlidingWindowInferer
from .inference.streaming.stream import stream
from .networks import presets
from .networks.attention_unet import AttentionUNet
from .networks.flat import FlatNetwork
from .networks.guided_attention import GuidedAttentionNet
from .networks.losses import BCEDiceLoss, NetworkLoss
from .networks.nnunet_unets import PlainConvUNet, ResidualEncoderUNet
from .networks.nonlocal_unet import NonLocalUNet
from .networks.scripted import ScriptedNetwork
from .segmentation.batch.run_batch import Reports, segment, watch
from .segmentation.batch.status import Status, status
from .segmentation.cases import find_cases
from .segmentation.output_names import Output
from .segmentation.page.build import write_page
from .segmentation.report import CaseReport, CaseStatus
from .training.clock import KeepTime
from .training.configs.bundle_files import write_bundle
from .training.cross_validation import CrossValidation, train_folds
from .training.diagnostics import WatchTraining
from .training.distributed import identify, set_aside, start_from, start_process_group, world_size
from .training.handlers import (
    KeepBest,
    ResumeState,
    SeedEpochs,
    ShardedRandomSampler,
    ShowProgress,
    StopOnBadLoss,
    UpdateAverage,
    ValidateEpochs,
    growing_average,
)
from .training.held_out import ScoreCleanings
from .training.pages.drawing_handler import DrawCases
from .training.pages.progress_handler import WriteProgressPage
from .training.planning.plan import Budget, Plan
from .training.planning.rules import plan
from .training.train import TrainingJob, train
from .transforms.canonical_zoom import CanonicalZoomd
from .transforms.channels import AppendZerosd
from .transforms.components import KeepComponentsd
from .transforms.dicom_order import OrderDicomd
from .transforms.flat_spacing import FlatSpacingd
from .transforms.header_sizes import HeaderSizesd
from .transforms.intensity import Despeckled, NormalizeImaged, OffsetToHUd, WindowHUd
from .transforms.io import ChannelsReader, LabelMapWriter, LoadLabeld, OneHotLabelsd, VolumeReader
from .transforms.nnunet.preprocess import NnUNetPreprocessd
from .transforms.sampling import ForegroundIndicesd, RandBalancedPatchd
from .transforms.spatial import PlaceLabeld, RandSideSafeFlipd, ResampleToSpacingd

__all__ = [
    "AppendZerosd",
    "AttentionUNet",
    "BCEDiceLoss",
    "Budget",
    "Bundle",
    "BundleError",
    "CanonicalZoomd",
    "CascadeInferer",
    "CaseReport",
    "CaseStatus",
    "ChainInferer",
    "ChannelsReader",
    "CheckedDicomReader",
    "CroppedInferer",
    "CrossValidation",
    "Despeckled",
    "DrawCases",
    "EngineError",
    "EnsembleInferer",
    "Finding",
    "Fingerprint",
    "FlatNetwork",
    "FlatSpacingd",
    "ForegroundIndicesd",
    "Grid",
    "GuidedAttentionNet",
    "HeaderSizesd",
    "ImageOnGrid",
    "ImageSpec",
    "InputError",
    "InvertingInferer",
    "KeepBest",
    "KeepComponentsd",
    "KeepTime",
    "LabelMapWriter",
    "LabelScores",
    "LabelTable",
    "LoadLabeld",
    "Manifest",
    "ManifestError",
    "MixedPrecisionInferer",
    "NetworkLoss",
    "NnUNetInferer",
    "NnUNetPreprocessd",
    "NonLocalUNet",
    "NormalizeImaged",
    "OffsetToHUd",
    "OneHotLabelsd",
    "OrderDicomd",
    "Output",
    "OutputError",
    "Part",
    "PartsInferer",
    "PlaceLabeld",
    "PlainConvUNet",
    "Plan",
    "Quality",
    "RandBalancedPatchd",
    "RandSideSafeFlipd",
    "Reports",
    "ResampleToSpacingd",
    "ResidualEncoderUNet",
    "RestoringSlidingWindowInferer",
    "ResumeState",
    "ScoreCases",
    "ScoreCleanings",
    "ScriptedNetwork",
    "SeedEpochs",
    "Segmentation",
    "Series",
    "Severity",
    "ShardedRandomSampler",
    "ShowProgress",
    "Status",
    "StopOnBadLoss",
    "Survey",
    "TrainingJob",
    "UpdateAverage",
    "UsageError",
    "ValidateEpochs",
    "Verdict",
    "VolumeReader",
    "VoxelgateError",
    "WatchTraining",
    "WindowHUd",
    "WriteProgressPage",
    "build_manifest",
    "choose_precision",
    "datalist",
    "evaluate",
    "export",
    "find_cases",
    "growing_average",
    "identify",
    "image_spec_of",
    "keep_large_buffers",
    "load_manifest",
    "needs_scaler",
    "open_bundle",
    "plan",
    "presets",
    "read_image",
    "scan_dicom",
    "segment",
    "set_aside",
    "start_from",
    "start_process_group",
    "status",
    "stream",
    "survey",
    "train",
    "train_folds",
    "watch",
    "world_size",
    "write_bundle",
    "write_label_map",
    "write_manifest",
    "write_page",
]
