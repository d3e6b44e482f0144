"""What an installation has: versions, devices, data sets."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("fedrec", "flwr", "torch", "opacus", "transformers", "numpy", "pandas", "pyarrow", "ray")


def examine() -> str:
    """Return a few lines a person can read."""
    import torch

    from fedrec.data.sources import available

    lines = [f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    cuda = torch.cuda.is_available()
    lines.append(f"cuda: {torch.cuda.get_device_name(0) if cuda else 'no GPU found; runs use the CPU'}")
    lines.append(f"FEDREC_DATA={os.environ.get('FEDREC_DATA', '(not set)')}")
    lines.extend(
        f"data set {name}: {where or 'not here; downloaded on first use where it has an official source'}"
        for name, where in available().items()
    )
    return "\n".join(lines)
