"""Whole models on the device, simulated: what kernels compute together is what the reference computes, alone or in parts, one token or many."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
