"""The data report without a job: what `data check` says."""

from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.home import Surroundings
from gpt2cls.config import DataConfig, ModelConfig


def run_data_check(
    data: DataConfig,
    model: ModelConfig,
    *,
    seed: int,
    base_dir: Path,
    surroundings: Surroundings,
    console: Console,
) -> dict[str, Any]:
    """The data report as a document: `{rows, labels, problems: [{kind, count, examples}], ...}`.

    Raises:
        RequestError: the data or the tokenizer cannot be used.
    """
    from gpt2cls.data.check import check
    from gpt2cls.data.objects import with_local_files
    from gpt2cls.data.prepare import prepare
    from gpt2cls.data.tokenizer_source import get_tokenizer
    from jobs.inputs import texts_read

    data = with_local_files(data, surroundings.home.cache)
    prepared = prepare(data, base_dir=base_dir, seed=seed)
    console.print(f"{sum(map(len, prepared.splits.values())):,} rows read")
    cache = surroundings.home.cache
    tokenizer = get_tokenizer(
        model,
        texts_read(model, prepared),
        cache_dir=cache,
        base_dir=base_dir,
        special_tokens=data.special_tokens,
    )
    report = check(prepared, encode=tokenizer, max_length=data.max_length)
    return report.model_dump(mode="json")
