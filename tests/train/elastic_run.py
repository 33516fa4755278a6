"""A small run for torchrun, whose second rank dies once. Usage: elastic_run.py FOLDER STEPS DIE_AT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sharded_checkpoints import train_and_save

from openzaya.train.launch import launched

if __name__ == "__main__":
    torch.set_num_threads(1)
    with launched("cpu"):
        train_and_save(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
