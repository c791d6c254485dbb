"""The empty guide, for `pyrovi.models.neural_classification`: nothing is latent, and SVI is maximum likelihood."""

__all__ = ["guide"]


def guide() -> None:
    """Sample nothing."""
