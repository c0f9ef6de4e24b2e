from training.models.trained import network_size


def test_the_size_of_a_runs_network_is_counted_by_hand(tiny_run):
    # 4 to 6 planes of 3 x 3, BatchNorm, 6 to 3 planes of 1 x 1, on one slice of 224 x 224.
    parameters = (4 * 9 * 6 + 6) + 2 * 6 + (6 * 3 + 3)
    flops = 2 * 224 * 224 * (4 * 9 * 6 + 6 * 3)
    assert network_size(tiny_run) == (parameters, flops)
