"""The empty guide, for `pyrovi.models.neural_regression`: nothing is latent, and SVI is maximum likelihood."""

__all__ = ["guide"]


def guide() -> None:
    """Sample nothing."""
