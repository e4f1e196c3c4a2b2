"""Measure on real cases what a bundle needs: read them whole, and run the network on a block from their middle."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd
from torch import nn

from pipeline.batch.demand import StreamingModel, WindowModel, networks_of, streaming_model, window_model
from pipeline.batch.forecast import Measured, Shape
from pipeline.batch.worker import Setup
from pipeline.bundle import Bundle, open_bundle
from pipeline.cases import Case, read_case
from pipeline.errors import VoxelgateError
from pipeline.geometry import Grid
from pipeline.inference.choice import RuntimeChoice
from pipeline.inference.sliding_window import AIR_MARGIN_VOX, RestoringSlidingWindowInferer
from pipeline.inference.windows import body_box, with_margin
from pipeline.monai_io import as_image
from pipeline.preview import sketch
from pipeline.quality import assess
from pipeline.results import Output, Result, write_results
from pipeline.transforms import ResampleToSpacingd
