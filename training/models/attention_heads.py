"""What the networks with attention of several heads have in common."""


def require_equal_heads(width: int, num_heads: int) -> None:
    """Make sure that a token can be divided among heads.

    Raises:
        ValueError: If its width is no multiple of their number.
    """
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"a width of {width} cannot be divided among {num_heads} heads")
