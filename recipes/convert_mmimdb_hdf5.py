"""
Turn MM-IMDb's pooled form (MultiBench's multimodal_imdb.hdf5) into arrays that recipes/train_arrays.py reads.

    python recipes/convert_mmimdb_hdf5.py multimodal_imdb.hdf5 mmimdb.npz
    accelerate launch recipes/train_arrays.py --preset mmimdb --data_file mmimdb.npz

Needs h5py, pip install "fl-i2moe[hdf5]".
"""

import argparse

from fl_i2moe.data.mmimdb_hdf5 import SPLIT_ENDS, check_new_file, read_mmimdb_hdf5, write_arrays
from fl_i2moe.training.command_line import given_path
from fl_i2moe.training.recipe import run_recipe


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hdf5_file", type=given_path, help="multimodal_imdb.hdf5")
    parser.add_argument("output_file", type=given_path, help="new .npz file")
    parser.add_argument(
        "--split_ends",
        nargs=2,
        type=int,
        default=SPLIT_ENDS,
        metavar=("TRAIN", "DEV"),
        help="rows at which the training and the development split end (default: as published, %(default)s)",
    )
    options = parser.parse_args()
    check_new_file(options.output_file)
    fields = read_mmimdb_hdf5(options.hdf5_file, tuple(options.split_ends))
    write_arrays(fields, options.output_file)
    shapes = ", ".join(f"{name} {fields[name].shape}" for name in ("text", "image", "labels"))
    print(f"{shapes}: {options.output_file}")


if __name__ == "__main__":
    run_recipe(main)
