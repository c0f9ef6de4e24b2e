import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import InputError
from training.federated.aggregate import Server, Update
from training.federated.strategies.krum import Krum


def update(client, w, mean=0.0, steps=0, size=1):
    state = {
        "w": torch.tensor(w),
        "running_mean": torch.tensor([mean]),
        "n": torch.tensor(steps),
        "v": torch.tensor([[0.0]]),
    }
    return Update(client, size, 10, 0.5, state)


def aggregate(strategy, updates):
    server = Server(updates[0].state if updates else {}, frozenset({"v", "w"}))
    return strategy.aggregate(server, iter(updates)).model


# On a line at 0, 1, 3, 4.5 and 100. With f = 1 the two nearest others count:
# 0: 1 + 9 = 10;  1: 1 + 4 = 5;  3: 2.25 + 4 = 6.25;  4.5: 2.25 + 12.25;  100: more
# With three of them, one too many: 0: 30.25; 1: 17.25; 3: 15.25, and 3 would win.
LINE = [
    update(0, [0.0, 0.0], mean=5.0, steps=1),
    update(1, [0.6, 0.8], mean=-700.0, steps=7, size=3),
    update(2, [1.8, 2.4], mean=5.0, steps=9),
    update(3, [2.7, 3.6], mean=5.0, steps=3),
    update(4, [60.0, 80.0], mean=5.0, steps=10**9, size=98),
]


def test_krum_takes_the_network_with_the_nearest_neighbours_as_it_is():
    model = aggregate(Krum(), LINE)
    assert torch.equal(model["w"], LINE[1].state["w"])
    assert model["running_mean"].tolist() == [-700.0]  # though its buffer is the farthest
    assert model["n"].item() == 7
    assert model["n"].dtype == torch.int64


def test_multi_krum_takes_the_plain_mean_of_several():
    model = aggregate(Krum(keep=2), LINE)
    assert model["w"].tolist() == [pytest.approx(1.2), pytest.approx(1.6)]  # not by 3 to 1
    assert model["running_mean"].tolist() == [-347.5]
    assert model["n"].item() == 9


@pytest.mark.parametrize("scale", [1.0, 2.0**70])  # whose square is no float32
def test_distances_are_squared(scale):
    # Two nearest: 37, 26, 41, 9 + 16 = 25, 58; not squared 7, 6, 9, 7, 10, and 1 would win.
    updates = [update(k, [scale * place]) for k, place in enumerate((0, 1, 6, 10, 13))]
    assert aggregate(Krum(), updates)["w"].item() == scale * 10


def test_distances_of_networks_that_are_close_are_not_lost_beside_their_size():
    # |a|² + |b|² - 2ab of such networks is a multiple of 128 in float64: all distances would be 0.
    far = 2.0**30
    places = [0.0, 4096.0, 1024.0, 1280.0, 8192.0]
    updates = [update(k, [far + place]) for k, place in enumerate(places)]
    assert aggregate(Krum(), updates)["w"].item() == far + 1024.0  # 256² + 1024² is the least


def test_of_equal_scores_the_lower_client_wins_in_any_order():
    updates = [update(k, [float(place)]) for k, place in enumerate((1, 0, 2, 3, 4))]
    updates[0], updates[3] = update(0, [3.0]), update(3, [1.0])  # 1, 2 and 3 score 2, 2 and 2
    assert aggregate(Krum(), updates)["w"].item() == 3.0
    assert aggregate(Krum(), updates[::-1])["w"].item() == 3.0


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [
        (Krum(), 5),
        (Krum(byzantine=2), 7),
        (Krum(byzantine=0), 3),
        (Krum(byzantine=1, keep=5), 6),
    ],
)
def test_too_few_clients_are_refused_in_one_line(strategy, needed):
    updates = [update(k, [float(k)]) for k in range(needed)]
    aggregate(strategy, updates)
    with pytest.raises(InputError, match=rf"{needed - 1} clients reported.*at least {needed}") as e:
        aggregate(strategy, updates[:-1])
    assert "\n" not in str(e.value)


def test_no_update_is_refused():
    with pytest.raises(ValueError, match="no update"):
        aggregate(Krum(), [])


@settings(deadline=None)
@given(
    honest=st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=8),
    lies=st.lists(st.floats(100, 2.0**100, width=32), min_size=1, max_size=2),
)
def test_a_far_network_is_never_chosen(honest, lies):
    byzantine = min(len(lies), (len(honest) + len(lies) - 3) // 2)
    lies = lies[:byzantine]
    updates = [update(k, [value]) for k, value in enumerate([*lies, *honest])]
    assert aggregate(Krum(byzantine=byzantine), updates)["w"].item() in honest
