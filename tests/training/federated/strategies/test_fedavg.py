import torch

from training.federated.aggregate import Server, Update
from training.federated.strategies.fedavg import FedAvg


def test_fedavg_weights_clients_by_number_of_examples():
    server = Server({"w": torch.tensor([9.0, 9.0])}, frozenset({"w"}))
    updates = [
        Update(0, 1, 7, 0.5, {"w": torch.tensor([0.0, 8.0])}),
        Update(1, 3, 2, 0.1, {"w": torch.tensor([4.0, 0.0])}),
    ]
    after = FedAvg().aggregate(server, iter(updates))
    assert after.model["w"].tolist() == [3.0, 2.0]  # (1*0 + 3*4)/4, (1*8 + 3*0)/4
