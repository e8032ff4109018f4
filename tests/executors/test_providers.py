"""A site file's words become Parsl's providers."""

from __future__ import annotations

import pytest
from parsl.providers import LocalProvider, SlurmProvider

from sonic_parsl.errors import ConfigError
from sonic_parsl.executors.providers import PROVIDERS, make_provider
from sonic_parsl.site import Count, Job, Provider, ServerGroup


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_every_provider_of_a_site_file_is_made_with_its_blocks(name: Provider) -> None:
    provider = make_provider(Job(provider=name), count=Count(min=1, max=3))
    assert type(provider) is PROVIDERS[name]
    assert (provider.init_blocks, provider.min_blocks, provider.max_blocks) == (1, 1, 3)


def test_every_word_for_a_provider_is_known() -> None:
    for name in PROVIDERS:
        assert ServerGroup(provider=name).provider == name  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Input should be 'local', 'slurm'"):
        ServerGroup(provider="kubernetes")  # type: ignore[arg-type]


def test_options_go_to_parsl_under_kebab_case_or_its_own_names() -> None:
    job = Job(provider="slurm", options={"nodes-per-block": 2, "walltime": "02:00:00", "partition": "gpu"})
    provider = make_provider(job, count=Count())
    assert isinstance(provider, SlurmProvider)
    assert (provider.nodes_per_block, provider.walltime, provider.partition) == (2, "02:00:00", "gpu")


def test_options_win_over_the_count() -> None:
    provider = make_provider(Job(options={"max-blocks": 7}), count=Count(min=1, max=3))
    assert (provider.min_blocks, provider.max_blocks) == (1, 7)


def test_the_sites_own_lines_come_before_ours() -> None:
    job = Job.model_validate({"worker-init": "module load python"})
    provider = make_provider(job, count=Count(), more_init="export A=1")
    assert isinstance(provider, LocalProvider)
    assert provider.worker_init == "module load python\nexport A=1"


def test_an_unknown_option_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"Provider slurm has no option 'wall_time'\. Did you mean 'walltime'\?"):
        make_provider(Job(provider="slurm", options={"wall-time": "1"}), count=Count())


def test_an_option_like_no_other_is_answered_with_all_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Provider local has no option 'zzz'\. It has nodes_per_block, launcher, "):
        make_provider(Job(options={"zzz": "1"}), count=Count())
