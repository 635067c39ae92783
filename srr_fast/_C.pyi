from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...
def select_cpu_isa(name: str) -> None: ...
def pack_ranker(tensors: list[Tensor], heads: int, layers: int, ffn: int, norm_first: bool, bf16: bool) -> Tensor: ...

class PreparedScorer:
    def __init__(
        self,
        packed: Tensor,
        d: int,
        p: int,
        heads: int,
        layers: int,
        ffn: int,
        norm_first: bool,
        bf16: bool,
        scope: str,
        temperature: float,
    ) -> None: ...
    def __call__(
        self,
        inst: object,
        resp: object,
        offsets: object = None,
        out: object = None,
    ) -> tuple[Tensor, Tensor, Tensor] | None: ...
