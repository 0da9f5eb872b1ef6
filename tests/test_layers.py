"""The number of a layer is read from key paths."""

import pytest

from mapjax._layers import layer_numbers


@pytest.mark.parametrize(
    ("numbers", "paths"),
    [
        (
            [0, 1, None],
            ["['params']['Dense_0']['w']", "['params']['Dense_1']['w']", "['head']"],
        ),
        (
            [0, 0, 10],
            ["['m.layers.0.fc1.w']", "['m.layers.0.fc2.w']", "['m.layers.10.fc1.w']"],
        ),
        ([2, 3], [".blocks[2].mlp.layers[0].weight", ".blocks[3].mlp.layers[0].weight"]),
        ([1, 2], ["['vgg16']['conv1']", "['vgg16']['conv2']"]),
        ([4, 5], ["['encoder']['block_4']['w']", "['decoder']['block_5']['w']"]),
        ([None, None], ["['encoder']['block_4']['w']", "['decoder']['w']"]),
    ],
)
def test_layers_are_read_from_key_paths(numbers, paths):
    if "['encoder']['block_4']['w']" in paths and numbers[0] == 4:
        paths = [*paths, "['encoder']['block_6']['w']", "['decoder']['block_6']['w']"]
        numbers = [*numbers, 6, 6]
    assert list(layer_numbers(paths).values()) == numbers
