"""Group: the ranks that split every layer between them."""

from dataclasses import dataclass

from sglang.base.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """`rank` is this process's number among `size`."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if self.size != 1:
            raise ConfigError(f"--tp-size {self.size} is not supported yet; leave it at 1")


ALONE = Group()
