"""The command `train` with the networks of own_model.py beside ours."""

import own_model  # noqa: F401 - puts them into MODELS

from cli import run_train

if __name__ == "__main__":
    run_train()
