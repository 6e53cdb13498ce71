"""Reading the cache, against plainly written loops over the data set's own rows."""

import os
import pickle
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets
from fake_encoders import fake_encoders, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_i2moe.cache import batching, build_cache
from fl_i2moe.cache.batching import BatchSampler, FeatureRows, create_data_loader
from fl_i2moe.cache.encoding import batch_loader, has_non_finite
from fl_i2moe.data.raw import SampleError

MODALITIES = ["text", "image"]
KINDS = ("features", "feature_masks", "special_masks")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    raw = write_raw(folder / "raw", {"train": 61})
    options = {"batch_size": 7, "shard_size": 16, "num_workers": 0, "progress": False}
    return build_cache(raw, fake_encoders(), folder / "cache", **options).splits["train"]


def plain_batch(split, rows):
    """What a batch is, said slowly."""
    samples = [split[row] for row in rows]
    batch = {"ids": [s["id"] for s in samples], "labels": torch.tensor([s["labels"] for s in samples])}
    batch |= {kind: {} for kind in KINDS}
    for name in MODALITIES:
        longest = max(len(s[f"{name}_features"]) for s in samples)
        width = len(samples[0][f"{name}_features"][0])
        features = torch.zeros(len(rows), longest, width, dtype=torch.float16)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        special = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, sample in enumerate(samples):
            for t, feature in enumerate(sample[f"{name}_features"]):
                features[i, t] = torch.tensor(feature)
                real[i, t] = True
                special[i, t] = sample[f"{name}_special_mask"][t]
        batch["features"][name], batch["feature_masks"][name], batch["special_masks"][name] = features, real, special
    return batch


def assert_equal_batches(batch, expected):
    assert batch["ids"] == expected["ids"]
    for kind in KINDS:
        assert list(batch[kind]) == MODALITIES
        for name in MODALITIES:
            assert batch[kind][name].dtype == expected[kind][name].dtype
            assert torch.equal(batch[kind][name], expected[kind][name])
    assert batch["labels"].dtype == expected["labels"].dtype
    assert torch.equal(batch["labels"], expected["labels"])


