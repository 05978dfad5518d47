"""The sizes of a model that starts from nothing. No torch here: settings are read by `slam --help`."""

from dataclasses import dataclass

from slam.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A small Qwen2, for a model that starts from nothing."""

    hidden_size: int = 192
    """Width of the residual stream."""
    intermediate_size: int = 512
    """Width of the gated MLP."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads; they divide hidden_size."""

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.intermediate_size, self.num_layers, self.num_heads) < 1:
            raise ConfigError("architecture: every size must be at least 1")
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"architecture: hidden_size {self.hidden_size} must be an even multiple of num_heads "
                f"{self.num_heads}"
            )
