"""The layout of a file against FFCV's own types."""

from itertools import product

import numpy as np
import pytest
import torch

from mixsize.ffcv_loaders.beton import format as ours

pytest.importorskip("ffcv")
from ffcv import fields, types, writer

FIELDS = {
    ours.FLOAT: fields.FloatField(),
    ours.INT: fields.IntField(),
    ours.IMAGE: fields.RGBImageField(),
    ours.BYTES: fields.BytesField(),
    ours.ARRAY: fields.NDArrayField(np.dtype("<f4"), (2, 3)),
    ours.JSON: fields.JSONField(),
    ours.TENSOR: fields.TorchTensorField(torch.float32, (2, 3)),
}


@pytest.mark.parametrize(
    ("part", "stock"),
    [
        (ours.HEADER, types.HeaderType),
        (ours.DESCRIPTOR, types.FieldDescType),
        (ours.ALLOCATION, types.ALLOC_TABLE_TYPE),
    ],
)
def test_every_part_is_laid_out_as_ffcvs(part, stock):
    assert dict(part.fields) == dict(stock.fields)
    assert part.itemsize == stock.itemsize


def test_types_versions_and_page_sizes_are_ffcvs():
    handlers = {type_id: type(field) for type_id, field in FIELDS.items()}
    assert handlers | {255: None} == types.TYPE_ID_HANDLER
    assert ours.VERSION == types.CURRENT_VERSION
    assert (ours.MIN_PAGE_SIZE, 2 * ours.MAX_PAGE_SIZE) == (writer.MIN_PAGE_SIZE, writer.MAX_PAGE_SIZE)
    assert (fields.rgb_image.IMAGE_MODES["jpg"], fields.rgb_image.IMAGE_MODES["raw"]) == (ours.JPEG, ours.RAW)


def test_rows_of_any_three_fields_are_ffcvs():
    for type_ids in product(FIELDS, repeat=3):
        row, stock = ours.row_type(type_ids), types.get_metadata_type([FIELDS[type_id] for type_id in type_ids])
        assert dict(row.fields) == dict(stock.fields), type_ids
        assert row.itemsize == stock.itemsize, type_ids


def test_a_row_by_hand():
    """Bytes of 16, an image of 13, then a number at the next multiple of 8; the row's length is one too."""
    row = ours.row_type([ours.BYTES, ours.IMAGE, ours.INT, ours.IMAGE])
    assert [row.fields[f"f{field}"][1] for field in range(4)] == [0, 16, 32, 40]
    assert row.itemsize == 56
    assert [ours.align(offset, 8) for offset in (0, 1, 8, 9)] == [0, 8, 8, 16]
