"""The same objectives on Hugging Face models. Needs the extra: pip install 'bandit-pft[hf]'."""

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(f"bandit_pft.hf needs {error.name}: pip install 'bandit-pft[hf]'") from error

from bandit_pft.hf.bridge import objective_loss
from bandit_pft.hf.scoring import Rows, make_scorable, pack, token_logps
from bandit_pft.hf.trainer import PFTConfig, PFTTrainer

__all__ = ["PFTConfig", "PFTTrainer", "Rows", "make_scorable", "objective_loss", "pack", "token_logps"]