@pytest.mark.parametrize(
    "view",
    [
        lambda split: split,
        lambda split: split.select(range(9, 50)),
        lambda split: split.select([60, 3, 3, 17, 0]),
        lambda split: split.shuffle(seed=1),
        lambda split: split.train_test_split(0.4, seed=0)["test"].select(range(3, 20)),
        lambda split: concatenate_datasets([split.select(range(40, 45)), split.select(range(10, 12))]),
        lambda split: split.shuffle(seed=2).flatten_indices(),
    ],
)
def test_batch_equals_a_plain_loop(split, view):
    rows = view(split)
    batch_rows = [len(rows) - 1, 0, 2, len(rows) // 2]
    assert_equal_batches(FeatureRows(rows, MODALITIES)[batch_rows], plain_batch(rows, batch_rows))
    lengths = [[len(row["text_features"]), len(row["image_features"])] for row in rows]
    assert FeatureRows(rows, MODALITIES).lengths().tolist() == lengths


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_reads_every_row_once(split, num_workers):
    loader = create_data_loader(split, MODALITIES, batch_size=8, shuffle=True, num_workers=num_workers)
    assert len(loader) == 8
    batches = list(loader)
    for batch, rows in zip(batches, loader.batch_sampler, strict=True):
        assert_equal_batches(batch, plain_batch(split, rows))
    assert sorted(id for batch in batches for id in batch["ids"]) == sorted(split["id"])


def test_survives_pickling_with_its_rows(split):
    rows = FeatureRows(split.shuffle(seed=3), MODALITIES)
    assert_equal_batches(pickle.loads(pickle.dumps(rows))[[5, 1]], rows[[5, 1]])


def test_single_labels_are_whole_numbers():
    features = {"id": Value("string"), "labels": Value("int64"), "a_features": Array2D((None, 2), "float16")}
    columns = {"id": ["p", "q"], "labels": [4, 2], "a_features": [np.ones((1, 2)), np.ones((3, 2))]}
    columns["a_special_mask"] = [[False], [True, False, True]]
    split = Dataset.from_dict(columns, features=Features({**features, "a_special_mask": List(Value("bool"))}))
    batch = FeatureRows(split, ["a"])[[1, 0]]
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [2, 4]
    assert batch["special_masks"]["a"].tolist() == [[True, False, True], [False, False, False]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_features_are_found_when_read(split, value):
    samples = split.to_list()
    samples[7]["text_features"][-1][0] = value
    rows = FeatureRows(Dataset.from_list(samples, features=split.features, split="train"), MODALITIES)
    rows[[1, 2]]
    with pytest.raises(SampleError, match="delete the cache") as caught:
        rows[[1, 2, 7]]
    assert (caught.value.split, caught.value.sample_id, caught.value.field) == ("train", "train-7", "text")


def test_features_are_checked_when_first_read_alone(split, monkeypatch):
    checked = []
    monkeypatch.setattr(batching, "has_non_finite", lambda features: checked.append(len(features)))
    rows = FeatureRows(split, MODALITIES)
    rows[[1, 2, 7]]
    assert checked == [3, 3]
    rows[[7, 1]]
    assert checked == [3, 3]
    rows[[1, 8]]
    assert checked == [3, 3, 2, 2]


def test_has_non_finite_knows_every_float16():
    for bits in np.arange(2**16).astype(np.uint16):
        value = np.array([1, bits, 2], np.uint16).view(np.float16)
        assert has_non_finite(value) == (not np.isfinite(value).all())
    assert not has_non_finite(np.zeros(0, np.float16))


def test_missing_modality_is_named(split):
    with pytest.raises(ValueError, match=r"no features of \['audio'\]"):
        FeatureRows(split, ["image", "audio"])


# ---- order ---------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=400)


@given(LENGTHS, st.integers(1, 7), st.integers(0, 5), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_sampler_properties(lengths, batch_size, seed, epoch, bucket):
    def order(epoch):
        sampler = BatchSampler(lengths, batch_size, shuffle=True, seed=seed, bucket=bucket)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return batches

    batches = order(epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    torch.manual_seed(epoch + 1)
    np.random.seed(epoch + 1)
    assert order(epoch) == batches
    if len(lengths) > 50:
        assert order(epoch + 1) != batches


def test_evaluation_keeps_the_order():
    sampler = BatchSampler([3] * 7, 3, shuffle=False)
    sampler.set_epoch(4)
    assert list(sampler) == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(ValueError, match="evaluation keeps the order"):
        BatchSampler([3] * 7, 3, shuffle=False, bucket=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BatchSampler([3] * 7, 0, shuffle=False)


def test_buckets_pad_little_and_still_mix():
    lengths = np.random.default_rng(0).integers(5, 100, 3000)

    def padding(sampler):
        padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in sampler)
        return 1 - lengths.sum() / padded

    bucketed = BatchSampler(lengths, 16, shuffle=True, bucket=True)
    assert padding(BatchSampler(lengths, 16, shuffle=True)) > 0.3
    assert padding(bucketed) < 0.05
    means = np.array([lengths[batch].mean() for batch in bucketed])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # neighbouring batches are of unlike lengths


# ---- under Accelerate ----------------------------------------------------------------------------------------------


def ids_per_step(loaders):
    return [sorted(id for batch in batches for id in batch["ids"]) for batches in zip(*loaders, strict=True)]


def test_two_processes_see_in_a_step_what_one_sees_with_the_doubled_batch(split):
    rows = split.select(range(60))

    def loader(batch_size):
        return create_data_loader(rows, MODALITIES, batch_size=batch_size, shuffle=True, seed=1)

    pair = [prepare_data_loader(loader(5), num_processes=2, process_index=i) for i in range(2)]
    one = prepare_data_loader(loader(10))
    for epoch in (0, 3):
        for each in (*pair, one):
            each.set_epoch(epoch)
        assert ids_per_step(pair) == ids_per_step([one])


@pytest.mark.parametrize("bucket", [False, True])
@pytest.mark.parametrize("processes", [{}, {"num_processes": 2, "process_index": 1}])
def test_resumed_epoch_has_the_same_order(split, processes, bucket):
    def prepared():
        loader = create_data_loader(split, MODALITIES, batch_size=5, shuffle=True, seed=1, bucket=bucket)
        return prepare_data_loader(loader, **processes)

    def epoch_ids(loader, epoch):
        loader.set_epoch(epoch)
        return [batch["ids"] for batch in loader]

    uninterrupted = prepared()
    orders = [epoch_ids(uninterrupted, epoch) for epoch in range(4)]
    assert orders[1] != orders[2]

    resumed = prepared()
    resumed.set_epoch(2)
    assert [batch["ids"] for batch in skip_first_batches(resumed, 3)] == orders[2][3:]
    assert epoch_ids(resumed, 3) == orders[3]


def test_epochs_differ_without_set_epoch_and_no_random_number_is_drawn(split):
    loader = Accelerator(cpu=True).prepare(create_data_loader(split, MODALITIES, batch_size=5, shuffle=True))
    before = torch.get_rng_state()
    first, second = ([batch["ids"] for batch in loader] for _ in range(2))
    assert first != second
    assert torch.equal(torch.get_rng_state(), before)


def test_lengths_are_rounded_up_but_not_above_the_longest(split):
    exact = FeatureRows(split, ["text"])
    rounded = FeatureRows(split, ["text"], pad_to_multiple_of=3)
    longest = int(exact.lengths().max())
    assert longest % 3  # otherwise the cap would not be seen
    seen = set()
    for row in range(len(split)):
        one, other = exact[[row]], rounded[[row]]
        length, padded = (batch["features"]["text"].shape[1] for batch in (one, other))
        assert padded == min(longest, -(-length // 3) * 3)
        assert torch.equal(other["features"]["text"][:, :length], one["features"]["text"])
        assert not other["features"]["text"][:, length:].any()
        assert other["feature_masks"]["text"].sum() == length
        seen.add(padded)
    assert longest in seen


def test_an_interrupt_while_workers_start_is_not_lost(split):
    """Python forgets one that comes in what it does after a fork, here for certain; in a fork, which keeps that."""
    if (child := os.fork()) == 0:
        os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
        code = 1
        try:
            list(batch_loader(FeatureRows(split, MODALITIES), batch_size=None, sampler=[[0]], num_workers=1))
        except KeyboardInterrupt:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
